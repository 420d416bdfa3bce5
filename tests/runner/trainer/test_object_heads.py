"""What is particular to quadrilaterals, keypoints, instances and panoptic maps."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations

from runner.tasks import TASKS
from runner.tasks.anchor_free import Matches
from runner.tasks.assignment import POINTS_EACH_MAX
from runner.tasks.dynamic_mask import MASKS_LEARNED_MAX, _chosen, coverage
from runner.tasks.instance_file import Instance as Seen
from runner.tasks.instance_segmentation import MASK_BYTES_AT_ONCE, place_masks
from runner.tasks.mask import decoded, encoded, mask_in_image
from runner.tasks.panoptic_segmentation import PanopticSegmentation
from runner.tasks.quadrilateral_detection import ORDERS, distance
from runner.tasks.task import WrongAnnotation
from runner.trainer.image import Canvas, view_of
from runner.trainer.view import IDENTITY, View, flip_horizontally, shift, turn_and_zoom
from services.conversion.formats.colors import Colors
from services.conversion.formats.instance_segmentation import Instance, InstanceMap, InstanceSegmentation
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.formats.panoptic_segmentation import PanopticSegmentation as PanopticFormat
from services.conversion.index import ImageSize
from services.conversion.raster.runs import runs_of_mask
from tests.runner.trainer.conftest import spec_from
from tests.runner.trainer.ideal_outputs import CANVAS
from tests.runner.trainer.task_rows import ROWS, Row
from tests.runner.trainer.test_tasks import model_of

SQUARE = View(width=100, height=80, canvas_width=100, canvas_height=80, matrix=IDENTITY)


@pytest.mark.parametrize(
    "corners", [lambda quad: quad[1:] + quad[:1], lambda quad: quad[::-1], lambda quad: quad[2:] + quad[:2]]
)
def test_corners_in_another_order_are_wrong_unless_the_order_means_nothing(corners: Any) -> None:
    quad = [[10.0, 5], [40, 8], [42, 30], [8, 25]]
    found, wanted = torch.tensor([quad]), torch.tensor([corners(quad)])
    box = torch.tensor([[8.0, 5, 42, 30]])
    assert distance(found, found, box, torch.tensor(ORDERS[:1])).item() == 0
    assert distance(found, wanted, box, torch.tensor(ORDERS[:1])).item() > 0.3
    assert distance(found, wanted, box, torch.tensor(ORDERS)).item() == 0


POINTS = {"keypoints": ["nose", "left", "right"], "flip_pairs": [["left", "right"]]}
POSE = [{"nose": [50, 10], "left": [30, 40], "right": [70, 45], "bbox": [20, 5, 80, 60]}]


def test_left_and_right_change_names_in_a_mirror_and_nowhere_else() -> None:
    task = TASKS[task_pb2.TASK_KEYPOINT_DETECTION]
    target = task.reader(task.vocabulary(POINTS), Path())(POSE)
    mirrored = task.place(target, SQUARE.then(flip_horizontally(100)))
    assert mirrored.more["places"][0].tolist() == [[50, 10], [30, 45], [70, 40]]
    turned = task.place(target, SQUARE.then(turn_and_zoom(180, 1, 50, 40)))
    assert turned.more["places"][0] == pytest.approx(np.array([[50, 70], [70, 40], [30, 35]]))


def test_a_keypoint_that_is_pushed_out_is_not_there_and_its_object_still_is() -> None:
    task = TASKS[task_pb2.TASK_KEYPOINT_DETECTION]
    placed = task.place(task.reader(task.vocabulary(POINTS), Path())(POSE), SQUARE.then(shift(-40, 0)))
    assert placed.more["present"].tolist() == [[True, False, True]]
    assert placed.more["told"].tolist() == [True]


def test_without_flip_pairs_no_mirror_is_allowed() -> None:
    task = TASKS[task_pb2.TASK_KEYPOINT_DETECTION]
    unfit = task.unfit_augmentations(task.vocabulary({"keypoints": ["nose"]}))
    assert set(unfit) == {"horizontal_flip", "vertical_flip"}
    assert set(unfit) <= {field.name for field in Augmentations.DESCRIPTOR.fields}
    assert not task.unfit_augmentations(task.vocabulary(POINTS))


def test_an_object_of_nothing_but_its_points_gets_a_box_around_them_and_one_of_nothing_is_left_out() -> None:
    task = TASKS[task_pb2.TASK_KEYPOINT_DETECTION]
    target = task.reader(task.vocabulary(POINTS), Path())([{"nose": [5, 5], "left": [9, 25]}, {"left": [7, 7]}, {}])
    assert target.objects.boxes.tolist() == [[5, 5, 9, 25], [6.5, 6.5, 7.5, 7.5]]
    assert target.areas.tolist() == [80, 1]


@pytest.mark.parametrize(
    ("task", "annotation", "problem"),
    [
        (task_pb2.TASK_OBJECT_DETECTION, {"category": "a"}, "a list of objects was wanted"),
        (task_pb2.TASK_OBJECT_DETECTION, [{"category": "a", "bbox": [1, 2, 3]}], "`bbox` must be 4 numbers"),
        (task_pb2.TASK_OBJECT_DETECTION, [{"category": "a", "bbox": [5, 0, 1, 9]}], "left, top, right, bottom"),
        (task_pb2.TASK_OBJECT_DETECTION, [{"category": "z", "bbox": [0, 0, 1, 9]}], "'z' is none of the 1 categories"),
        (task_pb2.TASK_OBJECT_DETECTION, [{"category": "a", "bbox": [0, 0, 1, "x"]}], "`bbox` must be 4 numbers"),
        (task_pb2.TASK_QUADRILATERAL_DETECTION, [{"category": "a", "quad": [[0, 0]] * 4}], "must enclose an area"),
        (task_pb2.TASK_QUADRILATERAL_DETECTION, [{"category": "a", "quad": [0, 1]}], "`quad` must be 4 x 2 numbers"),
        (task_pb2.TASK_KEYPOINT_DETECTION, [{"nose": [1]}], "`nose` must be 2 numbers"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said(task: int, annotation: Any, problem: str) -> None:
    found = TASKS[task]
    metadata = POINTS if task == task_pb2.TASK_KEYPOINT_DETECTION else {"categories": ["a"]}
    with pytest.raises(WrongAnnotation, match=problem):
        found.reader(found.vocabulary(metadata), Path())(annotation)


def ellipse(width: int, height: int, box: tuple[float, float, float, float]) -> Any:
    page = Image.new("L", (width, height))
    ImageDraw.Draw(page).ellipse(box, fill=1)
    return np.asarray(page).astype(bool)


@pytest.mark.parametrize("size", [(320, 200), (150, 210)])
def test_a_mask_comes_back_from_its_cells(size: tuple[int, int]) -> None:
    """From the image to the canvas, from there to cells of two pixels, and back."""
    width, height = size
    view = view_of(width, height, Canvas(height=128, width=192, centered=True, fill=0.0, enlarge=True))
    mask = ellipse(width, height, (0.2 * width, 0.15 * height, 0.9 * width, 0.8 * height))
    placed = place_masks([Seen(mask=mask, category=0, ignored=False)], view)
    cells = coverage(torch.from_numpy(placed.more["masks"]), 64, 96, 2)[0]
    found = mask_in_image((cells * 255).round().to(torch.uint8).numpy(), 2, (0, 0, width, height), view)
    assert (found & mask).sum() / (found | mask).sum() >= 0.99


def test_masks_survive_their_encoding() -> None:
    mask = ellipse(37, 21, (3, 2, 30, 19))
    assert np.array_equal(decoded(encoded(mask)), mask)


def test_an_instance_that_is_pushed_out_is_ignored() -> None:
    masks = (ellipse(100, 80, (0, 10, 40, 60)), ellipse(100, 80, (50, 10, 90, 60)))
    instances = [Seen(mask=mask, category=number, ignored=False) for number, mask in enumerate(masks)]
    placed = place_masks(instances, SQUARE.then(shift(-34, 0)))
    assert placed.categories.tolist() == [0, 1]
    assert placed.ignored.tolist() == [True, False]
    assert placed.boxes[1].tolist() == [16, 10, 57, 61]


def test_masks_of_an_image_are_never_all_in_memory_at_once() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def instances() -> Iterator[Seen]:
        nonlocal most
        for number in range(400):
            mask = ellipse(1000, 800, (number, 10, 200 + number, 300))
            alive.append(weakref.ref(mask))
            most = max(most, sum(each() is not None for each in alive) * mask.size)
            yield Seen(mask=mask, category=0, ignored=False)

    placed = place_masks(instances(), view_of(1000, 800, CANVAS))
    assert len(placed.boxes) == 400
    assert most <= 2 * MASK_BYTES_AT_ONCE < 400 * 1000 * 800


def test_of_too_many_masks_every_object_keeps_its_best_points() -> None:
    count = 30
    objects = torch.arange(count).repeat_interleave(POINTS_EACH_MAX)
    there = torch.rand(len(objects), generator=torch.Generator().manual_seed(0)) < 0.8
    matches = Matches(images=objects * 0, points=objects, objects=objects, weights=there / len(objects))
    chosen = _chosen(matches)
    assert len(chosen) == MASKS_LEARNED_MAX < there.sum()
    assert there[chosen].all()
    ranks = torch.zeros(count, POINTS_EACH_MAX).index_put((objects[chosen], chosen % POINTS_EACH_MAX), torch.ones(()))
    better = there.view(count, POINTS_EACH_MAX).cumsum(dim=1).eq(1) & there.view(count, POINTS_EACH_MAX)
    assert ranks[better].all(), "an object's best point is left out"


def test_of_too_many_objects_each_step_learns_the_masks_of_others() -> None:
    objects = torch.arange(400).repeat_interleave(POINTS_EACH_MAX)
    learned: set[int] = set()
    for seed in range(20):
        weights = torch.rand(len(objects), generator=torch.Generator().manual_seed(seed)) / len(objects)
        chosen = _chosen(Matches(images=objects * 0, points=objects, objects=objects, weights=weights))
        assert not (chosen % POINTS_EACH_MAX).any(), "another point than the best"
        learned |= set(objects[chosen].tolist())
    assert len(learned) == 400


COORDINATES = {
    task_pb2.TASK_OBJECT_DETECTION: lambda found: found.boxes,
    task_pb2.TASK_QUADRILATERAL_DETECTION: lambda found: found.corners,
    task_pb2.TASK_KEYPOINT_DETECTION: lambda found: found.places[found.presences.min(axis=1) >= 0.5],
}


@pytest.mark.parametrize("size", [(40, 30), (150, 210), (640, 90)])
@pytest.mark.parametrize("row", [row for row in ROWS if row.task in COORDINATES], ids=lambda row: row.name)
def test_what_is_said_ideally_lies_where_it_was_annotated(row: Row, size: tuple[int, int]) -> None:
    """To a thousandth of a pixel, whatever the image's shape."""
    task, coordinates = TASKS[row.task], COORDINATES[row.task]
    vocabulary = task.vocabulary(row.metadata)
    view = view_of(*size, CANVAS)
    targets = [task.reader(vocabulary, Path())(annotation) for annotation in row.annotations]
    outputs = row.ideal(task, task.batch([task.place(target, view) for target in targets]))
    head = model_of(row)[1]
    compared = 0
    for prediction, target in zip(head.predictions(head.decode(outputs), [view] * 8), targets, strict=True):
        found, wanted = coordinates(prediction), coordinates(task.shown(vocabulary, target, view))
        if len(wanted):
            off = np.abs(found[:, None] - wanted[None]).reshape(len(found), len(wanted), -1).max(axis=2)
            assert off.min(axis=0).max() <= 1e-3
            compared += len(wanted)
    assert compared >= 8


NAMES = ("cup", "plate", "floor")
COLORS = {"cup": (255, 0, 0), "plate": (0, 0, 255), "floor": (0, 255, 0)}


def write_map(folder: Path, file: Any) -> dict[str, Any]:
    """As conversion's sink does."""
    (folder / "annotations").mkdir()
    (folder / "annotations" / f"one{file.suffix}").write_bytes(file.content)
    return {"map": f"annotations/one{file.suffix}", **(file.about or {})}


def test_instances_are_read_as_conversion_writes_them(tmp_path: Path) -> None:
    masks = [ellipse(60, 40, (2, 2, 20, 30)), ellipse(60, 40, (10, 5, 50, 35))]
    instances = tuple(
        Instance(category=name, mask=runs_of_mask(mask), crowd=name == "plate")
        for name, mask in zip(NAMES, masks, strict=False)
    )
    vocabulary = Colors(names=NAMES, colors=COLORS)
    file = InstanceSegmentation().write(
        InstanceMap(width=60, height=40, instances=instances), ImageSize(width=60, height=40), vocabulary
    )
    task = TASKS[task_pb2.TASK_INSTANCE_SEGMENTATION]
    words = {"categories": list(NAMES), "colors": {name: list(color) for name, color in COLORS.items()}}
    found = list(task.reader(task.vocabulary(words), tmp_path)(write_map(tmp_path, file)).read())
    assert np.array_equal(np.stack([each.mask for each in found]), np.stack(masks))
    assert [each.category for each in found] == [0, 1]
    assert [each.ignored for each in found] == [False, True]


def test_segments_are_read_as_conversion_writes_them(tmp_path: Path) -> None:
    labels = np.zeros((40, 60), np.uint16)
    labels[5:], labels[10:20, 10:30], labels[25:35, 5:15], labels[30:38, 40:55] = 1, 2, 3, 4
    segments = (
        Segment(category="floor", id=0),
        Segment(category="cup", id=7),
        Segment(category="cup", id=300),
        Segment(category="plate", id=7, ignore=True),
    )
    vocabulary = PanopticColors(names=NAMES, colors=COLORS, things=frozenset({"cup", "plate"}))
    file = PanopticFormat().write(
        PanopticMap(labels=labels, segments=segments), ImageSize(width=60, height=40), vocabulary
    )
    task = PanopticSegmentation()
    words = {
        "categories": list(NAMES),
        "colors": {name: list(color) for name, color in COLORS.items()},
        "things": ["cup", "plate"],
    }
    target = task.reader(task.vocabulary(words), tmp_path)(write_map(tmp_path, file))
    found = target.file.read()
    assert found.classes.tolist() == [1, 1, 2, 3]
    assert found.ignored.tolist() == [False, False, True, False]
    assert np.array_equal(np.array([0, 2, 3, 4, 1])[found.labels], labels)
    objects, classes = task.place(target, View(width=60, height=40, canvas_width=60, canvas_height=40, matrix=IDENTITY))
    assert objects.boxes.tolist() == [[10, 10, 30, 20], [5, 25, 15, 35], [40, 30, 55, 38]]
    assert classes[34, 50] == 0
    assert classes[0, 0] == 0
    assert classes[6, 0] == 3


def test_stuff_alone_can_be_learned(tmp_path: Path) -> None:
    (row,) = (row for row in ROWS if row.task == task_pb2.TASK_PANOPTIC_SEGMENTATION)
    task = TASKS[row.task]
    vocabulary = task.vocabulary({**row.metadata, "things": []})
    head = task.head(spec_from(model={"heads": [row.head_json()]}).model.heads[0], vocabulary, {0: 3, 1: 8, 2: 8, 3: 8})
    pictures = {level: torch.rand(1, 3 if level == 0 else 8, 32 >> level, 48 >> level) for level in range(4)}
    view = view_of(48, 32, CANVAS)
    with torch.inference_mode():
        (prediction,) = head.predictions(head.decode(head(pictures)), [view])
    assert {each.score for each in prediction.segments} <= {1.0}
    assert model_of(row)[1] is not head
