"""Objects that are as they mostly are take a quick way, and read on it as on the long one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.names import Names
from services.conversion.index import ImageSize
from services.conversion.task import Task

SIZE = ImageSize(width=100, height=80)
KEYS = {Task.OBJECT_DETECTION: "bbox", Task.QUADRILATERAL_DETECTION: "quad"}
EDGES = ("-1", "0", "0.5", "1", "2.25", "40", "79.5", "80", "80.5", "100", "101")
"""Of boxes, and of the image."""
FRACTIONS = ("0", "0.5", "1")
ODD = (
    *("-0", "-0.0", "007", "+2", ".5", "5.", "1e1", "1E+1", "1e-400", "80.0", "100.004", "1e9", "1e400", "seven"),
    *("nan", "-inf", "Infinity", ".nan", "0x1F", "1_0", "٣", " 7", "7 ", "", "true", None, [], ["7"], {}),
)


@st.composite
def shapes(draw: st.DrawFn, task: Task) -> Any:
    """A shape, at most one of whose numbers is spelled in another way, and that may be of another form."""
    edges = st.sampled_from(draw(st.sampled_from([EDGES, FRACTIONS])))
    numbers: list[Any] = [draw(edges) for _ in range(4)]
    if draw(st.booleans()):
        numbers[draw(st.integers(0, 3))] = draw(st.sampled_from(ODD))
    left, top, right, bottom = numbers
    found = numbers
    if task is Task.QUADRILATERAL_DETECTION:
        found = draw(st.permutations([[left, top], [right, top], [right, bottom], [left, bottom]]))
        if draw(st.booleans()):
            found[draw(st.integers(0, 3))] = [draw(edges), draw(edges)]
    forms = (found[:3], [*found, found[0]], [found], [found[0], *numbers[1:]], [*found[:3], [*numbers[:3]]], found[0])
    return draw(st.sampled_from(forms)) if draw(st.integers(0, 9)) == 0 else found


def read(task: Task, item: dict[str, Any]) -> Any:
    """What the only object of an image gives, and everything that is said of it."""
    report = Report(findings_max=100)
    value = read_document(json.dumps([item]).encode(), "labels.json").value
    found = FORMATS[task].read(value, SIZE, Place(file="labels.json"), Names(names=("cat", "1")), report)
    return found, report.findings


@pytest.mark.parametrize("task", KEYS)
@settings(max_examples=1_000)
@given(data=st.data())
def test_an_object_reads_the_same_whether_or_not_it_is_looked_at_closely(task: Task, data: st.DataObject) -> None:
    category = data.draw(st.sampled_from(["cat"] * 6 + ["1", "dog", "", None, [], True]))
    item = {"category": category, KEYS[task]: data.draw(shapes(task))}
    assert read(task, item) == read(task, {**item, "crowd": None})
