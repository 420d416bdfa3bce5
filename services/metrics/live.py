"""Live rows: what has just been stored goes to who follows its job in this process.

Nobody is shown a row that is not stored: only the inserter publishes, after the insert has returned. A follower that is
too slow loses its buffer, not its place: it reads storage again. Rows that other replicas store will come in here too,
from the bus; this version runs as one replica.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.metrics.block import Entry
from services.metrics.writer import WriterKey, WriterKind


class Hub:
    """Who follows what."""

    def __init__(self, *, rows_max: int) -> None:
        self._rows_max = rows_max
        self._followers: dict[tuple[str, WriterKind], set[Follower]] = {}
        self.stopping = False
        """The server stops: followers end as soon as they see this."""

    @contextmanager
    def follow(self, job_uid: str, kind: WriterKind) -> Iterator[Follower]:
        """Follow a job's rows. Follow first and read storage then: what is stored in between comes twice, not never."""
        follower = Follower(rows_max=self._rows_max)
        followers = self._followers.setdefault((job_uid, kind), set())
        followers.add(follower)
        try:
            yield follower
        finally:
            followers.discard(follower)
            if not followers:
                self._followers.pop((job_uid, kind), None)

    def is_watched(self, key: WriterKey) -> bool:
        """Whether anybody follows rows of this kind of this job."""
        return (key.job_uid, key.kind) in self._followers

    def publish(self, entries: Sequence[Entry]) -> None:
        """Rows that are stored."""
        for entry in entries:
            for follower in self._followers.get((entry.key.job_uid, entry.key.kind), ()):
                follower.put(entry)

    def wake(self, key: WriterKey) -> None:
        """Something else than rows has changed: a writer has finished."""
        for follower in self._followers.get((key.job_uid, key.kind), ()):
            follower.wake()

    async def stop_with(self, stopping: asyncio.Event) -> None:
        """Tell all followers when the server stops. They look here and not at the event: waiting for both costs more
        than everything else that a follower does for a row."""
        await stopping.wait()
        self.stopping = True
        for followers in self._followers.values():
            for follower in followers:
                follower.wake()


class Follower:
    """A bounded buffer of one who follows."""

    def __init__(self, *, rows_max: int) -> None:
        self._rows_max = rows_max
        self._entries: deque[Entry] = deque()
        self._rows = 0
        self._overflowed = False
        self._changed = asyncio.Event()

    def put(self, entry: Entry) -> None:
        """Add rows, or, where there is no room, note that storage has to be read."""
        self._changed.set()
        if self._overflowed:
            return
        self._rows += entry.rows.row_count
        self._entries.append(entry)
        if self._rows > self._rows_max:
            self._entries.clear()
            self._overflowed = True

    def wake(self) -> None:
        """End the wait."""
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Until there is something to look at, at most this long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def take(self) -> tuple[list[Entry], bool]:
        """What came since the last time, and whether rows were left out: read storage then."""
        entries, overflowed = list(self._entries), self._overflowed
        self._entries.clear()
        self._rows, self._overflowed = 0, False
        return entries, overflowed
