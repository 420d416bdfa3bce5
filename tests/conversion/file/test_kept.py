"""Values that stay text until they are wanted are the values that a reading of the whole file gives, lines included."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping as AnyMapping
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from services.conversion.file.document import DocumentError, Entry, Kept, List, Mapping, Value, read_document

SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 999) | st.sampled_from(["", "a", "ä", "😀 x", "no", "- a: b", "#"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["1.png", "2.png", "ü.png", "a b.png", ""]), VALUES)


def with_lines(value: Value) -> Any:
    """The value with the lines of all that is in it."""
    if isinstance(value, List):
        return [(line, with_lines(each)) for line, each in zip(value.lines, value, strict=True)]
    if isinstance(value, Mapping):
        return {key: (value.lines[key], with_lines(each), value.repeated) for key, each in value.items()}
    return value


def check(text: str, name: str) -> None:
    whole = read_document(text.encode(), name)
    kept = read_document(text.encode(), name, keep=True)
    assert (kept.line, kept.repeated) == (whole.line, whole.repeated)
    if not isinstance(whole.value, Mapping):
        assert kept.value == whole.value
        return
    assert isinstance(kept.value, Mapping)
    assert kept.value.lines == whole.value.lines
    entries: AnyMapping[str, Entry] = kept.value
    for key, expected in whole.value.items():
        found = entries[key]
        if isinstance(expected, (List, Mapping)) and expected:
            assert isinstance(found, (Kept, List))
        value = found.value() if isinstance(found, Kept) else found
        assert with_lines(value) == with_lines(expected)


@given(DOCUMENTS, st.sampled_from([None, 0, 2]), st.booleans())
def test_json_values_that_are_kept_are_those_of_the_whole(document: Any, indent: int | None, ascii_only: bool) -> None:
    check(json.dumps(document, indent=indent, ensure_ascii=ascii_only), "a.json")
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    check(f"{{\n{lines}\n}}\n", "a.json")


@given(DOCUMENTS, st.sampled_from([None, True, False]), st.sampled_from(["\n", "\r\n"]), st.sampled_from([10, 80]))
@example({"1.png": [[{"a": ["- a: b", None]}]]}, False, "\r\n", 10)
def test_yaml_values_that_are_kept_are_those_of_the_whole(
    document: Any, flow: bool | None, line_break: str, width: int
) -> None:
    text = yaml.safe_dump(document, default_flow_style=flow, allow_unicode=True, line_break=line_break, width=width)
    check(text, "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a:\n- x: 1\n  y: [1,\n 2]\n- x: 2\nb: []\n",
        "a:   # why\n    - - 1\n      - 2\n    # more\n    - x\nb:\n  - y\n...\n",
        "a: {x: 1, y: {z: [1, 2]},\n  w: 3}\nb: &here [1]\n",
        "--- {a: [1], b: {c: d}}\n",
        "a:\n- |\n  two\n  lines\n- >-\n  folded\n  text\nb: 'x'\n",
        "a:\n- x: 1\n  x: 2\nb: {y: 1, y: 2}\na: [3]\n",
        "? a\n: - 1\n",
        "a:\n-\n-\n- ~\nb: [ ]\n",
        "\ufeff\ufeffa: [1, 2]\nb:\n- c\n",
    ],
)
def test_yaml_that_people_write_is_kept_as_it_is_read(text: str) -> None:
    check(text, "a.yaml")


@pytest.mark.parametrize(
    ("text", "name"),
    [("a: [1]\nb: [c", "a.yaml"), ("a: [1]\nb: *c\n", "a.yaml"), ('{"a": [1],\n"b": [1,]}', "a.json")],
)
def test_what_is_wrong_is_found_although_nothing_was_asked_for(text: str, name: str) -> None:
    with pytest.raises(DocumentError) as whole:
        read_document(text.encode(), name)
    with pytest.raises(DocumentError) as kept:
        read_document(text.encode(), name, keep=True)
    assert (kept.value.line, str(kept.value)) == (whole.value.line, str(whole.value))


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_what_is_kept_takes_little_more_than_its_file(name: str) -> None:
    boxes = [{"category": "a category", "bbox": [1.25, 2.5, 30.75, 40.5]}] * 5
    lines = [f'"{number:08}.jpg": {json.dumps(boxes)}' for number in range(400)]
    text = "{" + ",\n".join(lines) + "}" if name == "a.json" else "\n".join(lines)
    content = text.encode()
    read_document(content, name, keep=True)
    held = []
    for keep in (False, True):
        tracemalloc.start()
        document = read_document(content, name, keep=keep)
        held.append(tracemalloc.get_traced_memory()[0] / len(content))
        tracemalloc.stop()
        del document
    whole, kept = held
    assert whole > 8
    assert kept < 2
