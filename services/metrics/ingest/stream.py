"""One stream of a client: its writers open, send numbered messages, and hear what is stored.

A message is acknowledged when it is stored, and never before. Credit bounds what a client has in flight. What is wrong
with one writer is said of that writer: what its client still sends for it is dropped until it opens it again, and no
other writer waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec

from services.chassis.errors import Internal, InvalidArgument, Reason, ResourceExhausted, SihlaiError, Violation
from services.chassis.log import get_logger
from services.chassis.rpc import server_stopping
from services.metrics.ingest.inserter import Entry
from services.metrics.ingest.opening import Openings, check_definitions
from services.metrics.ingest.writer import Opening, Refusal, State, Writer, WriterState, gap
from services.metrics.rows import LineRows, PointRows
from services.metrics.writer_key import Finish, WriterKey, WriterKind

log = get_logger(__name__)

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a stream says: writers that there is something to say of, and bytes that may be sent in addition."""

    writers: tuple[WriterState, ...]
    credit_bytes: int
    going_away: bool


class IngestStream:
    """One stream. Methods are called one after the other by who reads its requests; `answers` runs beside them."""

    def __init__(self, openings: Openings, *, on_finish: Callable[[WriterKey], None]) -> None:
        self._openings = openings
        self._registry = openings.registry
        self._on_finish = on_finish
        self._writers: dict[int, Writer] = {}
        self._refused: dict[int, Refusal] = {}
        """Numbers whose opening was refused before there was a writer."""
        self._news: dict[int, None] = {}
        self._refusals_told: set[int] = set()
        """Once is enough: a second time would look like the answer to the next opening."""
        self._works: dict[int, asyncio.Task[None]] = {}
        """What is being done for a writer: it opens, ends, or waits to be refused."""
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._error: BaseException | None = None
        self._ended = False
        self._going_away = False
        self._credit_left = 0
        self._in_flight_bytes = 0
        self._registry.streams_open += 1

    def open(self, number: int, opening: Opening) -> None:
        """Open a writer, anew where it is open; its state, or why it is refused, is in one of the next answers."""
        try:
            key, token = self._openings.key(opening)
        except SihlaiError as error:
            self.refuse_opening(number, error)
            return
        if (before := self._writers.get(number)) is not None and before.is_open and before.key != key:
            raise _invalid("writer", f"is {number}, which this stream uses for another: take another number")
        self._forget(number)
        try:
            self._require_place()
        except SihlaiError as error:
            self.refuse_opening(number, error)
            return
        writer = Writer(key, self, number, token)
        former = self._registry.enter(writer)
        self._writers[number] = writer
        self._work(writer, self._open, opening, former)

    async def put(self, number: int, rows: PointRows | LineRows, size_bytes: int) -> None:
        """Take a message: store it, or acknowledge it where it is stored already."""
        writer = await self._writing(number)
        if writer is None:
            return
        try:
            self._require_kind(writer, rows)
            writer.require_token(self._registry.clock())
            if rows.sequence < writer.next_sequence:
                self._tell(number)
                return
            if rows.sequence != writer.next_sequence:
                raise gap(writer.key, wanted=writer.next_sequence, found=rows.sequence)
            rows = self._checked(writer, rows)
        except SihlaiError as error:
            self._refuse(writer, error, rows.sequence)
            return
        cost_bytes = max(size_bytes, rows.memory_bytes)
        self._in_flight_bytes += cost_bytes
        self._openings.inserter.put(Entry(writer.message(rows), writer, cost_bytes))
        if self._in_flight_bytes > self._registry.credit_window() // 2:
            # The client soon waits for credit, which a block that is not full yet holds: do not wait for it to fill.
            self._openings.inserter.flush()
        while self._in_flight_bytes > self._registry.credit_window() + self._registry.limits.credit_bytes_min:
            # Who sends more than its credit is not read any further: memory stays bounded whatever a client does.
            self._room.clear()
            await self._room.wait()

    async def renew(self, number: int, token: str) -> None:
        """Take a newer token for a writer."""
        writer = await self._writing(number)
        if writer is None:
            return
        try:
            renewed = self._registry.verify(token)
            renewed.require_attempt(job_uid=writer.key.job_uid, attempt=writer.key.attempt)
        except SihlaiError as error:
            writer.refuse(error)
            return
        writer.token = renewed
        self._tell(number)

    async def finish(self, number: int, finish: Finish) -> None:
        """Record the end of a writer, after all its rows are stored."""
        writer = await self._writing(number)
        if writer is None:
            return
        try:
            writer.require_token(self._registry.clock())
            if finish.last_sequence != writer.next_sequence - 1:
                raise gap(writer.key, wanted=writer.next_sequence - 1, found=finish.last_sequence)
        except SihlaiError as error:
            writer.refuse(error)
            return
        self._work(writer, self._finish, finish)

    def refuse_opening(self, number: int, error: SihlaiError) -> None:
        """Say that a writer cannot be opened so."""
        self._forget(number)
        self._refused[number] = Refusal(error=error, sequence=0)
        self._tell(number)

    async def refuse(self, number: int, error: SihlaiError, *, sequence: int) -> None:
        """A message of a writer could not be understood; `sequence` is its number, 0 where it has none."""
        writer = await self._writing(number)
        if writer is not None:
            self._refuse(writer, error, sequence)

    def received(self, size_bytes: int) -> None:
        """A request of this size has come in."""
        self._credit_left -= size_bytes
        self._changed.set()

    def end(self) -> None:
        """The client sends no more: answers end when everything is settled."""
        self._ended = True
        self._openings.inserter.flush()
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
        self._registry.streams_open -= 1
        for work in self._works.values():
            work.cancel()
        for number, writer in list(self._writers.items()):
            if writer.state is State.OPENING:
                writer.take()
            self._forget(number)

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
            if self._news or credit_bytes or self._going_away > said_goodbye:
                said_goodbye = self._going_away
                states = tuple(self._state(number) for number in self._news)
                self._news.clear()
                self._refusals_told.update(state.number for state in states if state.refusal is not None)
                yield Answer(writers=states, credit_bytes=credit_bytes, going_away=self._going_away)
            elif self._ended and self._settled():
                if self._going_away:
                    raise server_stopping()
                return
            else:
                await self._changed.wait()

    # What a writer says.

    def advanced(self, writer: Writer) -> None:
        """There is something to say of a writer."""
        stays = self._writers.get(writer.number) is writer
        if not writer.active or not (stays or writer.pending):
            self._registry.leave(writer)
        if stays and writer.state is not State.OPENING and writer.number not in self._refusals_told:
            self._tell(writer.number)

    def released(self, size_bytes: int) -> None:
        """A message has left the queue."""
        self._in_flight_bytes -= size_bytes
        self._room.set()
        self._changed.set()

    def _state(self, number: int) -> WriterState:
        if number in self._refused:
            return WriterState(number=number, stored_sequence=0, finished=False, refusal=self._refused[number])
        return self._writers[number].shown()

    def _tell(self, number: int) -> None:
        self._news[number] = None
        self._changed.set()

    def _settled(self) -> bool:
        writing = (writer for writer in self._writers.values() if writer.state is State.WRITING)
        return not self._works and all(writer.stored_sequence >= writer.next_sequence - 1 for writer in writing)

    def _new_credit(self) -> int:
        """Credit to give now: in large pieces, so that not every answer carries some."""
        window = self._registry.credit_window()
        new = window - self._in_flight_bytes - self._credit_left
        if new < window // 4:
            return 0
        self._credit_left += new
        return new

    async def _writing(self, number: int) -> Writer | None:
        """The writer, once what is being done for it is done; None where what is sent for it is dropped."""
        if (work := self._works.get(number)) is not None:
            await asyncio.wait({work})
        writer = self._writers.get(number)
        if writer is None and number not in self._refused:
            raise _invalid("writer", f"is {number}, which this stream has not opened: send `open` first")
        if writer is not None and writer.state is State.FINISHED:
            self._tell(number)
        return writer if writer is not None and writer.state is State.WRITING else None

    def _require_place(self) -> None:
        limit = self._registry.limits.writers_per_stream
        if sum(writer.is_open for writer in self._writers.values()) >= limit:
            message = f"the stream has {limit} writers, which is writers_per_stream_max: open another stream"
            raise ResourceExhausted(
                Reason.LIMIT_REACHED, message, {"what": "writers_per_stream_max", "limit": str(limit)}
            )

    def _require_kind(self, writer: Writer, rows: PointRows | LineRows) -> None:
        kind = WriterKind.POINTS if isinstance(rows, PointRows) else WriterKind.LINES
        if kind is not writer.key.kind:
            wanted = f"but writer {writer.number} was opened for {writer.key.kind.value}"
            raise _invalid("message", f"holds {kind.value}, {wanted}")

    def _checked(self, writer: Writer, rows: PointRows | LineRows) -> PointRows | LineRows:
        if isinstance(rows, PointRows):
            self._check_series(writer, rows)
            return rows
        first, last = rows.lines.numbers[0], rows.lines.numbers[-1]
        if first < writer.next_line_number:
            description = f"is {first}, but line {writer.next_line_number} is the next of {writer.key.shown}"
            raise _invalid("lines.first_number", description)
        writer.next_line_number = last + 1
        return replace(rows, lines=replace(rows.lines, attempt=writer.key.attempt, rank=writer.key.rank))

    def _check_series(self, writer: Writer, rows: PointRows) -> None:
        if rows.new_definitions:
            check_definitions(rows.new_definitions, writer.key, "points.new_series")
            self._openings.require_room(len(writer.definitions.keys() | {d.series_id for d in rows.new_definitions}))
            self._openings.hold(writer, rows.new_definitions)
        series_ids = rows.series_ids.tolist()
        if not set(series_ids) <= writer.definitions.keys():
            index, found = next((i, each) for i, each in enumerate(series_ids) if each not in writer.definitions)
            description = f"is {found}, which the writer has not defined: send it in `new_series`"
            raise _invalid(f"points.columns[{index}].series_id", description)

    def _refuse(self, writer: Writer, error: SihlaiError, sequence: int) -> None:
        """Refuse a writer, at once or, where its message would be refused again, when all before that is stored."""
        if Refusal(error=error, sequence=sequence).permanent:
            self._work(writer, self._refuse_behind, error, sequence)
        else:
            writer.refuse(error)

    async def _refuse_behind(self, writer: Writer, error: SihlaiError, sequence: int) -> None:
        self._openings.inserter.flush()
        await writer.all_stored()
        writer.refuse(error, sequence=sequence)

    async def _open(self, writer: Writer, opening: Opening, before: Writer | None) -> None:
        await self._openings.open(writer, opening, before)
        log.info("writer_opened", writer=writer.key.shown, next=writer.next_sequence, state=writer.state.value)

    async def _finish(self, writer: Writer, finish: Finish) -> None:
        self._openings.inserter.flush()
        await writer.all_stored()
        with writer.storing():
            await self._openings.store.record_finish(writer.key, finish, now=self._registry.clock())
            writer.finished()
        self._on_finish(writer.key)
        log.info("writer_finished", writer=writer.key.shown, last=finish.last_sequence, dropped=finish.rows_dropped)

    def _work(
        self,
        writer: Writer,
        work: Callable[Concatenate[Writer, Arguments], Awaitable[None]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> None:
        """Do something for a writer beside the others; an error refuses it."""

        async def guarded() -> None:
            try:
                await work(writer, *args, **kwargs)
            except SihlaiError as error:
                writer.refuse(error)
            except Exception:  # a mistake of ours with one writer is no reason to end the others
                log.exception("writer_crashed", writer=writer.key.shown)
                writer.refuse(Internal(Reason.INTERNAL, f"the server made a mistake with {writer.key.shown}"))

        self._works[writer.number] = task = asyncio.create_task(guarded())
        task.add_done_callback(lambda _: self._done(writer.number, task))

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        if self._works.get(number) is task:
            del self._works[number]
        self._changed.set()

    def _forget(self, number: int) -> None:
        """The number is free again. Rows of its writer that are in flight go on."""
        self._refused.pop(number, None)
        self._news.pop(number, None)
        self._refusals_told.discard(number)
        writer = self._writers.pop(number, None)
        if writer is not None:
            self.advanced(writer)


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument([Violation(field=field, description=description)])
