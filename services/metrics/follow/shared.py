"""Reads of storage that many want at once: one is done, and all get it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from services.metrics.follow.source import Page

Value = TypeVar("Value")


class SharedLooks(Generic[Value]):
    """Looks at what changes. One runs at a time for each key; who asks while it runs shares the next one.

    So a look always begins after it was asked for: what was stored before is in it.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, asyncio.Task[Value]] = {}
        self._running: dict[Hashable, asyncio.Task[Value]] = {}

    async def get(self, key: Hashable, look: Callable[[], Awaitable[Value]]) -> Value:
        """A look that begins now or later."""
        task = self._waiting.get(key)
        if task is None:
            task = asyncio.create_task(self._look(key, look, self._running.get(key)))
            task.add_done_callback(_retrieved)
            self._waiting[key] = task
        # One who goes away must not end the look of the others.
        return await asyncio.shield(task)

    async def _look(
        self, key: Hashable, look: Callable[[], Awaitable[Value]], before: asyncio.Task[Value] | None
    ) -> Value:
        if before is not None:
            await asyncio.wait([before])
        task = self._waiting.pop(key)
        self._running[key] = task
        try:
            return await look()
        finally:
            if self._running.get(key) is task:
                del self._running[key]


class SharedPages:
    """Pages of what is stored and does not change: kept while there is room, read once by all who want them at once."""

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Page] = OrderedDict()
        self._reading: dict[Hashable, asyncio.Task[Page]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Page]]) -> Page:
        """The page."""
        if (page := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return page
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key, read))
            task.add_done_callback(_retrieved)
            self._reading[key] = task
        return await asyncio.shield(task)

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[Page]]) -> Page:
        try:
            page = await read()
        finally:
            del self._reading[key]
        self._kept[key] = page
        self._bytes += _kept_bytes(page)
        while self._bytes > self._bytes_max:
            _, left = self._kept.popitem(last=False)
            self._bytes -= _kept_bytes(left)
        return page


KEPT_OVERHEAD_BYTES = 512
"""What a kept page takes beside its rows, about."""


def _kept_bytes(page: Page) -> int:
    return page.size_bytes + KEPT_OVERHEAD_BYTES


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Whoever still waits gets the error; where nobody does, nobody is told of it."""
    if not task.cancelled():
        task.exception()
