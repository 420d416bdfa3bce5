"""One stream of a client: its writers open, send numbered messages, and hear what is stored.

A message is acknowledged when it is stored, and never before. Credit bounds what a client has in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from services.chassis.auth import WriteToken
from services.chassis.errors import Aborted, FailedPrecondition, InvalidArgument, Reason, ResourceExhausted, Violation
from services.chassis.log import get_logger
from services.chassis.rpc import server_stopping
from services.metrics.ingest import Answer, Ingest, Opening, Writer
from services.metrics.point import SeriesDefinition, definition_violations
from services.metrics.rows import LineRows, PointRows
from services.metrics.writer import ATTEMPT_MAX, PROTOCOL_VERSION, Finish, WriterKey, WriterKind

log = get_logger(__name__)


class IngestStream:
    """One stream. Methods are called one after the other by who reads its requests; `answers` runs beside them."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._writers: dict[int, Writer] = {}
        self._advanced: dict[int, Writer] = {}
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._error: BaseException | None = None
        self._ended = False
        self._going_away = False
        self._credit_left = 0
        self._in_flight_bytes = 0
        ingest.streams_open += 1

    async def open(self, number: int, opening: Opening) -> None:
        """Open a writer; its state is in the next answer."""
        key, token = self._checked(number, opening)
        writer = Writer(self._ingest, self, number, key, token)
        try:
            await self._ingest.take(writer)
            await self._go_on(writer, opening)
            writer.require_owned()
        except BaseException:
            writer.close()
            raise
        self._writers[number] = writer
        self._report(writer)
        log.info("writer_opened", writer=key.shown, next=writer.next_sequence)

    async def put(self, number: int, rows: PointRows | LineRows, size_bytes: int) -> None:
        """Take a message: store it, or acknowledge it where it is stored already."""
        kind = WriterKind.POINTS if isinstance(rows, PointRows) else WriterKind.LINES
        writer = self._writer(number, kind)
        writer.require_token(self._ingest.clock())
        if rows.sequence < writer.next_sequence:
            self._report(writer)
            return
        _require_next(writer, rows.sequence)
        if isinstance(rows, PointRows):
            self._check_series(writer, rows)
        else:
            _check_numbers(writer, rows)
            lines = replace(rows.lines, attempt=writer.key.attempt, rank=writer.key.rank)
            rows = replace(rows, lines=lines)
        self._in_flight_bytes += size_bytes
        writer.put(rows, size_bytes)
        while self._in_flight_bytes > self._ingest.credit_window() + self._ingest.limits.credit_bytes_min:
            # Who sends more than its credit is not read any further: memory stays bounded whatever a client does.
            self._room.clear()
            await self._room.wait()

    async def renew(self, number: int, token: str) -> None:
        """Take a newer token for a writer."""
        writer = self._writer(number, None)
        renewed = self._ingest.verify(token)
        renewed.require_attempt(job_uid=writer.key.job_uid, attempt=writer.key.attempt)
        writer.token = renewed
        self._report(writer)

    async def finish(self, number: int, finish: Finish) -> None:
        """Record the end of a writer, after all its rows are stored."""
        writer = self._writer(number, None)
        writer.require_token(self._ingest.clock())
        if finish.last_sequence != writer.next_sequence - 1:
            raise _gap(writer, wanted=writer.next_sequence - 1, found=finish.last_sequence)
        self._ingest.inserter.flush()
        await writer.seat.settled.wait()
        if self._error is not None:
            raise self._error
        await self._ingest.store.record_finish(writer.key, finish, now=self._ingest.clock())
        writer.finished = True
        self._report(writer)
        self._ingest.on_finish(writer.key)
        log.info("writer_finished", writer=writer.key.shown, last=finish.last_sequence, dropped=finish.rows_dropped)

    def received(self, size_bytes: int) -> None:
        """A request of this size has come in."""
        self._credit_left -= size_bytes
        self._changed.set()

    def end(self) -> None:
        """The client sends no more: answers end when everything is settled."""
        self._ended = True
        self._ingest.inserter.flush()
        self._changed.set()

    def go_away(self) -> None:
        """The server stops: say so, settle what is here, end."""
        self._going_away = True
        self.end()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error; the first one counts."""
        self._error = self._error or error
        self._changed.set()
        self._room.set()

    def close(self) -> None:
        """The stream is gone. Rows in flight go on."""
        self._ingest.streams_open -= 1
        for writer in self._writers.values():
            writer.close()

    async def answers(self) -> AsyncIterator[Answer]:
        """What is to be said, until the stream has ended and is settled, or failed."""
        # At once and before anything is asked: a client must not send without credit.
        yield Answer(writers=(), credit_bytes=self._new_credit(), going_away=False)
        said_goodbye = False
        while True:
            self._changed.clear()
            if self._error is not None:
                raise self._error
            credit_bytes = 0 if self._ended else self._new_credit()
            if self._advanced or credit_bytes or self._going_away > said_goodbye:
                said_goodbye = self._going_away
                states = tuple(writer.state() for writer in self._advanced.values())
                self._advanced.clear()
                yield Answer(writers=states, credit_bytes=credit_bytes, going_away=self._going_away)
            elif self._ended and all(writer.seat.settled.is_set() for writer in self._writers.values()):
                if self._going_away:
                    raise server_stopping()
                return
            else:
                await self._changed.wait()

    def advanced(self, writer: Writer, size_bytes: int) -> None:
        """A message of a writer is stored."""
        self._in_flight_bytes -= size_bytes
        self._room.set()
        self._report(writer)

    def _report(self, writer: Writer) -> None:
        self._advanced[writer.number] = writer
        self._changed.set()

    def _new_credit(self) -> int:
        """Credit to give now: in large pieces, so that not every answer carries some."""
        window = self._ingest.credit_window()
        new = window - self._in_flight_bytes - self._credit_left
        if new < window // 4:
            return 0
        self._credit_left += new
        return new

    def _writer(self, number: int, kind: WriterKind | None) -> Writer:
        writer = self._writers.get(number)
        if writer is None:
            raise _invalid("writer", f"is {number}, which this stream has not opened: send `open` first")
        if kind is not None and kind is not writer.key.kind:
            raise _invalid("message", f"holds {kind.value}, but writer {number} was opened for {writer.key.kind.value}")
        writer.require_owned()
        return writer

    def _checked(self, number: int, opening: Opening) -> tuple[WriterKey, WriteToken]:
        if opening.protocol_version != PROTOCOL_VERSION:
            raise FailedPrecondition(
                Reason.PROTOCOL_VERSION,
                f"the writer speaks protocol version {opening.protocol_version}, this server {PROTOCOL_VERSION}",
                {"found": str(opening.protocol_version), "wanted": str(PROTOCOL_VERSION)},
            )
        if number in self._writers:
            raise _invalid("writer", f"is {number}, which this stream has opened already: take another number")
        if len(self._writers) >= self._ingest.limits.writers_per_stream:
            raise _limit("writers_per_stream_max", self._ingest.limits.writers_per_stream)
        token = self._ingest.verify(opening.token)
        if not 1 <= token.attempt <= ATTEMPT_MAX:
            raise _invalid("open.token", f"is for attempt {token.attempt}, but attempts are from 1 to {ATTEMPT_MAX}")
        key = WriterKey(job_uid=token.job_uid, attempt=token.attempt, rank=opening.rank, kind=opening.kind)
        _check_definitions(opening.definitions, token.job_uid, "open.series")
        if len(opening.definitions) > self._ingest.limits.series_per_writer:
            raise _limit("series_per_writer_max", self._ingest.limits.series_per_writer)
        return key, token

    async def _go_on(self, writer: Writer, opening: Opening) -> None:
        """Take up where ClickHouse is, and record what is new about the writer."""
        store, now, key = self._ingest.store, self._ingest.clock(), writer.key
        record, stored = await asyncio.gather(store.writer_record(key), store.stored_sequence(key))
        if record is None:
            await store.record_writer(key, epoch=writer.token.epoch, from_step=writer.token.from_step, now=now)
        writer.next_sequence = max(stored + 1, opening.first_sequence)
        # What will never come is settled like what is stored: the client has nothing to wait for.
        writer.stored_sequence = writer.next_sequence - 1
        if writer.next_sequence > stored + 1:
            await store.record_gap(key, first=stored + 1, last=writer.next_sequence - 1, now=now)
            log.warning("writer_gap", writer=key.shown, first=stored + 1, last=writer.next_sequence - 1)
        writer.finished = record is not None and record.finished
        writer.definitions = {definition.series_id: definition for definition in opening.definitions}
        if key.kind is WriterKind.LINES:
            numbers = await store.stored_numbers(key.job_uid)
            writer.next_line_number = numbers.get((key.attempt, key.rank), 0) + 1
        if opening.definitions:
            known = await store.series_ids(key.job_uid)
            new = [(key.job_uid, d) for d in opening.definitions if d.series_id not in known]
            if new:
                await store.record_series(new)

    def _check_series(self, writer: Writer, rows: PointRows) -> None:
        if rows.new_definitions:
            _check_definitions(rows.new_definitions, writer.key.job_uid, "points.new_series")
            writer.definitions |= {definition.series_id: definition for definition in rows.new_definitions}
            if len(writer.definitions) > self._ingest.limits.series_per_writer:
                raise _limit("series_per_writer_max", self._ingest.limits.series_per_writer)
        for index, columns in enumerate(rows.columns):
            if columns.series_id not in writer.definitions:
                description = f"is {columns.series_id}, which the writer has not defined: send it in `new_series`"
                raise _invalid(f"points.columns[{index}].series_id", description)


def _check_definitions(definitions: Iterable[SeriesDefinition], job_uid: str, field: str) -> None:
    violations = [
        violation
        for index, definition in enumerate(definitions)
        for violation in definition_violations(definition, job_uid=job_uid, field=f"{field}[{index}]")
    ]
    if violations:
        raise InvalidArgument(violations)


def _check_numbers(writer: Writer, rows: LineRows) -> None:
    first, last = rows.lines.numbers[0], rows.lines.numbers[-1]
    if first < writer.next_line_number:
        description = f"is {first}, but line {writer.next_line_number} is the next of {writer.key.shown}"
        raise _invalid("lines.first_number", description)
    writer.next_line_number = last + 1


def _require_next(writer: Writer, sequence: int) -> None:
    if sequence != writer.next_sequence:
        raise _gap(writer, wanted=writer.next_sequence, found=sequence)


def _gap(writer: Writer, *, wanted: int, found: int) -> Aborted:
    return Aborted(
        Reason.SEQUENCE_GAP,
        f"{writer.key.shown} sent message {found}, but {wanted} is the next: open it again and go on from there",
        {"wanted": str(wanted), "found": str(found)},
    )


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument([Violation(field=field, description=description)])


def _limit(name: str, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        Reason.LIMIT_REACHED, f"{name} is {limit}: the stream wants more", {"what": name, "limit": str(limit)}
    )
