"""The room that followers have: bytes, for each feed and for all streams together.

What is bounded: live rows that wait for slow followers, the one message of each stream that is on its way, and the page
of each stream that reads storage. Each write is waited for, so no more is in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from services.metrics.follow.source import PageSize

MESSAGE_BYTES_MIN = 2**14
"""A message may have so many bytes, however many streams there are."""
PAGE_BYTES_MIN = 2**16
"""Likewise a page, of which each stream that reads storage holds one."""


@dataclass(frozen=True, kw_only=True)
class FeedLimits:
    """What followers may take. `bytes_max` holds for each feed, `total_bytes_max` for all together.

    Messages take no more than half of the total while all followers stall, as long as `MESSAGE_BYTES_MIN` allows it.
    """

    bytes_max: int
    total_bytes_max: int
    message_bytes_max: int
    pause_seconds_max: float
    poll_seconds: float | None
    """Silence after which storage is looked at for rows of other processes; None where there are none."""


class Holder(Protocol):
    """What holds rows for slow followers: a feed."""

    def give_up(self) -> None:
        """Let go of all of them. It tells the room."""


class Room:
    """What all streams share: the bytes that their feeds hold, and how many streams there are."""

    def __init__(self, limits: FeedLimits) -> None:
        self.limits = limits
        self._streams = 0
        self._feeds: dict[Holder, int] = {}
        self._bytes = 0

    @property
    def message_bytes(self) -> int:
        """What one message may have now: a power of two, so that streams that come and go share their pages."""
        share = self.limits.total_bytes_max // (2 * max(1, self._streams))
        most = min(self.limits.message_bytes_max, max(MESSAGE_BYTES_MIN, share))
        return 1 << (most.bit_length() - 1)

    @property
    def held_bytes(self) -> int:
        """What feeds hold for slow followers."""
        return self._bytes

    @property
    def page_size(self) -> PageSize:
        """What a page of stored rows may have now: a query costs too much for a small one."""
        return PageSize(page_bytes=max(self.message_bytes, PAGE_BYTES_MIN), message_bytes=self.message_bytes)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One more, for as long as this lasts."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def hold(self, feed: Holder, size_bytes: int) -> None:
        """The feed holds so many bytes now. Where all hold too many, the largest lets go of its own."""
        self._bytes += size_bytes - self._feeds.pop(feed, 0)
        if size_bytes:
            self._feeds[feed] = size_bytes
        while self._bytes > self.limits.total_bytes_max // 2:
            max(self._feeds, key=self._feeds.__getitem__).give_up()
