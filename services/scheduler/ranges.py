"""The table of FIELDS applied to a message and all below it: defaults written, numbers held against their ranges."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.errors import Violation
from services.scheduler.fields import FIELDS, Interval

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs know two classes for it, one of them private."""
NO_NUMBERS = frozenset({FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_STRING})
"""Of FIELDS these have a default alone."""


def fill(message: Message, *, without: Set[str] = frozenset()) -> None:
    """Write the defaults of FIELDS into a message and all below it; messages outside a oneof come into being.

    `without`: messages in it that are filled already.
    """
    full = type(message)()
    full.CopyFrom(_defaults(message.DESCRIPTOR))
    full.MergeFrom(message)
    message.CopyFrom(full)
    _fill_below(message, without)


def _fill_below(message: Message, without: Set[str] = frozenset()) -> None:
    """What is in a oneof or repeated, at any depth: the defaults of the rest came with the message's own."""
    parts = _parts(message.DESCRIPTOR)
    for name in parts.branching:
        if name not in without and message.HasField(name):
            _fill_below(getattr(message, name))
    for oneof in parts.oneofs:
        name = message.WhichOneof(oneof)
        if name in parts.chosen:
            fill(getattr(message, name))
    for name in parts.repeated:
        for each in getattr(message, name):
            fill(each)


def out_of_range(message: Message, *, without: Set[str] = frozenset()) -> list[Violation]:
    """The numbers in a message, and in all below it, that are not what FIELDS says they may be; but for some of the
    messages in it.
    """
    found: list[Violation] = []
    _look(message, "", found, without)
    return found


def _look(message: Message, path: str, found: list[Violation], without: Set[str] = frozenset()) -> None:
    if message == _defaults(message.DESCRIPTOR):
        return  # as most of a specification is
    parts = _parts(message.DESCRIPTOR)
    for name, interval, has_presence in parts.numbers:
        value = getattr(message, name)
        if not interval.holds(value) and (message.HasField(name) if has_presence else value):
            found.append(Violation(field=f"{path}{name}", description=f"is {value:.15g}, but must be {interval}"))
    for name in parts.single:
        if name not in without and message.HasField(name):
            _look(getattr(message, name), f"{path}{name}.", found)
    for oneof in parts.oneofs:
        name = message.WhichOneof(oneof)
        if name in parts.chosen:
            _look(getattr(message, name), f"{path}{name}.", found)
    for name in parts.repeated:
        for index, each in enumerate(getattr(message, name)):
            _look(each, f"{path}{name}[{index}].", found)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What of a kind of message is of interest here; messages below are named where something below them is."""

    numbers: list[tuple[str, Interval, bool]]
    """Those with a range, and whether they can be unset."""
    single: list[str]
    """Messages in no oneof."""
    branching: list[str]
    """Those of them that have a oneof or repeated messages, at any depth."""
    oneofs: list[str]
    chosen: frozenset[str]
    """Messages in a oneof."""
    repeated: list[str]


@cache
def _parts(descriptor: Descriptor) -> _Parts:
    fields: list[Field] = sorted(descriptor.fields, key=lambda field: field.number)
    below = {field.name: field for field in fields if _holds_messages(field)}
    single = [name for name, field in below.items() if not field.is_repeated and field.containing_oneof is None]
    chosen = {name: field for name, field in below.items() if field.containing_oneof is not None}
    return _Parts(
        numbers=[
            (field.name, interval, field.has_presence)
            for field in fields
            if field.type not in NO_NUMBERS and (interval := FIELDS.get(_key(field))) is not None
        ],
        single=single,
        branching=[name for name in single if _branches(below[name].message_type)],
        oneofs=sorted({field.containing_oneof.name for field in chosen.values()}),
        chosen=frozenset(chosen),
        repeated=[name for name, field in below.items() if field.is_repeated],
    )


def _branches(descriptor: Descriptor) -> bool:
    parts = _parts(descriptor)
    return bool(parts.oneofs or parts.repeated or parts.branching)


@cache
def _holds_messages(field: Field) -> bool:
    """Whether messages that hold something are in it; the entries of a map are none."""
    inner = field.message_type
    return inner is not None and bool(inner.fields) and not inner.GetOptions().map_entry


@cache
def _defaults(descriptor: Descriptor) -> Message:
    """A message of this kind with nothing but defaults."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        interval = FIELDS.get(_key(field))
        if interval is not None and interval.default is not None:
            setattr(message, field.name, interval.default)
        elif field.message_type is not None and not field.is_repeated and field.containing_oneof is None:
            child = getattr(message, field.name)
            child.CopyFrom(_defaults(child.DESCRIPTOR))
            child.SetInParent()
    return message


def _key(field: Field) -> str:
    return f"{field.containing_type.name}.{field.name}"
