"""Pages of lists: bounded by number and by bytes, and whole where a record in them is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from services.chassis.aside import aside
from services.chassis.log import get_logger
from services.scheduler.domain.view import DAMAGE, Damaged

log = get_logger(__name__)

PAGE_BYTES_MAX = 3 * 2**20
"""A client in any language takes messages of 4 MiB when nobody tells it otherwise."""

Item = TypeVar("Item")
Proto = TypeVar("Proto", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Proto]):
    """What one answer holds. `last` is the place of the last item that was looked at; empty at the end of the list."""

    items: list[Proto]
    last: str


async def page_of(
    found: Sequence[Item | Damaged], to_proto: Callable[[Item], Proto], *, limit: int, place: Callable[[Item], str]
) -> Page[Proto]:
    """The first of `found` that fit, at least one; `found` has one more than `limit` where the list goes on.

    What is damaged is left out, with a line in the log: one bad record must not hide all the others.
    """
    return await aside(partial(_page_of, found, to_proto, limit=limit, place=place), parts=len(found))


def _page_of(
    found: Sequence[Item | Damaged], to_proto: Callable[[Item], Proto], *, limit: int, place: Callable[[Item], str]
) -> Page[Proto]:
    items: list[Proto] = []
    bytes_left = PAGE_BYTES_MAX
    last = ""
    for item in found[:limit]:
        proto = None if isinstance(item, Damaged) else whole(item, to_proto, place)
        if proto is not None:
            bytes_left -= proto.ByteSize()
            if bytes_left < 0 and items:
                return Page(items=items, last=last)
            items.append(proto)
        last = item.place if isinstance(item, Damaged) else place(item)
    return Page(items=items, last=last if len(found) > limit else "")


def whole(item: Item, to_proto: Callable[[Item], Proto], place: Callable[[Item], Any]) -> Proto | None:
    """The proto of a record; None, and a line in the log, where what is stored cannot be told."""
    try:
        return to_proto(item)
    except (*DAMAGE, DecodeError) as error:
        log.error("record_damaged", record=place(item), kind=type(item).__name__, problem=f"{error!r}")
        return None
