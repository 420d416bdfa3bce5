"""What may stand beside a map: which of its objects are a crowd, which are to be ignored, and what names nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report, Severity
from services.conversion.formats import FORMATS
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageSize
from services.conversion.raster.runs import runs_of_mask
from services.conversion.task import Task

INSTANCE, PANOPTIC = FORMATS[Task.INSTANCE_SEGMENTATION], FORMATS[Task.PANOPTIC_SEGMENTATION]
PLACE = Place(file="maps/a.tiff", image="a.jpg")
SIZE = ImageSize(width=5, height=1)
ERROR, WARNING = Severity.ERROR, Severity.WARNING
VOCABULARY = PanopticColors(
    names=("cat", "no", "wall"), colors={"cat": (255, 0, 0), "no": (0, 0, 9), "wall": (7, 7, 7)}
)
SEGMENTS = (("cat", 0), ("cat", 300), ("no", 0), ("no", 2), ("wall", 0))
PANOPTIC_MAP = PanopticMap(
    labels=np.array([[1, 2, 3, 4, 5]], np.uint16),
    segments=tuple(Segment(category=category, id=number) for category, number in SEGMENTS),
)
MASKS = tuple(runs_of_mask(np.arange(5)[None] == number) for number in range(3))
INSTANCES = InstanceMap(width=5, height=1, instances=tuple(Instance(category="cat", mask=mask) for mask in MASKS))


def read(task_format: Any, about: str) -> tuple[Any, Report]:
    """The map with something beside it."""
    report = Report(findings_max=1_000, lenient=True)
    annotation = INSTANCES if task_format is INSTANCE else PANOPTIC_MAP
    file = task_format.write(annotation, SIZE, VOCABULARY)
    assert file.about is None
    value = read_document(about.encode(), "a.yaml").value
    file = replace(file, about=value, about_file="maps/a.yaml")
    return task_format.read(file, SIZE, PLACE, VOCABULARY, report), report


# Each case: what stands beside the map, whether the map is kept, and what is found.
SIDECARS: dict[str, tuple[Any, str, bool, list[tuple[Severity, str, int, int, str]]]] = {
    "null": (INSTANCE, "~", True, []),
    "null lists": (INSTANCE, "crowd:\nignore: ~\n", True, []),
    "empty lists": (PANOPTIC, "{crowd: [], ignore: []}", True, []),
    "an unknown key": (INSTANCE, "crowds: [1]", True, [(WARNING, "unknown_key", 1, -1, "crowds")]),
    "the same page twice": (INSTANCE, "crowd: [1, 1]", True, [(WARNING, "repeated_item", 1, 1, "1")]),
    "a page that is not there": (INSTANCE, "crowd:\n- 1\n- 4\n", True, [(ERROR, "names_nothing", 3, -1, "4")]),
    "page 0": (INSTANCE, "ignore: [0]", True, [(ERROR, "names_nothing", 1, -1, "0")]),
    "a pair that is not there": (
        PANOPTIC,
        "crowd:\n- [cat, 0]\n- [cat, 7]\n- [cow, 1]\n",
        True,
        [(ERROR, "names_nothing", 3, -1, "[cat, 7]"), (ERROR, "names_nothing", 4, -1, "[cow, 1]")],
    ),
    "a list": (INSTANCE, "- 1", False, [(ERROR, "bad_value", 0, -1, "1 items")]),
    "a number for a list": (INSTANCE, "crowd: 1", False, [(ERROR, "bad_value", 1, -1, "1")]),
    "a word for a page": (INSTANCE, "crowd: [1, cat]", False, [(ERROR, "bad_value", 1, 1, "cat")]),
    "a page below 0": (INSTANCE, "crowd: [-1]", False, [(ERROR, "bad_value", 1, 0, "-1")]),
    "a page of many digits": (INSTANCE, f"crowd: [{'1' * 9}]", False, [(ERROR, "bad_value", 1, 0, "1" * 9)]),
    "a category for a pair": (PANOPTIC, "crowd: [cat]", False, [(ERROR, "bad_value", 1, 0, "cat")]),
    "a pair of three": (PANOPTIC, "crowd: [[cat, 0, 1]]", False, [(ERROR, "bad_value", 1, 0, "[cat, 0, 1]")]),
    "a pair in the other order": (PANOPTIC, "ignore: [[0, cat]]", False, [(ERROR, "bad_value", 1, 0, "[0, cat]")]),
    "an id that does not fit": (
        PANOPTIC,
        "ignore: [[cat, 65536]]",
        False,
        [(ERROR, "bad_value", 1, 0, "[cat, 65536]")],
    ),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_a_sidecar_that_cannot_be_understood_drops_its_map_and_what_names_nothing_is_left_out(case: str) -> None:
    task_format, about, kept, expected = SIDECARS[case]
    found, report = read(task_format, about)
    assert (found is not None) == kept
    assert [(f.severity, f.rule, f.place.line, f.index, f.value) for f in report.findings] == expected
    assert {f.place.file for f in report.findings} <= {"maps/a.yaml"}
    assert report.annotations_dropped == (0 if kept else 3 if task_format is INSTANCE else 5)


ITEMS = st.none() | st.booleans() | st.integers(-1, 70_000) | st.sampled_from(["cat", "no", "crowd", "1", "٣", ""])
VALUES = st.recursive(
    ITEMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["crowd", "ignore", "cat"]), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("task_format", [INSTANCE, PANOPTIC], ids=["instance", "panoptic"])
@given(value=VALUES)
@settings(max_examples=60, deadline=None)
def test_whatever_stands_beside_a_map_is_understood_or_found(task_format: Any, value: Any) -> None:
    found, report = read(task_format, json.dumps(value))
    assert (found is None) <= (report.errors > 0)
    if found is not None:
        again = Report(findings_max=10)
        written = task_format.write(found, SIZE, VOCABULARY)
        about = None if written.about is None else read_document(json.dumps(written.about).encode(), "a.json").value
        same = task_format.read(replace(written, about=about), SIZE, PLACE, VOCABULARY, again)
        assert flags(same) == flags(found)
        assert not again.findings


def flags(annotation: Any) -> list[tuple[bool, bool]]:
    objects = annotation.instances if isinstance(annotation, InstanceMap) else annotation.segments
    return [(each.crowd, each.ignore) for each in objects]
