"""Specifications as dicts: nested mappings with the names of the .proto files become protos. Names of enums may be
short (`multiclass-classification`). What does not fit is one error that says where, and what was wanted.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

MessageType = TypeVar("MessageType", bound=Message)
INDEX = re.compile(r"[0-9]{1,9}")
"""Of an entry of a list."""


class SpecificationError(ValueError):
    """What was given is no specification; the message is one sentence for a person."""


def message_from(given: Message | Mapping[str, Any], kind: type[MessageType], path: str = "") -> MessageType:
    """A new message of this kind from one, or from a mapping. Raises SpecificationError."""
    made = kind()
    if isinstance(given, Message):
        if not isinstance(given, kind):
            raise SpecificationError(
                f"{path or kind.__name__}: a {kind.__name__} was wanted, not a {type(given).__name__}"
            )
        made.CopyFrom(given)
        return made
    try:
        json_format.ParseDict(_written_out(given, made.DESCRIPTOR, path), made)
    except json_format.ParseError as error:
        message = re.sub(r"\s*Available Fields.*", "", str(error).replace("\n", " "))
        raise SpecificationError(f"{path or kind.__name__}: {message}") from error
    return made


def field_of(descriptor: Any, name: str, path: str) -> Any:
    """The field of this name, or SpecificationError with the nearest one."""
    if name in descriptor.fields_by_name:
        return descriptor.fields_by_name[name]
    by_json_name = {field.json_name: field for field in descriptor.fields}
    if name in by_json_name:
        return by_json_name[name]
    names = list(descriptor.fields_by_name)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}" if names else "it has no fields"
    raise SpecificationError(f"{path or name}: {descriptor.name} has no field {name!r}: {hint}")


def value_at(message: Message, path: str) -> Any:
    """What the message has at a path such as `model.heads[0].task`; None where it has nothing there.

    Enums are names; messages, lists and maps are JSON. Raises SpecificationError where there is no such field.
    """
    return _at(message, path.replace("[", ".").replace("]", "").split("."), path)


def enum_value(enum: EnumDescriptor, text: str, path: str) -> int:
    """The member's number, of a name as the proto, the metadata or a person in a hurry writes it."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    names = {value.name.removeprefix(prefix): value.number for value in enum.values if value.number != 0}
    wanted = re.sub(r"[\s-]+", "_", text.strip()).upper().removeprefix(prefix)
    if wanted in names:
        return names[wanted]
    words = {name.lower().replace("_", "-") for name in names}
    close = _nearest(wanted.lower().replace("_", "-"), words)
    hint = f"did you mean {close}?" if close else f"it must be one of {', '.join(sorted(words))}"
    raise SpecificationError(f"{path} is {text!r}: {hint}")


def _nearest(wanted: str, words: set[str]) -> str:
    """The word that begins so, else the most alike one; empty where none is near."""
    begin = sorted((word for word in words if wanted and word.startswith(wanted)), key=len)
    close = begin or difflib.get_close_matches(wanted, sorted(words), n=1, cutoff=0.5)
    return close[0] if close else ""


def _written_out(given: Any, descriptor: Any, path: str) -> dict[str, Any]:
    """The mapping with enums by their full names, every field checked for its name."""
    if not isinstance(given, Mapping):
        place = path or descriptor.name
        raise SpecificationError(f"{place}: a mapping from fields to values was wanted, not {given!r}")
    written: dict[str, Any] = {}
    for name, value in given.items():
        field = field_of(descriptor, str(name), path)
        at = f"{path}.{field.name}" if path else field.name
        is_list = field.is_repeated and isinstance(value, (list, tuple))
        values = [_value(field, each, at) for each in value] if is_list else _value(field, value, at)
        written[field.name] = values
    return written


def _value(field: FieldDescriptor, value: Any, path: str) -> Any:
    nested: Any = field.message_type
    if field.enum_type is not None and isinstance(value, str):
        return enum_value(field.enum_type, value, path)
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    ours = nested is not None and nested.full_name.startswith("sihlai.") and not nested.GetOptions().map_entry
    return _written_out(value, nested, path) if ours and value is not None else value


def _at(message: Message, parts: Sequence[str], path: str) -> Any:
    name, *rest = parts
    field = field_of(message.DESCRIPTOR, name, path)
    found: Any = getattr(message, field.name)
    if field.is_repeated and rest:
        found, rest = _member(field, found, rest[0], path), rest[1:]
        if found is None:
            return None
    is_there = field.is_repeated or not field.has_presence or message.HasField(field.name)
    if rest and not isinstance(found, Message):
        raise SpecificationError(f"{path}: {name} has no fields")
    if rest:
        value = _at(found, rest, path)  # also where it is not there: a wrong name is told in any case
        return value if is_there else None
    return _plain(message, field, found) if is_there else None


def _member(field: FieldDescriptor, members: Any, key: str, path: str) -> Any:
    """One of a list or of a map; None where there is none."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return members[key] if key in members else None  # noqa: SIM401  # maps of protos make what get() misses
    if INDEX.fullmatch(key) is None:
        raise SpecificationError(f"{path}: {field.name} is a list: {field.name}[0] was wanted, not {key!r}")
    return members[int(key)] if int(key) < len(members) else None


def _plain(message: Message, field: FieldDescriptor, found: Any) -> Any:
    if isinstance(found, Message):
        written: Any = json_format.MessageToDict(found, preserving_proto_field_name=True)
        return written if isinstance(written, str) else json.dumps(written, sort_keys=True)
    if isinstance(found, int) and field.enum_type is not None:
        known = field.enum_type.values_by_number.get(found)
        return known.name if known else str(found)
    if isinstance(found, str | bytes | int | float):
        return found
    return json.dumps(
        json_format.MessageToDict(message, preserving_proto_field_name=True).get(field.name), sort_keys=True
    )
