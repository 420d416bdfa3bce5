"""Datasets that chance makes, through every path of the graph: nothing is mixed up, lost on the way, or mirrored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from services.conversion.convert import EDGES
from services.conversion.convert.edge import Edge
from services.conversion.conveyor.chunk import Recipe, convert_chunk
from services.conversion.dataset.record import RawRecord
from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors
from services.conversion.formats.depth_estimation import DepthMap
from services.conversion.formats.format import MapFile
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.interval import Interval
from services.conversion.formats.keypoint_detection import Instance as Pose
from services.conversion.formats.keypoint_detection import Keypoints
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.formats.quadrilateral_detection import Quad
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageEntry
from services.conversion.raster.runs import mask_of_runs, runs_of_mask
from services.conversion.task import IMAGES_ALONE, Task

NAMES = ("cat", "007", "no", "1.10")
WIDTH, HEIGHT = 24, 18
"""Of the images; maps are as large, or a half or a third of it."""
FLAGS = st.fixed_dictionaries({"crowd": st.booleans(), "ignore": st.booleans()})
CATEGORIES = st.sampled_from(NAMES)
COLORS = {name: (number * 60, 255 - number, number) for number, name in enumerate(NAMES)}
POINTS = st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT)).map(lambda point: tuple(map(float, point)))
SHAPES = st.sampled_from([(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (HEIGHT // 3, WIDTH // 3)])


@st.composite
def bboxes(draw: Any) -> tuple[float, float, float, float]:
    xs = sorted(draw(st.sets(st.integers(0, WIDTH), min_size=2, max_size=2)))
    ys = sorted(draw(st.sets(st.integers(0, HEIGHT), min_size=2, max_size=2)))
    return float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])


@st.composite
def quads(draw: Any) -> Quad:
    """The corners of a box in any order, also that of a bow-tie."""
    xmin, ymin, xmax, ymax = draw(bboxes())
    corners = draw(st.permutations([(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax)]))
    return Quad(category=draw(CATEGORIES), quad=tuple(corners), **draw(FLAGS))


@st.composite
def boxes(draw: Any) -> Box:
    return Box(category=draw(CATEGORIES), bbox=draw(bboxes()), **draw(FLAGS))


@st.composite
def areas(draw: Any, shape: tuple[int, int]) -> Any:
    """A rectangle of the map, or two."""
    mask = np.zeros(shape, np.bool_)
    for _ in range(draw(st.integers(1, 2))):
        top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        mask[top : top + draw(st.integers(1, 8)), left : left + draw(st.integers(1, 8))] = True
    return mask


@st.composite
def instance_maps(draw: Any) -> InstanceMap:
    height, width = shape = draw(SHAPES)
    found = [
        Instance(category=draw(CATEGORIES), mask=runs_of_mask(draw(areas(shape))), **draw(FLAGS))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return InstanceMap(width=width, height=height, instances=tuple(found))


@st.composite
def panoptic_maps(draw: Any) -> PanopticMap:
    """Segments in the order of category and id, as a map is read."""
    shape = draw(SHAPES)
    pairs = draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=5))
    labels = np.zeros(shape, np.uint16)
    for number in range(1, len(pairs) + 1):
        labels[draw(areas(shape))] = number
    there = [number for number in range(1, len(pairs) + 1) if (labels == number).any()]
    table = np.zeros(len(pairs) + 1, np.uint16)
    table[there] = range(1, len(there) + 1)
    ordered = [sorted(pairs)[number - 1] for number in there]
    segments = tuple(Segment(category=NAMES[category], id=number, **draw(FLAGS)) for category, number in ordered)
    return PanopticMap(labels=table[labels], segments=segments)


@st.composite
def semantic_maps(draw: Any) -> SemanticMap:
    shape = draw(SHAPES)
    classes = np.zeros(shape, np.uint16)
    for _ in range(draw(st.integers(1, 4))):
        classes[draw(areas(shape))] = draw(st.integers(1, 4))
    return SemanticMap(classes=classes, names=NAMES)


@st.composite
def depth_maps(draw: Any) -> DepthMap:
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    levels = np.zeros(draw(SHAPES), dtype)
    levels[draw(areas(levels.shape))] = draw(st.integers(1, np.iinfo(dtype).max))
    return DepthMap(levels=levels)


@st.composite
def poses(draw: Any) -> Pose:
    points = draw(st.dictionaries(st.sampled_from(["left", "right", "nose"]), st.none() | POINTS))
    return Pose(points=points, bbox=draw(st.none() | bboxes()), **draw(FLAGS))


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a task's datasets are made. `nothing`: what says that nothing is there, None where nothing does."""

    vocabulary: Any
    annotations: st.SearchStrategy[Any]
    nothing: Any = None


def several(each: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(each, min_size=1, max_size=3).map(tuple)


CLASSES = Names(names=NAMES)
PANOPTIC_VOCABULARY = PanopticColors(names=NAMES, colors=COLORS, things=frozenset(NAMES[:2]))
MAP_VOCABULARY = Colors(names=NAMES, colors=COLORS)
KEYPOINTS = Keypoints(
    names=Names(names=("left", "right", "nose")), sigmas=(1 / 3,) * 3, flip_pairs=(("left", "right"),)
)
STARTS: dict[Task, Start] = {
    Task.MULTICLASS_CLASSIFICATION: Start(vocabulary=CLASSES, annotations=CATEGORIES),
    Task.MULTILABEL_CLASSIFICATION: Start(
        vocabulary=CLASSES, annotations=st.lists(CATEGORIES, unique=True, min_size=1).map(tuple), nothing=()
    ),
    Task.METRIC_LEARNING: Start(vocabulary=CLASSES, annotations=CATEGORIES),
    Task.REGRESSION: Start(vocabulary=Interval(low=-5, high=5), annotations=st.floats(-5, 5)),
    Task.SCENE_TEXT_RECOGNITION: Start(
        vocabulary=Names(names=tuple("cat07")), annotations=several(st.sampled_from("cat07")), nothing=()
    ),
    Task.OBJECT_DETECTION: Start(vocabulary=CLASSES, annotations=several(boxes()), nothing=()),
    Task.QUADRILATERAL_DETECTION: Start(vocabulary=CLASSES, annotations=several(quads()), nothing=()),
    Task.KEYPOINT_DETECTION: Start(vocabulary=KEYPOINTS, annotations=several(poses()), nothing=()),
    Task.INSTANCE_SEGMENTATION: Start(
        vocabulary=MAP_VOCABULARY,
        annotations=instance_maps(),
        nothing=InstanceMap(width=WIDTH, height=HEIGHT, instances=()),
    ),
    Task.SEMANTIC_SEGMENTATION: Start(vocabulary=MAP_VOCABULARY, annotations=semantic_maps()),
    Task.PANOPTIC_SEGMENTATION: Start(vocabulary=PANOPTIC_VOCABULARY, annotations=panoptic_maps()),
    Task.DEPTH_ESTIMATION: Start(vocabulary=Interval(low=1, high=80), annotations=depth_maps()),
    Task.ANOMALY_DETECTION: Start(vocabulary=None, annotations=st.sampled_from(["normal", "anomalous"])),
    Task.AUTOENCODING: Start(vocabulary=None, annotations=st.none()),
    Task.VIEW_INVARIANCE_LEARNING: Start(vocabulary=None, annotations=st.none()),
}
IMAGE = ImageEntry(name="a.png", size_bytes=1, etag="1", width=WIDTH, height=HEIGHT, format="PNG")
PLACE = Place(file="annotations", image="a.png")
REPORT = Report(findings_max=0)
MADE = settings(max_examples=15, deadline=None)


def paths(start: Task, seen: tuple[Task, ...] = ()) -> Iterator[tuple[Edge, ...]]:
    """Every way from a task on which none comes twice, the shorter part of it first; without annotations it ends."""
    yield ()
    for edge in EDGES:
        if edge.start is start and edge.end not in seen and not (seen and start in IMAGES_ALONE):
            for rest in paths(edge.end, (*seen, start)):
                yield (edge, *rest)


def recipe(start: Task, path: tuple[Edge, ...], vocabulary: Any) -> Recipe:
    end = path[-1].end if path else start
    return Recipe(
        reader=FORMATS[start],
        source_vocabulary=vocabulary,
        source=start,
        target=end,
        steps=tuple((edge.start, edge.end, None) for edge in path),
        writer=FORMATS[end],
    )


def edge_of(start: Task, end: Task) -> tuple[Edge, ...]:
    return tuple(edge for edge in EDGES if (edge.start, edge.end) == (start, end))


TO_INSTANCES = edge_of(Task.PANOPTIC_SEGMENTATION, Task.INSTANCE_SEGMENTATION)
TO_SEMANTIC = edge_of(Task.PANOPTIC_SEGMENTATION, Task.SEMANTIC_SEGMENTATION)
TO_BOXES = edge_of(Task.INSTANCE_SEGMENTATION, Task.OBJECT_DETECTION)


def as_read(written: Any) -> Any:
    """What is written as a reader gets it."""
    if isinstance(written, MapFile):
        return replace(written, about=as_read(written.about))
    return read_document(json.dumps(written).encode(), "a.json").value


def converted(made: Recipe, written: list[Any]) -> list[Any]:
    """What becomes of annotations as they are written; there may be no error."""
    values = [as_read(each) for each in written]
    chunk = [RawRecord(image=IMAGE, place=PLACE, annotated=each is not None, value=each) for each in values]
    result = convert_chunk(made, chunk)
    assert not result.report.errors, result.report.findings
    return [each for _, _, each in result.written]


@pytest.mark.parametrize("start", STARTS)
@given(data=st.data())
@MADE
def test_null_and_nothing_survive_every_path_which_is_as_one_step_after_the_other(start: Task, data: Any) -> None:
    made = STARTS[start]
    annotations = [None, made.nothing, data.draw(made.annotations)]
    written = [
        None if each is None else FORMATS[start].write(each, IMAGE.size, made.vocabulary) for each in annotations
    ]
    done: dict[tuple[Edge, ...], list[Any]] = {}
    for path in paths(start):
        whole = recipe(start, path, made.vocabulary)
        end, vocabulary = whole.target, whole.target_vocabulary()
        found = done[path] = converted(whole, written)
        assert found[0] is None
        if path:
            before = recipe(start, path[:-1], made.vocabulary).target_vocabulary()
            assert converted(recipe(path[-1].start, path[-1:], before), done[path[:-1]]) == found
        if path and end in IMAGES_ALONE:
            assert found == [None, None, None]
            continue
        assert (found[1] is None) == (made.nothing is None)
        assert converted(recipe(end, (), vocabulary), found) == found  # what is written reads as the same
        if found[1] is not None:
            chunk = [RawRecord(image=IMAGE, place=PLACE, annotated=True, value=as_read(found[1]))]
            counts = convert_chunk(recipe(end, (), vocabulary), chunk).counts_in
            assert (counts.negative, counts.annotations) == (1, 0)


MERGES = {
    (Task.PANOPTIC_SEGMENTATION, Task.SEMANTIC_SEGMENTATION),
    (Task.OBJECT_DETECTION, Task.MULTILABEL_CLASSIFICATION),
}
"""Edges that make one of several."""


@pytest.mark.parametrize(
    "edge", [edge for edge in EDGES if edge.end not in IMAGES_ALONE and (edge.start, edge.end) not in MERGES]
)
@given(data=st.data())
@MADE
def test_what_comes_in_goes_out_or_is_counted_as_dropped(edge: Edge, data: Any) -> None:
    made = STARTS[edge.start]
    written = [
        FORMATS[edge.start].write(each, IMAGE.size, made.vocabulary)
        for each in (data.draw(made.annotations), made.nothing, data.draw(made.annotations))
        if each is not None
    ]
    chunk = [RawRecord(image=IMAGE, place=PLACE, annotated=True, value=as_read(each)) for each in written]
    result = convert_chunk(recipe(edge.start, (edge,), made.vocabulary), chunk)
    assert result.counts_in.annotations == result.counts_out.annotations + result.dropped_by_steps
    assert sum(each.annotations for each in result.report.dropped()) == result.dropped_by_steps


def mirrored(annotation: Any) -> Any:
    """The annotation of the image in a mirror."""
    if isinstance(annotation, tuple):
        return tuple(map(mirrored, annotation))
    if isinstance(annotation, Box):
        return structs.replace(annotation, bbox=mirrored_bbox(annotation.bbox))
    if isinstance(annotation, Quad):
        return structs.replace(annotation, quad=tuple((WIDTH - x, y) for x, y in annotation.quad))
    if isinstance(annotation, Pose):
        names = {"left": "right", "right": "left"}
        points = {
            names.get(name, name): None if point is None else (WIDTH - point[0], point[1])
            for name, point in annotation.points.items()
        }
        bbox = None if annotation.bbox is None else mirrored_bbox(annotation.bbox)
        return replace(annotation, points=points, bbox=bbox)
    if isinstance(annotation, InstanceMap):
        sizes = {"height": annotation.height, "width": annotation.width}
        instances = tuple(
            replace(each, mask=runs_of_mask(mask_of_runs(each.mask, **sizes)[:, ::-1])) for each in annotation.instances
        )
        return replace(annotation, instances=instances)
    for kind, field in ((PanopticMap, "labels"), (SemanticMap, "classes"), (DepthMap, "levels")):
        if isinstance(annotation, kind):
            return replace(annotation, **{field: getattr(annotation, field)[:, ::-1]})
    return annotation


def mirrored_bbox(bbox: Any) -> Any:
    xmin, ymin, xmax, ymax = bbox
    return WIDTH - xmax, ymin, WIDTH - xmin, ymax


def comparable(annotation: Any) -> Any:
    """Maps as lists, and quads as what they are in any order around them."""
    if isinstance(annotation, tuple):
        return tuple(map(comparable, annotation))
    if isinstance(annotation, Quad):
        turns = [annotation.quad[turn:] + annotation.quad[:turn] for turn in range(4)]
        return structs.replace(annotation, quad=min([*turns, *(each[::-1] for each in turns)]))
    if isinstance(annotation, SemanticMap):
        return annotation.classes.tolist()
    if isinstance(annotation, PanopticMap):
        return annotation.labels.tolist(), annotation.segments
    if isinstance(annotation, DepthMap):
        return annotation.levels.tolist()
    return annotation


@pytest.mark.parametrize("start", STARTS)
@given(data=st.data())
@MADE
def test_every_conversion_commutes_with_a_mirror(start: Task, data: Any) -> None:
    made = STARTS[start]
    annotation = data.draw(made.annotations)
    for path in paths(start):
        direct, mirror = annotation, mirrored(annotation)
        for step in recipe(start, path, made.vocabulary).make_steps():
            if direct is not None:
                direct = step.convert(direct, IMAGE.size, PLACE, REPORT)
            if mirror is not None:
                mirror = step.convert(mirror, IMAGE.size, PLACE, REPORT)
        assert comparable(mirror) == comparable(mirrored(direct))


@given(annotation=panoptic_maps())
@MADE
def test_the_masks_of_things_are_those_of_their_segments_to_the_pixel_and_boxes_are_their_bounds(
    annotation: Any,
) -> None:
    written = FORMATS[Task.PANOPTIC_SEGMENTATION].write(annotation, IMAGE.size, PANOPTIC_VOCABULARY)
    path = recipe(Task.PANOPTIC_SEGMENTATION, TO_INSTANCES, PANOPTIC_VOCABULARY)
    (file,) = converted(path, [written])
    instances = FORMATS[path.target].read(as_read(file), IMAGE.size, PLACE, path.target_vocabulary(), REPORT)
    height, width = annotation.labels.shape
    things = [
        (number, each)
        for number, each in enumerate(annotation.segments, start=1)
        if each.category in PANOPTIC_VOCABULARY.things
    ]
    (step,) = recipe(Task.INSTANCE_SEGMENTATION, TO_BOXES, path.target_vocabulary()).make_steps()
    boxes = step.convert(instances, IMAGE.size, PLACE, REPORT)
    assert len(boxes) == len(instances.instances) == len(things)
    for (number, segment), instance, box in zip(things, instances.instances, boxes, strict=True):
        mask = mask_of_runs(instance.mask, height=height, width=width)
        assert np.array_equal(mask, annotation.labels == number)
        ys, xs = np.nonzero(mask)
        across, down = WIDTH / width, HEIGHT / height
        assert box.bbox == (xs.min() * across, ys.min() * down, (xs.max() + 1) * across, (ys.max() + 1) * down)
        for made in (instance, box):
            assert (made.category, made.crowd, made.ignore) == (segment.category, segment.crowd, segment.ignore)


@given(annotation=panoptic_maps())
@MADE
def test_the_areas_of_the_classes_and_what_is_ignored_add_up_to_the_map(annotation: Any) -> None:
    (step,) = recipe(Task.PANOPTIC_SEGMENTATION, TO_SEMANTIC, PANOPTIC_VOCABULARY).make_steps()
    found = step.convert(annotation, IMAGE.size, PLACE, REPORT)
    if found is None:
        assert all(each.ignore for each in annotation.segments)
        return
    areas = dict.fromkeys(NAMES, 0)
    for number, each in enumerate(annotation.segments, start=1):
        if not each.ignore:
            areas[each.category] += int((annotation.labels == number).sum())
    assert found.areas[1:].tolist() == list(areas.values())
    assert found.areas.sum() == annotation.labels.size


@pytest.mark.parametrize(
    ("start", "via"),
    [
        (Task.OBJECT_DETECTION, Task.QUADRILATERAL_DETECTION),
        (Task.MULTICLASS_CLASSIFICATION, Task.METRIC_LEARNING),
        (Task.METRIC_LEARNING, Task.MULTICLASS_CLASSIFICATION),
    ],
)
@given(data=st.data())
@MADE
def test_there_and_back_again_is_the_identity(start: Task, via: Task, data: Any) -> None:
    annotation = data.draw(STARTS[start].annotations)
    there = recipe(start, edge_of(start, via), CLASSES)
    back = recipe(via, edge_of(via, start), there.target_vocabulary())
    found = annotation
    for step in (*there.make_steps(), *back.make_steps()):
        found = step.convert(found, IMAGE.size, PLACE, REPORT)
    assert (found, back.target_vocabulary()) == (annotation, CLASSES)
