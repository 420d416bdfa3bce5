"""The table of FIELDS applied to a message and all below it: defaults written, numbers held against their ranges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.errors import Violation
from services.scheduler.fields import FIELDS, Interval

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs know two classes for it, one of them private."""


def fill(message: Message) -> None:
    """Write the defaults of FIELDS into a message and all below it; messages outside a oneof come into being."""
    full = type(message)()
    full.CopyFrom(_defaults(message.DESCRIPTOR))
    full.MergeFrom(message)
    message.CopyFrom(full)
    _fill_below(message)


def _fill_below(message: Message) -> None:
    """What is in a oneof or repeated, at any depth: the defaults of the rest came with the message's own."""
    for name, is_repeated, is_inner in _branches(message.DESCRIPTOR):
        if is_repeated:
            for child in getattr(message, name):
                fill(child)
        elif message.HasField(name):
            (_fill_below if is_inner else fill)(getattr(message, name))


@cache
def _branches(descriptor: Descriptor) -> list[tuple[str, bool, bool]]:
    """The fields that `_fill_below` looks at: whether they are repeated, and whether it has been there already."""
    found = []
    for field in descriptor.fields:
        if field.message_type is None or _is_map(field):
            continue
        is_inner = not field.is_repeated and field.containing_oneof is None
        if not is_inner or _branches(field.message_type):
            found.append((field.name, field.is_repeated, is_inner))
    return found


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


def out_of_range(message: Message, path: str = "") -> Iterator[Violation]:
    """The numbers in a message, and in all below it, that are not what FIELDS says they may be."""
    if message == _defaults(message.DESCRIPTOR):
        return  # as most of a specification is
    for field, value in message.ListFields():
        if field.message_type is None and (interval := _range(field)) is not None and not interval.holds(value):
            yield Violation(field=f"{path}{field.name}", description=f"is {value:.15g}, but must be {interval}")
    for _, children in _children(message):
        for child, part in children:
            yield from out_of_range(child, f"{path}{part}.")


@cache
def _range(field: Field) -> Interval | None:
    """What a number may be; None for what is no number, or any."""
    is_number = field.type not in (FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_STRING)
    return FIELDS.get(_key(field)) if is_number else None


def _children(message: Message) -> Iterator[tuple[Field, list[tuple[Message, str]]]]:
    """The fields that hold messages, with those and their parts of the path; maps are left out."""
    for field, value in message.ListFields():
        if field.message_type is None or _is_map(field):
            continue
        many = [(each, f"{field.name}[{index}]") for index, each in enumerate(value)] if field.is_repeated else None
        yield field, many or [(value, field.name)]


@cache
def _is_map(field: Field) -> bool:
    return bool(field.message_type.GetOptions().map_entry)


def _key(field: Field) -> str:
    return f"{field.containing_type.name}.{field.name}"
