"""What each edge from a map does, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.conversion.convert import EDGES
from services.conversion.convert.edge import SemanticToMultilabel
from services.conversion.finding import Place, Report, Severity
from services.conversion.formats.colors import Colors
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageSize
from services.conversion.raster.runs import mask_of_runs, runs_of_mask
from services.conversion.task import Task

PANOPTIC, INSTANCE, SEMANTIC = Task.PANOPTIC_SEGMENTATION, Task.INSTANCE_SEGMENTATION, Task.SEMANTIC_SEGMENTATION
DETECTION, MULTILABEL = Task.OBJECT_DETECTION, Task.MULTILABEL_CLASSIFICATION
PLACE = Place(file="maps/a.tiff", image="a.jpg")
NAMES = ("cat", "007", "sky", "wall")
COLORS = {"cat": (255, 0, 0), "007": (0, 255, 0), "sky": (0, 0, 255)}
ALL = PanopticColors(names=NAMES, colors=COLORS)
THINGS = PanopticColors(names=NAMES, colors=COLORS, things=frozenset({"cat", "007"}))
SIZE = ImageSize(width=5, height=3)


def converted(
    start: Task, end: Task, vocabulary: Any, annotation: Any, size: ImageSize = SIZE, options: Any = None
) -> Any:
    """What the edge makes of an annotation, and the report."""
    (edge,) = (edge for edge in EDGES if (edge.start, edge.end) == (start, end))
    report = Report(findings_max=100, lenient=True)
    return edge.step(vocabulary, options).convert(annotation, size, PLACE, report), report


def panoptic(*segments: tuple[str, int] | Segment, rows: list[str]) -> PanopticMap:
    """Digits are segments, from 1."""
    made = [each if isinstance(each, Segment) else Segment(category=each[0], id=each[1]) for each in segments]
    labels = np.array([[0 if each == "." else int(each) for each in row] for row in rows], np.uint16)
    return PanopticMap(labels=labels, segments=tuple(made))


def instance(category: str, *rows: str, **flags: bool) -> Instance:
    mask = np.array([[each != "." for each in row] for row in rows])
    return Instance(category=category, mask=runs_of_mask(mask), **flags)


def instances(*found: Instance, width: int = 5, height: int = 3) -> InstanceMap:
    return InstanceMap(width=width, height=height, instances=found)


def drawn(found: InstanceMap) -> list[tuple[str, list[str]]]:
    sizes = {"height": found.height, "width": found.width}
    return [
        (each.category, ["".join(".#"[int(pixel)] for pixel in row) for row in mask_of_runs(each.mask, **sizes)])
        for each in found.instances
    ]


TWO_CATS = panoptic(("cat", 0), ("cat", 9), ("007", 9), ("sky", 0), rows=["44.44", "11.21", "3...2"])


def test_each_pixel_gets_the_class_of_its_segment_things_and_stuff_alike_and_void_is_ignored() -> None:
    for vocabulary in (ALL, THINGS):
        found, report = converted(PANOPTIC, SEMANTIC, vocabulary, TWO_CATS)
        assert found.classes.tolist() == [[3, 3, 0, 3, 3], [1, 1, 0, 1, 1], [2, 0, 0, 0, 1]]
        assert (found.classes.dtype, found.names, report.findings) == (np.uint16, NAMES, [])
        assert found.areas.tolist() == [5, 5, 1, 4, 0]
        assert found.areas.sum() == TWO_CATS.labels.size


def test_a_crowd_has_a_class_and_what_is_to_be_ignored_is_ignored() -> None:
    crowd = Segment(category="cat", id=1, crowd=True)
    ignored = Segment(category="sky", id=2, ignore=True)
    found, _ = converted(PANOPTIC, SEMANTIC, ALL, panoptic(crowd, ignored, rows=["112", "2.1"]))
    assert found.classes.tolist() == [[1, 1, 0], [0, 0, 1]]
    nothing, report = converted(PANOPTIC, SEMANTIC, ALL, panoptic(ignored, rows=["11", ".."]))
    assert (nothing, report.findings) == (None, [])


def test_each_pair_of_the_things_is_an_instance_with_all_its_parts_and_the_stuff_goes() -> None:
    found, report = converted(PANOPTIC, INSTANCE, THINGS, TWO_CATS)
    assert drawn(found) == [
        ("cat", [".....", "##..#", "....."]),
        ("cat", [".....", "...#.", "....#"]),
        ("007", [".....", ".....", "#...."]),
    ]
    assert (found.width, found.height) == (5, 3)
    assert [f.rule for f in report.findings] == ["shared_id"]


def test_without_things_every_pair_is_an_instance_and_the_step_says_so_once() -> None:
    found, report = converted(PANOPTIC, INSTANCE, ALL, TWO_CATS)
    assert [category for category, _ in drawn(found)] == ["cat", "cat", "007", "sky"]
    assert report.findings == []
    (edge,) = (edge for edge in EDGES if (edge.start, edge.end) == (PANOPTIC, INSTANCE))
    assert [remark.rule for remark in edge.step(ALL, None).remarks] == ["no_things"]
    assert edge.step(THINGS, None).remarks == ()


def test_an_id_under_two_things_is_a_warning() -> None:
    _, report = converted(PANOPTIC, INSTANCE, THINGS, TWO_CATS)
    (finding,) = report.findings
    assert (finding.severity, finding.rule, finding.place, finding.value) == (Severity.WARNING, "shared_id", PLACE, "9")
    stuff = panoptic(("cat", 1), ("sky", 1), rows=["12"])
    assert converted(PANOPTIC, INSTANCE, THINGS, stuff)[1].findings == []


def test_an_image_of_stuff_alone_has_no_instance_and_is_not_unlabelled() -> None:
    found, report = converted(PANOPTIC, INSTANCE, THINGS, panoptic(("sky", 0), rows=["11", ".1"]))
    assert (found, report.findings) == (InstanceMap(width=2, height=2, instances=()), [])
    no_things = PanopticColors(names=NAMES, colors=COLORS, things=frozenset())
    assert converted(PANOPTIC, INSTANCE, no_things, TWO_CATS)[0].instances == ()


def test_crowds_and_what_is_to_be_ignored_stay_so() -> None:
    crowd = Segment(category="cat", id=1, crowd=True)
    ignored = Segment(category="cat", id=2, ignore=True)
    found, _ = converted(PANOPTIC, INSTANCE, THINGS, panoptic(crowd, ignored, ("007", 3), rows=["123"]))
    assert [(each.crowd, each.ignore) for each in found.instances] == [(True, False), (False, True), (False, False)]
    boxes, _ = converted(INSTANCE, DETECTION, THINGS, found)
    assert [(each.crowd, each.ignore) for each in boxes] == [(True, False), (False, True), (False, False)]


def test_a_box_is_tight_and_half_open_around_all_parts_of_a_mask() -> None:
    masks = [
        (instance("cat", "#....", ".....", "....#"), (0, 0, 5, 3)),
        (instance("cat", ".....", ".##..", "....."), (1, 1, 3, 2)),
        (instance("007", ".....", ".....", "...#."), (3, 2, 4, 3)),
        (instance("cat", "##...", "#...#", "....."), (0, 0, 5, 2)),
        (instance("sky", "#####", "#####", "#####"), (0, 0, 5, 3)),
    ]
    found, report = converted(INSTANCE, DETECTION, ALL, instances(*(mask for mask, _ in masks)))
    assert found == tuple(Box(category=mask.category, bbox=bbox) for mask, bbox in masks)
    assert report.findings == []


def test_the_boxes_of_a_smaller_map_are_in_pixels_of_the_image() -> None:
    mask = instance("cat", ".....", ".##..", ".....")
    found, _ = converted(INSTANCE, DETECTION, ALL, instances(mask), ImageSize(width=20, height=6))
    assert [each.bbox for each in found] == [(4, 2, 12, 4)]
    found, _ = converted(INSTANCE, DETECTION, ALL, instances(mask), ImageSize(width=11, height=7))
    assert [each.bbox for each in found] == [(11 / 5, 7 / 3, 33 / 5, 14 / 3)]


def test_no_instance_leaves_no_box() -> None:
    assert converted(INSTANCE, DETECTION, ALL, instances())[0] == ()


def semantic(*rows: str) -> SemanticMap:
    classes = np.array([[0 if each == "." else int(each) for each in row] for row in rows], np.uint16)
    return SemanticMap(classes=classes, names=NAMES)


@pytest.mark.parametrize(
    ("min_pixels", "labels", "dropped"),
    [(None, ("cat", "sky", "wall"), 0), (1, ("cat", "sky", "wall"), 0), (2, ("cat", "wall"), 1), (5, (), 3)],
)
def test_the_labels_are_the_classes_with_enough_pixels(min_pixels: int | None, labels: Any, dropped: int) -> None:
    options = None if min_pixels is None else SemanticToMultilabel(min_pixels=min_pixels)
    found, report = converted(SEMANTIC, MULTILABEL, ALL, semantic("44.3", "11.."), options=options)
    assert (found, report.findings) == (labels, [])
    assert report.annotations_dropped == dropped


def test_each_step_hands_on_the_names_and_the_colours() -> None:
    colors = Colors(names=NAMES, colors=COLORS)
    expected = (
        (PANOPTIC, SEMANTIC, THINGS, colors),
        (PANOPTIC, INSTANCE, ALL, colors),
        (INSTANCE, DETECTION, colors, Names(names=NAMES)),
        (SEMANTIC, MULTILABEL, colors, Names(names=NAMES)),
    )
    for start, end, before, after in expected:
        (edge,) = (edge for edge in EDGES if (edge.start, edge.end) == (start, end))
        vocabulary = edge.step(before, None).vocabulary
        assert (type(vocabulary), vocabulary) == (type(after), after)


def test_categories_of_stuff_do_not_stay_in_the_vocabulary_of_instances() -> None:
    (edge,) = (edge for edge in EDGES if (edge.start, edge.end) == (PANOPTIC, INSTANCE))
    vocabulary = edge.step(THINGS, None).vocabulary
    assert vocabulary == Colors(names=("cat", "007"), colors={"cat": (255, 0, 0), "007": (0, 255, 0)})
