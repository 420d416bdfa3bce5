"""Feeds without an engine: whatever is stored, published, held back or let go, each follower gets each row once.

The source is a small one of the test: its rows are numbers, its storage a dictionary.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import grpc
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.metrics.cursor import Places, decode_cursor
from services.metrics.follow.ending import EndingLimits, Endings
from services.metrics.follow.following import Following
from services.metrics.follow.hub import Hub
from services.metrics.follow.room import FeedLimits
from services.metrics.follow.source import Page, PageSize, Piece
from services.metrics.follow.topic import FollowLimits
from services.metrics.job import JobFacts
from services.metrics.jobs import JobLimits, Jobs
from services.metrics.rows import Message, PointRows
from services.metrics.writer_key import WriterKey, WriterKind

UID = "0123456789abcdef"
JOB = JobFacts(name="projects/a/jobs/b", uid=UID, state=3, ended=False, ended_at=None, attempts=())
WAIT_SECONDS = 20.0
JOB_LIMITS = JobLimits(
    call_seconds=1, fresh_seconds=1, stale_seconds=1, cached_max=10, poll_seconds=1, reconnect_seconds=1,
    reconnect_seconds_max=1,
)  # fmt: skip


@dataclass(frozen=True)
class NumberLook:
    places: Places


@dataclass
class Numbers:
    """A source whose message is one row: its attempt and number. Rows of attempts that divide by 3 are not meant."""

    stored: Places = field(default_factory=dict)
    kind: WriterKind = WriterKind.POINTS
    job_uid: str = UID
    named: frozenset[int] = frozenset()
    looks: int = 0
    made: int = 0
    """Live rows that were serialised."""

    async def look(self) -> NumberLook:
        self.looks += 1
        found = dict(self.stored)
        # An answer takes a while, in which more is stored.
        for _ in range(self.looks % 3):
            await asyncio.sleep(0)
        return NumberLook(places=found)

    async def greeting(self, look: NumberLook, named: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        return ()

    async def page(self, look: NumberLook, writer: tuple[int, int], *, after: int, size: PageSize) -> Page:
        end = min(look.places[writer], after + 5)
        await asyncio.sleep(0)
        pieces = [_piece(writer, number) for number in range(after + 1, end + 1)]
        return Page(pieces=tuple(piece for piece in pieces if writer[0] % 3), end=end)

    def span(self, message: Message) -> tuple[int, int]:
        return message.rows.sequence, message.rows.sequence

    def begin_live(self, look: NumberLook) -> None:
        pass

    async def live(self, messages: Sequence[Message], *, bytes_max: int) -> Sequence[Piece]:
        self.made += len(messages)
        writers = [((message.key.attempt, message.key.rank), message.rows.sequence) for message in messages]
        return [_piece(writer, number) for writer, number in writers if writer[0] % 3]

    def naming(self, ids: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        return ()

    def rows(self, key: tuple[int, ...], body: bytes, cursor: str) -> bytes:
        return body + b"|" + cursor.encode()

    def caught_up(self, cursor: str) -> bytes:
        return b"caught up|" + cursor.encode()

    def heartbeat(self, cursor: str) -> bytes:
        return b"|" + cursor.encode()

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        return b"ended|" + cursor.encode()


def _piece(writer: tuple[int, int], number: int) -> Piece:
    return Piece(key=(writer[0] % 2,), body=b"%d.%d;" % (writer[0], number), places={writer: number})


def message(attempt: int, sequence: int) -> Message:
    empty = np.array([], np.int64)
    rows = PointRows(
        sequence=sequence,
        series_ids=empty.astype(np.uint64),
        lengths=empty,
        steps=empty,
        times_unix_us=empty,
        values=empty.astype(np.float64),
        new_definitions=(),
    )
    key = WriterKey(job_uid=UID, attempt=attempt, rank=0, kind=WriterKind.POINTS)
    return Message(key=key, rows=rows, from_step=0, definitions={})


class Reader:
    """One follower: what it got, and how far it says it is."""

    def __init__(self, world: World, *, cursor: str = "", patience: int = 0) -> None:
        self.rows: list[tuple[int, int]] = []
        self.messages = 0
        self.cursor = cursor
        self._places = decode_cursor(cursor, job_uid=UID, kind=WriterKind.POINTS) if cursor else {}
        self._patience = patience
        self._world = world
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async def begin() -> Places:
            return dict(self._places)

        source = self._world.source
        responses = self._world.following.follow(JOB, WriterKind.POINTS, "all", lambda: source, begin)
        async with contextlib.aclosing(responses):
            async for response in responses:
                body, _, cursor = response.partition(b"|")
                self.cursor = cursor.decode()
                self.messages += body != b""
                if body not in (b"", b"caught up"):
                    parts = body.decode().split(";")[:-1]
                    self.rows += [(int(a), int(n)) for a, n in (part.split(".") for part in parts)]
                for _ in range(self._patience):
                    await asyncio.sleep(0)
                await self.may_read.wait()


class World:
    """A hub with its limits, and a source."""

    def __init__(
        self, *, bytes_max: int = 2**20, total_bytes_max: int = 2**24, poll_seconds: float | None = None
    ) -> None:
        limits = FollowLimits(heartbeat_seconds=0.05, ended_check_seconds=0.05)
        self.feed_limits = FeedLimits(
            bytes_max=bytes_max,
            total_bytes_max=total_bytes_max,
            message_bytes_max=64,
            pause_seconds_max=0.01,
            poll_seconds=poll_seconds,
        )
        jobs = Jobs(grpc.aio.insecure_channel("127.0.0.1:1"), limits=JOB_LIMITS)
        endings = Endings(
            None,  # type: ignore[arg-type]  # no job ends here, so nothing is asked of it
            limits=EndingLimits(wait_seconds=1, unopened_wait_seconds=1),
            clock=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
        )
        self.hub = Hub(jobs, endings, limits=limits, feed_limits=self.feed_limits)
        self.following = Following(self.hub, heartbeat_seconds=0.05, monotonic=time.monotonic)
        self.source = Numbers()
        self.stopping = asyncio.Event()
        self.running = asyncio.create_task(self.hub.run(self.stopping))

    def store(self, attempt: int, count: int, *, published: bool = True) -> None:
        """Rows of a writer, stored by one insert."""
        first = self.source.stored.get((attempt, 0), 0) + 1
        self.source.stored[attempt, 0] = first + count - 1
        if published:
            self.hub.publish([message(attempt, number) for number in range(first, first + count)])

    def wanted(self) -> list[tuple[int, int]]:
        return [(a, n) for (a, _), last in self.source.stored.items() if a % 3 for n in range(1, last + 1)]

    async def close(self, readers: Sequence[Reader]) -> None:
        for reader in readers:
            reader.task.cancel()
        await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


async def reached(reader: Reader, count: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(reader.rows) < count:
        assert not reader.task.done(), reader.task
        assert time.monotonic() < deadline, f"{len(reader.rows)} of {count} rows came"
        await asyncio.sleep(0.001)


def in_order(rows: Sequence[tuple[int, int]], attempt: int) -> list[int]:
    return [number for its, number in rows if its == attempt]


STORE = st.tuples(st.just("store"), st.integers(1, 4), st.integers(1, 9))
OPS = st.lists(
    STORE
    | STORE
    | st.tuples(st.just("unpublished"), st.integers(1, 4), st.integers(1, 3))
    | st.tuples(st.just("enter"), st.integers(0, 5), st.just(0))
    | st.tuples(st.just("hold"), st.integers(0, 5), st.just(0))
    | st.tuples(st.just("again"), st.integers(0, 5), st.just(0))
    | st.tuples(st.just("turns"), st.integers(1, 12), st.just(0)),
    min_size=5,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ops=OPS, bytes_max=st.sampled_from([300, 1_000, 2**20]), total=st.sampled_from([2_000, 2**24]))
def test_each_follower_gets_each_row_once_and_in_order_whatever_happens(
    ops: list[tuple[str, int, int]], bytes_max: int, total: int
) -> None:
    async def play() -> None:
        world = World(bytes_max=bytes_max, total_bytes_max=total, poll_seconds=0.02)
        readers = [Reader(world)]
        before: list[list[tuple[int, int]]] = [[]]
        for op, number, count in ops:
            if op in ("store", "unpublished"):
                world.store(number, count, published=op == "store")
            elif op == "enter" and len(readers) < 8:
                readers.append(Reader(world, patience=number))
                before.append([])
            elif op == "hold":
                readers[number % len(readers)].may_read.clear()
            elif op == "again":
                index = number % len(readers)
                gone = readers[index]
                gone.task.cancel()
                await asyncio.gather(gone.task, return_exceptions=True)
                before[index] += gone.rows
                readers[index] = Reader(world, cursor=gone.cursor)
            for _ in range(number if op == "turns" else 1):
                await asyncio.sleep(0)
        for reader in readers:
            reader.may_read.set()
        wanted = world.wanted()
        for index, reader in enumerate(readers):
            await reached(reader, len(wanted) - len(before[index]))
            rows = before[index] + reader.rows
            assert sorted(rows) == sorted(wanted)
            for attempt in range(1, 5):
                assert in_order(rows, attempt) == sorted(in_order(rows, attempt))
        await world.close(readers)
        assert not world.hub.is_watched(message(1, 1).key)

    asyncio.run(play())


def test_rows_are_made_once_for_all_and_frames_are_joined_for_who_is_behind() -> None:
    async def play() -> None:
        world = World()
        world.store(1, 3)
        readers = [Reader(world) for _ in range(100)]
        slow = readers[0]
        for reader in readers:
            await reached(reader, 3)
        world.source.made = 0
        looks = world.source.looks
        slow.may_read.clear()
        world.store(1, 1)
        for reader in readers:
            await reached(reader, 4)
        for _ in range(20):
            world.store(1, 1)
            await reached(readers[1], world.source.stored[1, 0])
        for reader in readers[1:]:
            await reached(reader, 24)
        messages = slow.messages
        slow.may_read.set()
        await reached(slow, 24)
        # 20 rows of 5 to 6 bytes, 64 bytes a message.
        assert slow.messages - messages == 2
        assert world.source.made == 21
        assert world.source.looks == looks
        await world.close(readers)

    asyncio.run(play())


def test_a_follower_that_stalls_holds_a_bounded_number_of_bytes_and_then_reads_storage() -> None:
    async def play() -> None:
        world = World(bytes_max=3_000, total_bytes_max=2**20)
        reader, other = Reader(world), Reader(world)
        world.store(1, 1)
        await reached(reader, 1)
        reader.may_read.clear()
        most = 0
        for number in range(2, 200):
            world.store(1, 1)
            await reached(other, number)
            most = max(most, world.hub.room.held_bytes)
        assert 1_000 < most <= 3_000
        reader.may_read.set()
        await reached(reader, 199)
        assert in_order(reader.rows, 1) == list(range(1, 200))
        await world.close([reader, other])
        assert world.hub.room.held_bytes == 0

    asyncio.run(play())


def test_all_feeds_together_hold_no_more_than_the_total() -> None:
    async def play() -> None:
        world = World(bytes_max=2**20, total_bytes_max=8_000)
        reader = Reader(world)
        world.store(1, 1)
        await reached(reader, 1)
        reader.may_read.clear()
        for _ in range(300):
            world.store(1, 1)
            await asyncio.sleep(0)
            assert world.hub.room.held_bytes <= 4_000
        reader.may_read.set()
        await reached(reader, 301)
        await world.close([reader])

    asyncio.run(play())
