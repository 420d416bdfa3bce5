"""Ingest: what all streams share, and who owns which writer.

A writer belongs to the stream that opened it last. Before a writer is opened again, the rows that its earlier stream
put into the queue are settled, and then ClickHouse is asked what it has: the answer is the truth, whoever died before.
Nothing here is kept on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.chassis.auth import LEEWAY_SECONDS, TokenVerifier, WriteToken
from services.chassis.errors import Aborted, Reason, SihlaiError, Unauthenticated, Unavailable
from services.metrics.block import Entry, Inserter
from services.metrics.point import SeriesDefinition
from services.metrics.rows import LineRows, PointRows
from services.metrics.store import Store
from services.metrics.writer import WriterKey, WriterKind


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What opens a writer. `first_sequence` is the lowest message that the client still has."""

    token: str
    rank: int
    kind: WriterKind
    protocol_version: int
    first_sequence: int
    definitions: tuple[SeriesDefinition, ...]


@dataclass(frozen=True, kw_only=True)
class WriterState:
    """How far a writer is."""

    number: int
    stored_sequence: int
    finished: bool
    token_expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a stream says: writers that advanced, and bytes that may be sent in addition."""

    writers: tuple[WriterState, ...]
    credit_bytes: int
    going_away: bool


@dataclass(frozen=True, kw_only=True)
class IngestLimits:
    """What streams and writers may do."""

    queue_bytes: int
    credit_bytes_max: int
    credit_bytes_min: int
    settle_seconds: float
    writers_per_stream: int
    series_per_writer: int


class Sender(Protocol):
    """The stream of a writer."""

    def advanced(self, writer: Writer, size_bytes: int) -> None:
        """A message of the writer is stored."""

    def fail(self, error: BaseException) -> None:
        """Nothing more can be taken."""


class Ingest:
    """What all streams share: the queue, the writers, the keys."""

    def __init__(
        self,
        store: Store,
        inserter: Inserter,
        verifier: TokenVerifier,
        *,
        limits: IngestLimits,
        clock: Callable[[], datetime],
        on_finish: Callable[[WriterKey], None],
    ) -> None:
        self.store = store
        self.inserter = inserter
        self.limits = limits
        self.clock = clock
        self.on_finish = on_finish
        self._verifier = verifier
        self._seats: dict[WriterKey, Seat] = {}
        self.streams_open = 0

    def verify(self, token: str) -> WriteToken:
        """The token, or Unauthenticated."""
        return self._verifier.verify(token, now=self.clock())

    def credit_window(self) -> int:
        """What one stream may have in flight: its share of the queue, within limits."""
        share = self.limits.queue_bytes // max(1, self.streams_open)
        return max(self.limits.credit_bytes_min, min(self.limits.credit_bytes_max, share))

    async def take(self, writer: Writer) -> None:
        """Give the seat of its key to `writer`, after the rows of the one before are settled."""
        seat = self._seats.setdefault(writer.key, Seat())
        if seat.owner is not None:
            seat.owner.lose()
        seat.owner = writer
        writer.seat = seat
        if seat.settled.is_set():
            return
        self.inserter.flush()
        try:
            async with asyncio.timeout(self.limits.settle_seconds):
                await seat.settled.wait()
        except TimeoutError:
            message = "rows of this writer's earlier stream are still on their way"
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message) from None

    def forget(self, writer: Writer) -> None:
        """The writer's stream is gone: forget the seat when nothing is in flight and nobody else took it."""
        seat = writer.seat
        if seat.owner is writer and seat.settled.is_set():
            self._seats.pop(writer.key, None)


class Seat:
    """A writer's identity in this process: who owns it, and how many of its messages are in the queue."""

    def __init__(self) -> None:
        self.owner: Writer | None = None
        self.settled = asyncio.Event()
        self.settled.set()
        self._in_flight = 0

    def put(self) -> None:
        """A message goes into the queue."""
        self._in_flight += 1
        self.settled.clear()

    def settle(self) -> None:
        """A message was stored or refused."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self.settled.set()


class Writer:
    """A writer as one stream has opened it."""

    def __init__(self, ingest: Ingest, stream: Sender, number: int, key: WriterKey, token: WriteToken) -> None:
        self.key = key
        self.number = number
        self.token = token
        self.definitions: dict[int, SeriesDefinition] = {}
        self.next_sequence = 1
        self.next_line_number = 1
        self.stored_sequence = 0
        self.finished = False
        self.seat = Seat()
        self._ingest = ingest
        self._stream = stream
        self._closed = False

    def require_owned(self) -> None:
        """Raise Aborted where another stream has opened the writer since."""
        if self.seat.owner is not self:
            raise self._taken()

    def require_token(self, now: datetime) -> None:
        """Raise Unauthenticated where the token has run out."""
        if now > self.token.expires_at + timedelta(seconds=LEEWAY_SECONDS):
            raise Unauthenticated(Reason.TOKEN_INVALID, f"the write token of {self.key.shown} has ended: renew it")

    def lose(self) -> None:
        """Another stream opens the writer."""
        self._stream.fail(self._taken())

    def put(self, rows: PointRows | LineRows, size_bytes: int) -> None:
        """Queue the next message."""
        self.next_sequence += 1
        self.finished = False
        self.seat.put()
        entry = Entry(
            key=self.key,
            rows=rows,
            size_bytes=size_bytes,
            sender=self,
            from_step=self.token.from_step,
            definitions=self.definitions,
        )
        self._ingest.inserter.put(entry)

    def stored(self, entry: Entry) -> None:
        """A message is stored."""
        self.stored_sequence = entry.rows.sequence
        self._settle()
        self._stream.advanced(self, entry.size_bytes)

    def refused(self, entry: Entry, error: SihlaiError) -> None:
        """A message is not stored: the stream ends, and the client goes on from what is."""
        self._settle()
        self._stream.fail(error)

    def close(self) -> None:
        """The stream is gone."""
        self._closed = True
        self._ingest.forget(self)

    def state(self) -> WriterState:
        """For the answer."""
        return WriterState(
            number=self.number,
            stored_sequence=self.stored_sequence,
            finished=self.finished,
            token_expires_at=self.token.expires_at,
        )

    def _settle(self) -> None:
        self.seat.settle()
        if self._closed:
            self._ingest.forget(self)

    def _taken(self) -> Aborted:
        return Aborted(Reason.WRITER_TAKEN, f"{self.key.shown} was opened by another stream: open it again later")
