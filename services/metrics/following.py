"""What following lines and following points have in common: history, then live rows, then the end.

The follower is registered before storage is read, so that no row falls between the two; a row that comes both ways is
known by its place. Whenever live rows do not join what was passed (a slow follower, rows of another process), storage
is read again. A place never goes back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeAlias, TypeVar

from services.chassis.errors import NotFound, Reason
from services.chassis.rpc import server_stopping
from services.metrics.block import Entry
from services.metrics.ending import Endings
from services.metrics.job import JobFacts
from services.metrics.jobs import Interest, Jobs
from services.metrics.live import Follower, Hub
from services.metrics.writer import WriterKind

Rows = TypeVar("Rows")
RowsOut = TypeVar("RowsOut", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Batch(Generic[Rows]):
    """Rows, in order."""

    cursor: str
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class CaughtUp:
    """Everything that was stored when the call began has been sent."""

    cursor: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The job has ended, and nothing more will come."""

    cursor: str
    state: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Nothing happened."""

    cursor: str


Event: TypeAlias = Batch[Rows] | CaughtUp | Ended | Heartbeat


class Reading(Protocol[RowsOut]):
    """How rows of one kind are read, and how far the reader is."""

    async def begin(self) -> None:
        """Find out where to start."""

    def history(self) -> AsyncIterator[RowsOut]:
        """What is stored and was not passed yet, up to what is stored now."""

    def live(self, entry: Entry) -> Iterator[RowsOut]:
        """What of live rows was not passed yet and is meant. Only for rows that `joins`."""

    def joins(self, entry: Entry) -> bool:
        """Whether the rows follow on what was passed: no row between is missing."""

    def cursor(self) -> str:
        """How far the reader is."""


@dataclass(frozen=True, kw_only=True)
class FollowLimits:
    """Pauses of a follower."""

    heartbeat_seconds: float
    ended_check_seconds: float


class Following:
    """Everything that a follower needs."""

    def __init__(
        self, hub: Hub, jobs: Jobs, endings: Endings, *, limits: FollowLimits, clock: Callable[[], datetime]
    ) -> None:
        self._hub = hub
        self._jobs = jobs
        self._endings = endings
        self._limits = limits
        self._clock = clock

    async def events(
        self, job: JobFacts, kind: WriterKind, reading: Reading[Rows], *, follow: bool
    ) -> AsyncIterator[Event[Rows]]:
        """History, `CaughtUp`, then, with `follow`, live rows until `Ended`."""
        with self._hub.follow(job.uid, kind) as follower, self._jobs.follow(job, follower.wake) as interest:
            await reading.begin()
            async for rows in reading.history():
                self._require_running()
                yield Batch(cursor=reading.cursor(), rows=rows)
            yield CaughtUp(cursor=reading.cursor())
            if not follow:
                return
            async for event in self._live(kind, reading, follower, interest):
                yield event

    async def _live(
        self, kind: WriterKind, reading: Reading[Rows], follower: Follower, interest: Interest
    ) -> AsyncIterator[Event[Rows]]:
        seen_ended_at: datetime | None = None
        sent_at = self._clock()
        while True:
            self._require_running()
            entries, overflowed = follower.take()
            # One look at storage gives all that is missing, and all that is in the buffer with it.
            behind = overflowed or not all(map(reading.joins, entries))
            async for rows in reading.history() if behind else _live_rows(reading, entries):
                sent_at = self._clock()
                yield Batch(cursor=reading.cursor(), rows=rows)
            if interest.deleted:
                raise NotFound(Reason.JOB_NOT_FOUND, "the job was deleted", {"name": interest.job.name})
            if interest.job.ended and not behind:
                seen_ended_at = seen_ended_at or self._clock()
                verdict = await self._endings.verdict(interest.job, kind, seen_ended_at=seen_ended_at)
                if verdict is not None:
                    async for rows in reading.history():
                        yield Batch(cursor=reading.cursor(), rows=rows)
                    yield Ended(cursor=reading.cursor(), state=interest.job.state, complete=verdict.complete)
                    return
            if (self._clock() - sent_at).total_seconds() >= self._limits.heartbeat_seconds:
                sent_at = self._clock()
                yield Heartbeat(cursor=reading.cursor())
            pause = self._limits.ended_check_seconds if interest.job.ended else self._limits.heartbeat_seconds
            await follower.wait(pause)

    def _require_running(self) -> None:
        if self._hub.stopping:
            raise server_stopping()


async def _live_rows(reading: Reading[Rows], entries: list[Entry]) -> AsyncIterator[Rows]:
    for entry in entries:
        for rows in reading.live(entry):
            yield rows
