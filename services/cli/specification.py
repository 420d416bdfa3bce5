"""A job's specification as people write it: a file of YAML or JSON, `path=value` assignments, and handy flags.

Only the form is checked here (does the field exist, is it a number); what the values mean the scheduler checks, and
says everything that is wrong at once. Defaults are the scheduler's too: what is not given stays unset.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.client.dataset import task_of
from services.client.specification import INDEX, SpecificationError, enum_value, field_of, message_from

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs know two classes for it, one of them private."""
Number = TypeVar("Number", int, float)

FILE_BYTES_MAX = 2**20
STANDARD_INPUT = Path("-")
REPEATED_MAX = 1_000
"""The highest index that an assignment may name."""
INTEGERS = {
    FieldDescriptor.TYPE_INT32: range(-(2**31), 2**31),
    FieldDescriptor.TYPE_INT64: range(-(2**63), 2**63),
    FieldDescriptor.TYPE_UINT32: range(2**32),
    FieldDescriptor.TYPE_UINT64: range(2**64),
}
FLOATS = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_specification(path: Path) -> JobSpec:
    """The specification in a file: JSON, or YAML of the same shape, with the names of job_spec.proto."""
    with contextlib.nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise SpecificationError(f"{path} has more than {FILE_BYTES_MAX} bytes, which no specification needs")
    try:
        found = yaml.safe_load(data)  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not, as 2026-13-01
        raise SpecificationError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise SpecificationError(f"{path} must hold a mapping from fields to values, but holds {_kind(found)}")
    try:
        return message_from(found, JobSpec)
    except SpecificationError as error:
        raise SpecificationError(f"{path} is no specification: {error}") from error


def assign(spec: Message, assignment: str) -> None:
    """Apply one `path=value`, such as `trainer.batch_size=64` or `model.heads[0].task=multiclass classification`.

    A field of a oneof takes the place of the others. An empty message is written `{}`, a whole one as JSON; a list has
    commas between its values.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise SpecificationError(f"{assignment!r} is no assignment: write it like trainer.batch_size=64")
    parts = re.sub(r"\[(\d+)\]", r".\1", path.strip()).split(".")
    _assign(spec, parts, text.strip(), path.strip())


def add_head(spec: JobSpec, text: str) -> None:
    """Add a head written `TASK`, `ID=TASK` or `ID=TASK@ANNOTATION_SET`."""
    head_id, equals, rest = text.rpartition("=")
    task, _, annotation_set = rest.partition("@")
    if equals and not head_id:
        raise SpecificationError(f"{text!r} is no head: write it like digits=multiclass-classification")
    spec.model.heads.add(id=head_id, task=task_of(task), annotation_set=annotation_set)


def set_resolution(spec: JobSpec, text: str) -> None:
    """Set height and width from `224` or `HEIGHTxWIDTH`."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if not match:
        raise SpecificationError(f"{text!r} is no resolution: write it like 224 or 480x640 (height x width)")
    spec.data.height = int(match[1])
    spec.data.width = int(match[2] or match[1])


def set_label(spec: JobSpec, text: str) -> None:
    """Set a label written `KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SpecificationError(f"{text!r} is no label: write it like team=vision")
    spec.labels[key] = value


def _assign(message: Message, parts: Sequence[str], text: str, path: str) -> None:
    """Follow one part of the path, then the rest in what it leads to."""
    field = field_of(message.DESCRIPTOR, parts[0], path)
    rest = parts[1:]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if len(rest) != 1:
            raise SpecificationError(f"{path} is a mapping: write it like {field.name}.KEY=VALUE")
        getattr(message, field.name)[rest[0]] = text
    elif field.is_repeated and (not rest or INDEX.fullmatch(rest[0]) is None):
        _assign_list(message, field, rest, text, path)
    elif field.is_repeated:
        _assign_element(message, field, rest, text, path)
    elif field.message_type is None and rest:
        raise SpecificationError(f"{path}: {field.name} is a value and has no field {rest[0]!r}")
    elif field.message_type is None:
        setattr(message, field.name, _value(field, text, path))
    elif rest:
        child = getattr(message, field.name)
        child.SetInParent()
        _assign(child, rest, text, path)
    else:
        message.ClearField(field.name)
        _fill_message(getattr(message, field.name), text, path)


def _assign_list(message: Message, field: Field, rest: Sequence[str], text: str, path: str) -> None:
    if rest or field.message_type is not None:
        raise SpecificationError(f"{path}: {field.name} is a list, so say which one: {field.name}[0]")
    values = [_value(field, part.strip(), path) for part in text.split(",") if part.strip()]
    message.ClearField(field.name)
    getattr(message, field.name).extend(values)


def _assign_element(message: Message, field: Field, rest: Sequence[str], text: str, path: str) -> None:
    values, index = getattr(message, field.name), int(rest[0])
    if index > min(len(values), REPEATED_MAX):
        raise SpecificationError(f"{path}: {field.name} has {len(values)} entries, so the next one is [{len(values)}]")
    if field.message_type is None:
        if rest[1:]:
            raise SpecificationError(f"{path}: the entries of {field.name} are values and have no fields")
        values[index : index + 1] = [_value(field, text, path)]
        return
    child = values.add() if index == len(values) else values[index]
    if rest[1:]:
        _assign(child, rest[1:], text, path)
    else:
        child.Clear()
        _fill_message(child, text, path)


def _fill_message(message: Message, text: str, path: str) -> None:
    message.SetInParent()
    try:
        json_format.Parse(text or "{}", message)
    except json_format.ParseError as error:
        fields = ", ".join(field.name for field in message.DESCRIPTOR.fields) or "none"
        raise SpecificationError(
            f"{path} is not one value: assign to one of its fields ({fields}), or give JSON, {{}} for all defaults"
        ) from error


def _value(field: Field, text: str, path: str) -> Any:
    try:
        if field.type in INTEGERS:
            return _checked(int(text), INTEGERS[field.type].__contains__)
        if field.type in FLOATS:
            return _checked(float(text), math.isfinite)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return TRUTHS[text.lower()]
    except (ValueError, KeyError):
        wanted = "a number, and a finite one" if field.type in FLOATS else "true or false"
        if numbers := INTEGERS.get(field.type):
            wanted = f"a whole number from {numbers.start} to {numbers.stop - 1}"
        raise SpecificationError(f"{path} is {text!r}, but must be {wanted}") from None
    if field.enum_type is not None:
        return enum_value(field.enum_type, text, path)
    return _unquoted(text, path) if text.startswith('"') and text.endswith('"') and len(text) > 1 else text


def _checked(found: Number, holds: Callable[[Number], bool]) -> Number:
    if not holds(found):
        raise ValueError
    return found


def _unquoted(text: str, path: str) -> str:
    try:
        found: str = json.loads(text)
        found.encode()  # half a surrogate is no text
    except ValueError:
        raise SpecificationError(f"{path} is {text}, but in quotes it must be one string of JSON") from None
    return found


def _kind(found: object) -> str:
    return "nothing" if found is None else f"a {type(found).__name__}"
