"""What the metadata of tasks with maps may declare: categories, colours, things, and the range of a depth map."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.conversion.dataset.metadata import read_metadata, read_vocabulary
from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import CATEGORIES_MAX, Colors
from services.conversion.formats.panoptic_segmentation import PanopticColors
from services.conversion.task import Task

SEMANTIC = "task: semantic segmentation\ncategories: [cat, '007', no]\n"
PANOPTIC = "task: panoptic segmentation\ncategories: [cat, '007', no]\ncolors: {cat: '#010203'}\n"
NAMES = ("cat", "007", "no")
COLORS = {"cat": (255, 0, 0), "007": (0, 255, 1), "no": (0, 0, 10)}

SOUND: dict[str, tuple[str, Any]] = {
    "a mapping of lists": (
        SEMANTIC + "colors:\n  cat: [255, 0, 0]\n  007: [0, 255, 1]\n  no: [0, 0, 010]\n",
        Colors(names=NAMES, colors=COLORS),
    ),
    "a mapping of texts": (
        SEMANTIC + "colors: {no: '#00000a', cat: '#FF0000', 007: \"#00ff01\"}\n",
        Colors(names=NAMES, colors=COLORS),
    ),
    "a list": (
        SEMANTIC + "colors: [[255, 0, 0], '#00ff01', [0, 0, 10]]\n",
        Colors(names=NAMES, colors=COLORS),
    ),
    "a category without a colour": (
        SEMANTIC + "colors: {cat: '#ff0000'}\n",
        Colors(names=NAMES, colors={"cat": (255, 0, 0)}),
    ),
    "no colour at all": (SEMANTIC + "colors: {}\n", Colors(names=NAMES, colors={})),
    "the colours of instances": (
        SEMANTIC.replace("semantic", "instance") + "colors: {cat: '#ff0000'}\n",
        Colors(names=NAMES, colors={"cat": (255, 0, 0)}),
    ),
    "unsaid things": (PANOPTIC, PanopticColors(names=NAMES, colors={"cat": (1, 2, 3)})),
    "things that are null": (PANOPTIC + "things:\n", PanopticColors(names=NAMES, colors={"cat": (1, 2, 3)})),
    "no things": (
        PANOPTIC + "things: []\n",
        PanopticColors(names=NAMES, colors={"cat": (1, 2, 3)}, things=frozenset()),
    ),
    "things": (
        PANOPTIC + "things: [no, '007']\n",
        PanopticColors(names=NAMES, colors={"cat": (1, 2, 3)}, things=frozenset({"no", "007"})),
    ),
}


def read(metadata: str) -> tuple[Any, Task, Report]:
    report = Report(findings_max=100)
    declared = read_metadata((metadata + "annotations: maps/\n").encode(), "metadata.yaml", report)
    (chosen,) = declared.sets
    return read_vocabulary(chosen, report), chosen.task, report


@pytest.mark.parametrize("case", SOUND)
def test_a_vocabulary_that_is_sound_is_read_and_written_so_that_it_reads_the_same(case: str) -> None:
    metadata, expected = SOUND[case]
    vocabulary, task, report = read(metadata)
    assert (vocabulary, report.findings) == (expected, [])
    written = json.dumps(FORMATS[task].write_vocabulary(vocabulary)).encode()
    again: Any = read_document(written, "metadata.json").value
    assert FORMATS[task].read_vocabulary(again, Place(file="metadata.json"), report) == vocabulary
    assert FORMATS[task].names(vocabulary) == NAMES
    assert not report.findings


# Each case: metadata, and what is found: (rule, line, value).
BAD: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
    "no colours": (SEMANTIC, [("missing_key", 1, "")]),
    "null colours": (SEMANTIC + "colors:\n", [("missing_key", 3, "")]),
    "colours that are a word": (SEMANTIC + "colors: red\n", [("bad_value", 3, "red")]),
    "too few colours": (SEMANTIC + "colors: ['#ff0000']\n", [("wrong_color_count", 3, "1")]),
    "a colour of an unknown category": (
        SEMANTIC + "colors:\n  cat: '#ff0000'\n  cow: '#ff0001'\n",
        [("undeclared_category", 5, "cow")],
    ),
    "the same colour twice": (
        SEMANTIC + "colors:\n  cat: [1, 2, 3]\n  no: '#010203'\n",
        [("repeated_color", 5, "#010203")],
    ),
    "black": (SEMANTIC + "colors: {cat: [0, 0, 0]}\n", [("black_color", 3, "#000000")]),
    "a colour that a comment hides": (SEMANTIC + "colors:\n  cat: #ff0000\n", [("bad_color", 4, "null")]),
    "a colour by name": (SEMANTIC + "colors: {cat: red}\n", [("bad_color", 3, "red")]),
    "a colour of two": (SEMANTIC + "colors: {cat: [1, 2]}\n", [("bad_color", 3, "[1, 2]")]),
    "a colour of four": (SEMANTIC + "colors: {cat: [1, 2, 3, 255]}\n", [("bad_color", 3, "[1, 2, 3, 255]")]),
    "a colour of fractions": (SEMANTIC + "colors: {cat: [0.1, 0.2, 1]}\n", [("bad_color", 3, "[0.1, 0.2, 1]")]),
    "a channel above 255": (SEMANTIC + "colors: {cat: [256, 0, 0]}\n", [("bad_color", 3, "[256, 0, 0]")]),
    "a channel below 0": (SEMANTIC + "colors: {cat: [-1, 0, 0]}\n", [("bad_color", 3, "[-1, 0, 0]")]),
    "a short colour": (SEMANTIC + "colors: {cat: '#fff'}\n", [("bad_color", 3, "#fff")]),
    "several at once": (
        SEMANTIC + "colors: {cat: red, no: '#000000', cow: '#010203'}\n",
        [("bad_color", 3, "red"), ("black_color", 3, "#000000"), ("undeclared_category", 3, "cow")],
    ),
    "a reserved name": (
        "task: instance segmentation\ncategories: [crowd, cat]\ncolors: {}\n",
        [("reserved_name", 2, "crowd")],
    ),
    "a repeated category": (
        "task: semantic segmentation\ncategories: [cat, cat]\ncolors: ['#010203', '#040506']\n",
        [("repeated_category", 2, "cat")],
    ),
    "things that are a word": (PANOPTIC + "things: cat\n", [("bad_value", 4, "cat")]),
    "an unknown thing": (PANOPTIC + "things: [no, cow]\n", [("undeclared_category", 4, "cow")]),
    "a thing twice": (PANOPTIC + "things: [no, no]\n", [("repeated_category", 4, "no")]),
    "no range of depth": ("task: depth estimation\n", [("missing_key", 1, "")]),
    "a reversed range of depth": ("task: depth estimation\nrange: [80, 1]\n", [("bad_value", 2, "[80, 1]")]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_vocabulary_that_is_wrong_is_an_error(case: str) -> None:
    metadata, expected = BAD[case]
    _, _, report = read(metadata)
    assert [(f.rule, f.place.line, f.value) for f in report.findings] == expected
    assert report.refuses()


def test_the_same_colour_twice_is_told_with_both_names() -> None:
    _, _, report = read(SEMANTIC + "colors: {cat: '#010203', no: '#010203'}\n")
    assert "'no' and 'cat'" in report.findings[0].message


def test_things_belong_to_panoptic_maps_alone() -> None:
    _, _, report = read(SEMANTIC + "colors: {cat: '#010203'}\nthings: [cat]\n")
    assert [(f.rule, f.value) for f in report.findings] == [("unknown_key", "things")]


def test_more_categories_than_a_map_can_tell_apart_are_refused() -> None:
    names = [f"c{number}" for number in range(CATEGORIES_MAX + 1)]
    value: Any = read_document(json.dumps({"categories": names, "colors": {}}).encode(), "metadata.json").value
    report = Report(findings_max=10)
    FORMATS[Task.SEMANTIC_SEGMENTATION].read_vocabulary(value, Place(file="metadata.json"), report)
    assert [f.rule for f in report.findings] == ["too_many_names"]
    assert report.refuses()


NAME = st.sampled_from(["cat", "007", "no", "crowd", "", " ", "null"])
COLOR = (
    st.lists(st.integers(-1, 256) | NAME, max_size=4)
    | st.sampled_from(["#000000", "#0000ff", "#FFFFFF", "#00f", "blue", None, 7])
    | st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)).map(list)
)
METADATA = st.fixed_dictionaries(
    {"categories": st.lists(NAME, max_size=4) | NAME, "colors": st.dictionaries(NAME, COLOR) | st.lists(COLOR) | NAME},
    optional={"things": st.none() | NAME | st.lists(NAME)},
)


@given(metadata=METADATA)
@settings(max_examples=150, deadline=None)
def test_whatever_metadata_declare_is_a_vocabulary_or_is_found(metadata: Any) -> None:
    task_format, place = FORMATS[Task.PANOPTIC_SEGMENTATION], Place(file="metadata.json")
    report = Report(findings_max=100, lenient=True)
    value: Any = read_document(json.dumps(metadata).encode(), place.file).value
    vocabulary = task_format.read_vocabulary(value, place, report)
    assert set(vocabulary.colors) <= set(vocabulary.names)
    assert len(set(vocabulary.colors.values()) - {(0, 0, 0)}) == len(vocabulary.colors)
    if not report.refuses():
        again = Report(findings_max=100)
        written: Any = read_document(json.dumps(task_format.write_vocabulary(vocabulary)).encode(), place.file).value
        assert task_format.read_vocabulary(written, place, again) == vocabulary
        assert not again.findings
