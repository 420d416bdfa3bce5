"""Whatever stands in an annotation, a format reads it or reports it, and what it lets through is sound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.conversion.convert import EDGES
from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.index import ImageSize
from services.conversion.task import Task

PLACE = Place(file="labels.json", line=1, image="a.png")
SIZE = ImageSize(width=100, height=80)
METADATA = {
    Task.OBJECT_DETECTION: {"categories": ["cat", "007"]},
    Task.QUADRILATERAL_DETECTION: {"categories": ["cat", "007"]},
    Task.KEYPOINT_DETECTION: {"keypoints": ["nose", "chin"], "flip_pairs": [["nose", "chin"]]},
    Task.REGRESSION: {"range": [-5, 105]},
    Task.SCENE_TEXT_RECOGNITION: {"tokens": "cat07"},
}
WORDS = st.sampled_from(
    ["", "cat", "007", "nan", ".inf", "-Infinity", "1_0", "1e400", "-0.0", "٣", " 5", "true", "0x1F", "1e9", "[]"]
)
NUMBERS = st.integers(-20, 120) | st.floats(-20, 120) | st.floats(allow_nan=False, allow_infinity=False) | WORDS
KEYS = st.sampled_from(["category", "bbox", "quad", "crowd", "ignore", "area", "nose", "chin", "catt", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
POINTS = st.lists(NUMBERS, min_size=2, max_size=2)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "category": st.sampled_from(["cat", "007", "cow"]) | VALUES,
        "bbox": st.lists(NUMBERS, min_size=4, max_size=4) | VALUES,
        "quad": st.lists(POINTS, min_size=4, max_size=4) | VALUES,
        "nose": POINTS | VALUES,
        "chin": POINTS | VALUES,
        "area": NUMBERS,
        "crowd": st.booleans() | VALUES,
    },
)


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, float):
        yield value


def parsed(value: Any) -> Any:
    return read_document(json.dumps(value).encode(), "labels.json").value


@pytest.mark.parametrize("task", METADATA)
@given(value=VALUES | st.lists(OBJECTS, max_size=4))
@settings(max_examples=100, deadline=None)
def test_nothing_but_findings_comes_of_what_is_strange(task: Task, value: Any) -> None:
    task_format = FORMATS[task]
    report = Report(findings_max=1_000, lenient=True)
    vocabulary = task_format.read_vocabulary(parsed(METADATA[task]), PLACE, report)
    assert not report.findings
    if (read := parsed(value)) is None:
        return
    annotation = task_format.read(read, SIZE, PLACE, vocabulary, report)
    if annotation is None:
        assert report.errors
        return
    written = task_format.write(annotation, SIZE, vocabulary)
    assert all(math.isfinite(number) for number in numbers_in(written))
    again = Report(findings_max=1_000)
    assert task_format.read(parsed(written), SIZE, PLACE, vocabulary, again) == annotation
    assert not again.errors
    for edge in EDGES:
        if edge.start is task:
            step = edge.step(vocabulary, None)
            converted = step.convert(annotation, SIZE, PLACE, again)
            if converted is not None and edge.end in METADATA:
                target = FORMATS[edge.end]
                result = parsed(target.write(converted, SIZE, step.vocabulary))
                assert target.read(result, SIZE, PLACE, step.vocabulary, again) == converted
                assert not again.errors
