"""What is drawn for each task, and what its legend says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.conversion.formats import FORMATS
from services.conversion.formats.anomaly_detection import STATES, AnomalyMask
from services.conversion.formats.colors import Colors
from services.conversion.formats.depth_estimation import DepthMap
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.interval import Interval
from services.conversion.formats.keypoint_detection import Instance as Pose
from services.conversion.formats.keypoint_detection import Keypoints
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.formats.quadrilateral_detection import Quad
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageSize
from services.conversion.picture.canvas import Canvas, scaled
from services.conversion.picture.color import IGNORED, category_color, depth_colors
from services.conversion.picture.drawing import DRAWINGS
from services.conversion.picture.legend import Entry
from services.conversion.picture.objects import OBJECTS_MAX
from services.conversion.raster.runs import runs_of_mask
from services.conversion.task import Task

SIZE = ImageSize(width=200, height=100)
NAMES = Names(names=("cat", "dog", "cow"))
COLORS = Colors(names=NAMES.names, colors={"cat": (250, 0, 0), "dog": (0, 250, 0), "cow": (0, 0, 250)})
PANOPTIC = PanopticColors(names=COLORS.names, colors=COLORS.colors, things=frozenset({"cat"}))
RANGE = Interval(low=1.0, high=11.0)
GRAY = (128, 128, 128)


def draw(task: Task, annotation: Any, vocabulary: Any) -> tuple[NDArray[np.uint8], Sequence[Entry]]:
    canvas = Canvas(scaled(Image.new("RGB", (SIZE.width, SIZE.height), GRAY), SIZE, 200), SIZE)
    legend = DRAWINGS[task](canvas, annotation, vocabulary)
    return np.asarray(canvas.finished()), legend


def texts(legend: Sequence[Entry]) -> list[str]:
    return [entry.text for entry in legend]


def near(found: NDArray[np.uint8], color: tuple[int, int, int], distance: int = 60) -> NDArray[np.bool_]:
    return (np.abs(found.astype(int) - color) < distance).all(axis=2)


def half_mask(*, left: bool) -> NDArray[np.bool_]:
    mask = np.zeros((50, 100), np.bool_)
    mask[:, slice(0, 50) if left else slice(50, 100)] = True
    return mask


def test_every_task_with_annotations_is_drawn() -> None:
    assert set(DRAWINGS) == {task for task in Task if task not in FORMATS or FORMATS[task].annotated}


@pytest.mark.parametrize("task", [Task.OBJECT_DETECTION, Task.QUADRILATERAL_DETECTION, Task.KEYPOINT_DETECTION])
def test_nothing_there_draws_nothing(task: Task) -> None:
    vocabulary = Keypoints(names=NAMES, sigmas=(1, 1, 1)) if task is Task.KEYPOINT_DETECTION else NAMES
    found, legend = draw(task, (), vocabulary)
    assert (found == 128).all()
    assert not legend


def test_boxes_have_the_colour_of_their_category_and_are_counted() -> None:
    boxes = (
        Box(category="dog", bbox=(20, 20, 80, 80)),
        Box(category="cat", bbox=(100, 20, 150, 80)),
        Box(category="cat", bbox=(160, 20, 190, 80)),
    )
    found, legend = draw(Task.OBJECT_DETECTION, boxes, NAMES)
    assert texts(legend) == ["cat: 2", "dog: 1"]
    assert [entry.color for entry in legend] == [category_color(0), category_color(1)]
    assert near(found, category_color(1))[18:23, 30:70].any()
    assert near(found, category_color(0))[30:70, 98:103].any()
    assert not near(found, category_color(0))[:, :90].any()


def test_crowds_are_dashed_and_what_to_ignore_is_gray() -> None:
    whole = (0, 40, 200, 90)
    crowd, legend = draw(Task.OBJECT_DETECTION, (Box(category="cow", bbox=whole, crowd=True),), NAMES)
    plain, _ = draw(Task.OBJECT_DETECTION, (Box(category="cow", bbox=whole),), NAMES)
    assert legend == [Entry(text="cow, crowd: 1", color=category_color(2), striped=True)]
    assert near(crowd, category_color(2)).sum() < near(plain, category_color(2)).sum()
    ignored, legend = draw(Task.OBJECT_DETECTION, (Box(category="cow", bbox=whole, ignore=True),), NAMES)
    assert legend == [Entry(text="to ignore: 1", color=IGNORED)]
    assert not near(ignored, category_color(2)).any()
    assert near(ignored, IGNORED, 10).any()


def test_of_very_many_objects_the_first_are_drawn_and_all_are_counted() -> None:
    boxes = tuple(Box(category="cat", bbox=(n % 190, 10, n % 190 + 5, 20)) for n in range(OBJECTS_MAX + 1))
    assert texts(draw(Task.OBJECT_DETECTION, boxes, NAMES)[1]) == [
        f"cat: {OBJECTS_MAX + 1}",
        f"the first {OBJECTS_MAX} of {OBJECTS_MAX + 1} are drawn",
    ]


def test_the_first_corner_of_a_quad_is_marked() -> None:
    corners = ((40.0, 20.0), (160.0, 20.0), (160.0, 80.0), (40.0, 80.0))
    turned = (*corners[1:], corners[0])
    straight, _ = draw(Task.QUADRILATERAL_DETECTION, (Quad(category="cat", quad=corners),), NAMES)
    other, _ = draw(Task.QUADRILATERAL_DETECTION, (Quad(category="cat", quad=turned),), NAMES)  # type: ignore[arg-type]
    white = (255, 255, 255)
    assert near(straight, white, 20)[18:23, 38:43].any()
    assert near(other, white, 20)[18:23, 158:163].any()
    assert not near(other, white, 20)[18:23, 38:43].any()


def test_keypoints_have_the_colours_of_their_names() -> None:
    vocabulary = Keypoints(names=Names(names=("nose", "tail", "paw")), sigmas=(1, 1, 1))
    pose = Pose(points={"nose": (50.0, 50.0), "tail": (150.0, 50.0), "paw": None})
    found, legend = draw(Task.KEYPOINT_DETECTION, (pose, Pose(points={}, crowd=True)), vocabulary)
    assert near(found, category_color(0))[48:53, 48:53].any()
    assert near(found, category_color(1))[48:53, 148:153].any()
    assert texts(legend) == ["objects: 1", "crowd: 1", "nose", "tail"]


def test_instances_are_painted_in_the_vocabularys_colours() -> None:
    annotation = InstanceMap(
        width=100,
        height=50,
        instances=(
            Instance(category="cat", mask=runs_of_mask(half_mask(left=True))),
            Instance(category="dog", mask=runs_of_mask(half_mask(left=False)), crowd=True),
        ),
    )
    found, legend = draw(Task.INSTANCE_SEGMENTATION, annotation, COLORS)
    assert legend == [
        Entry(text="cat: 1", color=(250, 0, 0)),
        Entry(text="dog, crowd: 1", color=(0, 250, 0), striped=True),
    ]
    assert near(found, (195, 58, 58))[10:90, 5:95].all()
    green = near(found, (58, 195, 58))[10:90, 105:195].mean()
    assert 0.3 < green < 0.9


def test_a_small_instance_lies_over_a_large_one() -> None:
    small = np.zeros((50, 100), np.bool_)
    small[20:30, 20:30] = True
    whole = np.ones((50, 100), np.bool_)
    instances = tuple(
        Instance(category=name, mask=runs_of_mask(mask)) for name, mask in (("cat", small), ("dog", whole))
    )
    found, _ = draw(Task.INSTANCE_SEGMENTATION, InstanceMap(width=100, height=50, instances=instances), COLORS)
    assert near(found, (195, 58, 58))[45:55, 45:55].all()


def test_neighbours_of_one_category_differ() -> None:
    instances = tuple(Instance(category="cat", mask=runs_of_mask(half_mask(left=left))) for left in (True, False))
    found, legend = draw(Task.INSTANCE_SEGMENTATION, InstanceMap(width=100, height=50, instances=instances), COLORS)
    assert (found[50, 20] != found[50, 180]).any()
    assert texts(legend) == ["cat: 2"]


def test_classes_are_listed_by_their_share_and_what_is_ignored_is_hatched() -> None:
    classes = np.zeros((50, 100), np.uint16)
    classes[:, :60] = 2
    classes[:, 60:90] = 1
    classes[0, 90] = 3
    found, legend = draw(Task.SEMANTIC_SEGMENTATION, SemanticMap(classes=classes, names=NAMES.names), COLORS)
    assert texts(legend) == ["dog: 60%", "cat: 30%", "cow: <1%", "ignored: 10%"]
    assert near(found, (58, 195, 58))[5:95, 5:115].all()
    assert found[10:90, 185:195].std() > 5


def test_segments_are_counted_by_category() -> None:
    labels = np.zeros((50, 100), np.uint16)
    labels[:, :30], labels[:, 30:60], labels[:, 60:80] = 1, 2, 3
    segments = (
        Segment(category="cat", id=1),
        Segment(category="cat", id=2),
        Segment(category="cow", id=1, ignore=True),
    )
    found, legend = draw(Task.PANOPTIC_SEGMENTATION, PanopticMap(labels=labels, segments=segments), PANOPTIC)
    assert texts(legend) == ["cat: 2", "to ignore: 1", "void: 20%"]
    assert near(found, (195, 58, 58))[10:90, 5:55].all()
    assert not near(found, (58, 58, 195)).any()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_near_is_light_and_far_is_dark_over_the_distances_of_the_image(kind: type[np.unsignedinteger[Any]]) -> None:
    most = int(np.iinfo(kind).max)
    levels = np.zeros((10, 30), kind)
    levels[:, 10:20], levels[:, 20:] = 1, most
    found, legend = draw(Task.DEPTH_ESTIMATION, DepthMap(levels=levels), RANGE)
    assert texts(legend) == ["nearest: 1", "farthest: 11", "ignored: 33%"]
    assert (found[50, 100] == depth_colors(256)[0]).all()
    assert (found[50, 190] == depth_colors(256)[-1]).all()
    assert found[50, 190].sum() > found[50, 100].sum()


def test_one_distance_alone_is_drawn_too() -> None:
    found, legend = draw(Task.DEPTH_ESTIMATION, DepthMap(levels=np.full((4, 4), 128, np.uint8)), RANGE)
    assert texts(legend) == ["nearest: 6", "farthest: 6"]
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1


def test_what_is_anomalous_is_painted() -> None:
    found, legend = draw(Task.ANOMALY_DETECTION, AnomalyMask(pixels=half_mask(left=True)), STATES)
    assert texts(legend) == ["anomalous"]
    assert (found[50, 180] == 128).all()
    assert (found[50, 20] != 128).any()
    assert texts(draw(Task.ANOMALY_DETECTION, "normal", STATES)[1]) == ["normal"]


@pytest.mark.parametrize(
    ("task", "annotation", "vocabulary", "expected"),
    [
        (Task.MULTICLASS_CLASSIFICATION, "dog", NAMES, ["dog"]),
        (Task.METRIC_LEARNING, "cow", NAMES, ["cow"]),
        (Task.MULTILABEL_CLASSIFICATION, ("cow", "cat"), NAMES, ["cat", "cow"]),
        (Task.REGRESSION, 3.5, RANGE, ["3.5", "of 1 to 11"]),
        (Task.SCENE_TEXT_RECOGNITION, ("H", "i", "!"), NAMES, ["Hi!"]),
        (Task.SCENE_TEXT_RECOGNITION, ("new", "york"), NAMES, ["new york"]),
    ],
)
def test_what_has_no_place_in_the_image_stands_below_it(
    task: Task, annotation: Any, vocabulary: Any, expected: list[str]
) -> None:
    found, legend = draw(task, annotation, vocabulary)
    assert texts(legend) == expected
    assert (found == 128).all()


def test_the_colours_of_many_categories_differ() -> None:
    colors = [category_color(index) for index in range(80)]
    assert len(set(colors)) == 80
    first = np.array(colors[:12])
    distances = np.abs(first[:, None] - first[None]).sum(axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 80
