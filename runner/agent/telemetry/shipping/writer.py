"""One writer of a spool on its way into metrics, over any number of streams. It never waits for another writer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from sihlai.error.v1 import error_reason_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest

from runner.agent.telemetry.journal import append_lines, notice
from runner.agent.telemetry.shipping.phase import OPEN, TRANSITIONS, Event, Phase
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.reader import SpoolReader
from runner.agent.telemetry.spool.segment import Record
from runner.agent.telemetry.spool.space import SpoolFull
from runner.agent.telemetry.spool.writer_spool import WriterSpool
from services.chassis.backoff import Backoff
from services.chassis.log import get_logger

log = get_logger(__name__)

PROTOCOL_VERSION = 1
RECORDS_READ_MAX = 32
BYTES_READ_MAX = 2**20
"""What is read ahead of what was sent."""
BYTES_IN_FLIGHT_MAX = 4 * 2**20
"""What one writer may have sent that is not stored: one that is slow leaves credit to the others."""
REFUSALS_TOLD_MAX = 20
"""Messages of one writer of which the job's log tells that metrics never took them; more are only counted."""


@dataclass(frozen=True, kw_only=True)
class ShippingLimits:
    """Waits of shipping; the configuration has a setting for each."""

    reconnect_seconds_first: float
    reconnect_seconds_max: float
    set_aside_seconds: float
    """Before a writer whose opening was refused for good is opened again."""
    answer_seconds_max: float
    """How long metrics may say nothing of what it was sent."""
    token_renewal: timedelta
    """A token that ends sooner than this is to be renewed."""


class Sent(NamedTuple):
    """A message that is on its way."""

    sequence: int
    rows: int
    size_bytes: int


class Writer:
    """One writer. `on_change` is called when it may have something to send; all runs in the event loop."""

    def __init__(
        self,
        spool: Spool,
        kind: ingest.WriterKind.ValueType,
        *,
        limits: ShippingLimits,
        randomness: random.Random,
        now_unix_us: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        self.spool = spool
        self.kind = kind
        self.records: WriterSpool = spool.points if kind == ingest.WRITER_KIND_POINTS else spool.lines
        self.phase = Phase.CLOSED
        self.number = 0
        """On the stream that it is open on."""
        self.number_free = False
        """Whether metrics has refused it there, so that it is opened again under its number."""
        self.token = ""
        """That it was opened with, or renewed."""
        self.stored = self.records.stored
        self.sibling: Writer = self
        """The spool's other writer."""
        self._limits = limits
        self._now_unix_us = now_unix_us
        self._on_change = on_change
        self._backoff = Backoff(
            seconds_first=limits.reconnect_seconds_first,
            seconds_max=limits.reconnect_seconds_max,
            randomness=randomness,
        )
        self._paused_until = 0.0
        self._first = 0
        """Where the writer is to be opened, behind a gap; 0: with the first record that is not stored."""
        self._sent = 0
        self._in_flight: deque[Sent] = deque()
        self._in_flight_bytes = 0
        self._reader: SpoolReader | None = None
        self._ready: deque[Record] = deque()
        self._read_to = 0
        self._refused: tuple[int, str] | None = None
        """A message that metrics never takes, and why."""
        self._refusals = 0
        self._told_aside = False
        self._works: set[asyncio.Task[None]] = set()
        self._line_expected = False
        self._releasing = False

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.spool.key}/{ingest.WriterKind.Name(self.kind).removeprefix('WRITER_KIND_').lower()}"

    @property
    def finished(self) -> bool:
        """Whether its end is recorded."""
        return self.phase is Phase.FINISHED

    @property
    def pause_seconds(self) -> float:
        """How long it is still to be left alone; 0 where it is not."""
        if self.phase in (Phase.PAUSED, Phase.SET_ASIDE):
            return max(0.0, self._paused_until - time.monotonic())
        return 0.0

    @property
    def openable(self) -> bool:
        """Whether it may be opened now, given a token."""
        if self.phase in (Phase.PAUSED, Phase.SET_ASIDE) and not self._works and not self.pause_seconds:
            self._enter(Event.PAUSE_OVER)
        return self.phase is Phase.CLOSED and not self._works

    @property
    def waits(self) -> bool:
        """Whether metrics has something of it to answer."""
        return bool(self._in_flight) or self.phase in (Phase.OPENING, Phase.FINISHING)

    def open(self, number: int, token: str) -> ingest.IngestRequest:
        """The message that opens it."""
        self.number = number
        self.token = token
        series = self.spool.series.values() if self.kind == ingest.WRITER_KIND_POINTS else ()
        self._first = max(self._first, self.records.first_after(self.stored))
        self.number_free = False
        self._enter(Event.OPEN_SENT)
        message = ingest.OpenWriter(
            token=token,
            rank=0,
            kind=self.kind,
            protocol_version=PROTOCOL_VERSION,
            first_sequence=self._first,
            series=series,
        )
        return ingest.IngestRequest(writer=number, open=message)

    def renew(self, token: str) -> ingest.IngestRequest:
        """The message that gives it a newer token."""
        self.token = token
        return ingest.IngestRequest(writer=self.number, renew=ingest.RenewToken(token=token))

    def next_request(self, credit_bytes: int) -> ingest.IngestRequest | None:
        """The next message, where there is one, the disk has given it, and it fits the credit. It counts as sent."""
        if self.phase is not Phase.WRITING:
            return None
        if self._ready:
            return self._next_message(credit_bytes)
        closed = self.spool.closed  # before the last number: what is appended meanwhile is not missed
        last = max(self.records.last_sequence, self.stored)
        if self._read_to < last:
            self._read_ahead()
        elif self._sent < last:
            self._reach_gap(last + 1)
        elif closed and not self._works and not self._line_expected:
            self._enter(Event.FINISH_SENT)
            finish = ingest.FinishWriter(last_sequence=last, rows_dropped=self.records.rows_dropped)
            return ingest.IngestRequest(writer=self.number, finish=finish)
        return None

    def take_in(self, state: ingest.WriterState) -> bool:
        """What metrics says of it; whether anything was stored or ended."""
        if self.finished:
            return False
        progressed = state.stored_sequence > self.stored
        if not state.HasField("refusal"):
            if self.phase is Phase.OPENING:
                self._opened(state)
            else:
                self._stored(state.stored_sequence)
            if state.finished:
                self._finished()
        else:
            self._stored(state.stored_sequence)
            self._take_in_refusal(state.refusal)
        if progressed:
            self._backoff.reset()
        return progressed or state.finished

    def stream_ended(self) -> None:
        """What was sent and is not stored is sent again on the next stream."""
        self._enter(Event.STREAM_ENDED)

    def close(self) -> None:
        """The spool goes."""
        for work in self._works:
            work.cancel()
        self._let_go()
        self.phase = Phase.FINISHED

    # How it goes on.

    def _opened(self, state: ingest.WriterState) -> None:
        # What lies between what is stored and what is here is lost, and the opening said so.
        self._sent = max(state.stored_sequence, self._first - 1)
        self._first = 0
        self._enter(Event.OPENED)
        self._stored(state.stored_sequence)
        self._reader = SpoolReader(self.records, after=self._sent)
        self._read_to = self._sent

    def _stored(self, sequence: int) -> None:
        while self._in_flight and self._in_flight[0].sequence <= sequence:
            self._in_flight_bytes -= self._in_flight.popleft().size_bytes
        if sequence > self.stored:
            self.stored = sequence
            if not self._releasing:
                self._releasing = True
                self.spool.disk.writing.post(self._release)

    def _release(self) -> None:
        """In the spools' thread; all that is stored by then goes at once."""
        self._releasing = False
        self.records.release(self.stored)

    def _finished(self) -> None:
        lost = self.records.last_sequence - self.stored
        if lost > 0:
            log.warning("writer_finished_early", writer=self.name, messages_lost=lost)
        self._enter(Event.FINISHED)

    def _next_message(self, credit_bytes: int) -> ingest.IngestRequest | None:
        record = self._ready[0]
        if record.sequence != self._sent + 1:
            self._reach_gap(record.sequence)
            return None
        if self._refused is not None and self._refused[0] == record.sequence:
            self._leave_out(record.sequence, record.rows, self._refused[1])
            return None
        request = ingest.IngestRequest(writer=self.number)
        try:
            batch = request.points if self.kind == ingest.WRITER_KIND_POINTS else request.lines
            batch.ParseFromString(record.body)
        except DecodeError as error:
            self._leave_out(record.sequence, record.rows, f"it cannot be read: {error}")
            return None
        size_bytes = request.ByteSize()
        if size_bytes > credit_bytes or self._in_flight_bytes >= BYTES_IN_FLIGHT_MAX:
            return None
        self._ready.popleft()
        self._sent = record.sequence
        self._in_flight.append(Sent(record.sequence, record.rows, size_bytes))
        self._in_flight_bytes += size_bytes
        if not self._ready and self._read_to < self.records.last_sequence:
            self._read_ahead()
        return request

    def _reach_gap(self, first: int) -> None:
        """The next record is `first`: open again behind the gap, once all before it is stored."""
        if self.stored >= self._sent:
            log.warning("spool_gap", writer=self.name, first=self._sent + 1, last=first - 1)
            self._first = first
            self._enter(Event.GAP_FOUND)
            self._on_change()  # it may be opened now

    def _leave_out(self, sequence: int, rows: int, why: str) -> None:
        """Never send this message: count it and open again behind it, once all before it is stored."""
        if self.stored >= sequence - 1:
            self._enter(Event.GAP_FOUND)
            self._work(self._skip(sequence, rows, why))

    # What metrics does not take.

    def _take_in_refusal(self, refusal: ingest.WriterRefusal) -> None:
        reason = error_reason_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
        log.warning(
            "writer_refused",
            writer=self.name,
            reason=reason,
            problem=refusal.message,
            sequence=refusal.sequence,
            permanent=refusal.permanent,
        )
        if self.phase not in OPEN:
            return
        self.number_free = True
        rows = next((sent.rows for sent in self._in_flight if sent.sequence == refusal.sequence), None)
        if refusal.permanent and rows is not None:
            self._refused = (refusal.sequence, refusal.message)
            self._pause(Event.MESSAGE_REFUSED, self._backoff.next_seconds())
            if self.stored >= refusal.sequence - 1:
                self._work(self._skip(refusal.sequence, rows, refusal.message))
        elif refusal.permanent and not refusal.sequence:
            self._pause(Event.OPENING_REFUSED, self._limits.set_aside_seconds)
            if not self._told_aside:
                self._told_aside = True
                self._work(self._say_set_aside(refusal.message))
        else:
            self._pause(Event.REFUSED_FOR_NOW, self._backoff.next_seconds())

    async def _skip(self, sequence: int, rows: int, why: str) -> None:
        self._refused = None
        self._refusals += 1
        log.warning("message_left_out", writer=self.name, sequence=sequence, rows=rows, problem=why)
        await self.spool.disk.writing.run(partial(self.records.skip, sequence, rows))
        self.stored = max(self.stored, sequence)
        self._first = sequence + 1
        if self._refusals <= REFUSALS_TOLD_MAX:
            more = ", of more of them the log does not tell" if self._refusals == REFUSALS_TOLD_MAX else ""
            what = "points" if self.kind == ingest.WRITER_KIND_POINTS else "lines"
            await self._say(f"message {sequence} with {rows} {what} was never taken by metrics{more}: {why}")

    async def _say_set_aside(self, why: str) -> None:
        if self.kind == ingest.WRITER_KIND_POINTS:
            await self._say(f"metrics does not take the points of this attempt: {why}")

    async def _say(self, text: str) -> None:
        """A line of the job's log, if that can still have one."""
        lines = self if self.kind == ingest.WRITER_KIND_LINES else self.sibling
        if lines.phase in (Phase.FINISHING, Phase.FINISHED):
            return
        lines._line_expected = True
        batch = notice(text, self._now_unix_us())
        try:
            with contextlib.suppress(SpoolFull):  # the count has to do
                await self.spool.disk.writing.run(partial(append_lines, lines.records, batch, urgent=True))
        finally:
            lines._line_expected = False

    # Small things.

    def _pause(self, event: Event, seconds: float) -> None:
        self._paused_until = time.monotonic() + seconds
        self._enter(event)

    def _enter(self, event: Event) -> None:
        after = TRANSITIONS[self.phase].get(event, self.phase)
        if self.phase in OPEN and after not in (Phase.WRITING, Phase.FINISHING):
            self._let_go()
        self.phase = after

    def _let_go(self) -> None:
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._ready.clear()
        if self._reader is not None:
            self.spool.disk.reading.post(self._reader.close)
            self._reader = None

    def _read_ahead(self) -> None:
        if self._reader is not None and not self._works:
            self._work(self._read(self._reader))

    async def _read(self, reader: SpoolReader) -> None:
        last = self.records.last_sequence
        read = partial(reader.read, records_max=RECORDS_READ_MAX, bytes_max=BYTES_READ_MAX)
        records = await self.spool.disk.reading.run(read)
        for segment in reader.damaged:
            await self.spool.disk.writing.run(partial(self.records.cut_damage, segment))
        reader.damaged.clear()
        if reader is self._reader:
            self._ready.extend(records)
            self._read_to = records[-1].sequence if records else last

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for this writer beside all else; it is opened again, or finished, only afterwards."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("writer_crashed", writer=self.name, exc_info=error)
        self._on_change()
