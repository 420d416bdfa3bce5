"""Pages of lists: bounded by number and by bytes, and whole where a record in them is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from services.chassis.aside import aside
from services.chassis.log import get_logger
from services.scheduler.domain.view import DAMAGE, Damaged
from services.scheduler.wire.names import page_token

log = get_logger(__name__)

PAGE_BYTES_MAX = 3 * 2**20
"""A client in any language takes messages of 4 MiB when nobody tells it otherwise."""

Serialized: TypeAlias = Any
"""The bytes of an answer: generated classes know messages alone, gRPC takes both (`services.chassis.interceptor`)."""
Item = TypeVar("Item")
Proto = TypeVar("Proto", bound=Message)
Made = TypeVar("Made")


async def page_of(
    found: Sequence[Item | Damaged],
    to_proto: Callable[[Item], Proto | None],
    *,
    limit: int,
    place: Callable[[Item], str],
    scope: str,
    answer: Callable[[Sequence[Proto], str], Message],
    shown_max: int | None = None,
) -> Serialized:
    """The answer, serialised, with the first of `found` that fit, at least one; `found` has one more than `limit` where
    the list goes on.

    `answer` makes one of some items and the token of the next page in the list of this `scope`. What is damaged is left
    out, with a line in the log: one bad record must not hide all the others. So is what `to_proto` makes None of; where
    that may be much, `limit` is how many are looked at, and `shown_max` how many are in the answer.
    """
    page = _Page(to_proto, place, answer, shown_max if shown_max is not None else limit)
    items = await aside(found[:limit], page.written)
    goes_on = page.is_full or len(found) > limit
    end = answer([], page_token(page.last, scope) if goes_on else "")
    return b"".join([*items, end.SerializeToString()])


class _Page(Generic[Item, Proto]):
    """What fits, serialised. Messages of one kind, one behind the other, are one of all their items.

    `last` is the place of the last item that was looked at.
    """

    def __init__(
        self,
        to_proto: Callable[[Item], Proto | None],
        place: Callable[[Item], str],
        answer: Callable[[Sequence[Proto], str], Message],
        shown_max: int,
    ) -> None:
        self._to_proto = to_proto
        self._place = place
        self._answer = answer
        self._shown_max = shown_max
        self._number = 0
        self._bytes_left = PAGE_BYTES_MAX
        self.is_full = False
        self.last = ""

    def written(self, some: Sequence[Item | Damaged]) -> bytes:
        """Those of the items that fit."""
        items: list[Proto] = []
        for item in some:
            proto = None if isinstance(item, Damaged) else whole(item, self._to_proto, self._place)
            self._bytes_left -= proto.ByteSize() if proto is not None else 0
            is_over = self._number == self._shown_max or (self._bytes_left < 0 and self._number > 0)
            self.is_full = self.is_full or is_over
            if self.is_full:
                break
            if proto is not None:
                items.append(proto)
                self._number += 1
            self.last = item.place if isinstance(item, Damaged) else self._place(item)
        return self._answer(items, "").SerializeToString()


def whole(item: Item, to_proto: Callable[[Item], Made | None], place: Callable[[Item], Any]) -> Made | None:
    """The proto of a record; None, and a line in the log, where what is stored cannot be told."""
    try:
        return to_proto(item)
    except (*DAMAGE, DecodeError) as error:
        log.error("record_damaged", record=place(item), kind=type(item).__name__, problem=f"{error!r}")
        return None
