"""YAML and JSON files as values with line numbers: null, text, lists, mappings, and nothing else.

Every scalar that is not null stays the text that was written: names are strings, also `007`, `no` and `1.10`, and a
number is read by who wants one. Repeated keys are kept as problems and not resolved. No tag is ever constructed, no
alias ever expanded: a file cannot make this reader run code or use more memory than a few times its own size.

`value` says what there is; `yaml_events`, `json_lines` and `json_steps` read it.
"""

from __future__ import annotations

from services.conversion.file.collector import collector_rests
from services.conversion.file.json_lines import read_json_lines
from services.conversion.file.json_steps import read_json_steps
from services.conversion.file.value import (
    NESTING_MAX,
    Document,
    DocumentError,
    Entry,
    Kept,
    List,
    Mapping,
    OtherWayError,
    RepeatedKey,
    Value,
    kind,
    shown,
)
from services.conversion.file.yaml_events import read_yaml

SUFFIXES = (".yaml", ".yml", ".json")

__all__ = [
    "NESTING_MAX",
    "SUFFIXES",
    "Document",
    "DocumentError",
    "Entry",
    "Kept",
    "List",
    "Mapping",
    "RepeatedKey",
    "Value",
    "kind",
    "read_document",
    "shown",
]


def read_document(content: bytes, name: str, *, keep: bool = False) -> Document:
    """The document in a `.yaml`, `.yml` or `.json` file. Raises DocumentError.

    `keep`: it is looked through all the same, but lists and mappings under the keys of its mapping stay text (Kept).
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, "is not UTF-8: save it as UTF-8") from error
    with collector_rests():
        return _read_json(text, keep) if name.lower().endswith(".json") else read_yaml(text, keep=keep)


def _read_json(text: str, keep: bool) -> Document:
    try:
        return read_json_lines(text, keep=keep)
    except (OtherWayError, StopIteration, ValueError, RecursionError):
        return read_json_steps(text, keep=keep)
