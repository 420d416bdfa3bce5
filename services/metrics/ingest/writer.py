"""A writer as one stream has opened it: one state, which says whether anything of it may still be stored.

Once anything of a writer was refused it takes nothing more, because a later message that was stored over a lost one
would hide the loss: the highest stored number is taken for the end of all that is stored. Only a new opening, which
asks ClickHouse what it has, goes on.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.chassis.auth.keys import LEEWAY_SECONDS
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import Aborted, Reason, SihlaiError, Unauthenticated
from services.chassis.log import get_logger
from services.metrics.point import SeriesDefinition
from services.metrics.rows import LineRows, Message, PointRows
from services.metrics.writer_key import WriterKey, WriterKind

log = get_logger(__name__)

MENDABLE = frozenset(
    {
        Reason.DEADLINE_EXCEEDED,
        Reason.METRICS_STORE_UNAVAILABLE,
        Reason.SEQUENCE_GAP,
        Reason.TOKEN_INVALID,
        Reason.WRITER_TAKEN,
    }
)
"""Reasons after which the same message may be taken, once the writer is opened again."""


class State(enum.Enum):
    """Where a writer is. Only one that is `WRITING` puts messages into the queue, or lets one leave it for a block."""

    OPENING = "opening"
    """Its stream has asked for it, and what is stored is not known yet."""
    WRITING = "writing"
    REFUSED = "refused"
    """Something of it was not stored. Its stream was told, and opens it again."""
    TAKEN = "taken"
    """Another stream, or another process, has opened it."""
    FINISHED = "finished"
    """Its end is recorded. It is never opened again."""


class Event(enum.Enum):
    """What happens to a writer."""

    OPENED = "opened"
    REFUSED = "refused"
    TAKEN = "taken"
    FINISHED = "finished"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.OPENING, Event.OPENED): State.WRITING,
    (State.OPENING, Event.FINISHED): State.FINISHED,
    (State.OPENING, Event.REFUSED): State.REFUSED,
    (State.OPENING, Event.TAKEN): State.TAKEN,
    (State.WRITING, Event.FINISHED): State.FINISHED,
    (State.WRITING, Event.REFUSED): State.REFUSED,
    (State.WRITING, Event.TAKEN): State.TAKEN,
}
"""What is missing changes nothing: no state but the first two is ever left, and the first reason counts."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a writer is refused. `sequence`: the message that is, 0 for the opening itself."""

    error: SihlaiError
    sequence: int

    @property
    def permanent(self) -> bool:
        """Whether the same message would be refused again."""
        return self.error.reason not in MENDABLE


@dataclass(frozen=True, kw_only=True)
class WriterState:
    """How far a writer is, for an answer. `number` is its stream's name for it."""

    number: int
    stored_sequence: int
    finished: bool
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What opens a writer. `first_sequence` is the lowest message that the client still has."""

    token: str
    rank: int
    kind: WriterKind
    protocol_version: int
    first_sequence: int
    definitions: tuple[SeriesDefinition, ...]


class Sender(Protocol):
    """The stream of a writer."""

    def advanced(self, writer: Writer) -> None:
        """There is something to say of the writer."""

    def released(self, size_bytes: int) -> None:
        """A message has left the queue, stored or not."""


class Writer:
    """One opening of a writer. Methods are called on the event loop."""

    def __init__(self, key: WriterKey, stream: Sender, number: int, token: WriteToken) -> None:
        self.key = key
        self.number = number
        self.token = token
        self.state = State.OPENING
        self.refusal: Refusal | None = None
        self.definitions: dict[int, SeriesDefinition] = {}
        self.series_held = 0
        """How many of them count against what all writers may hold."""
        self.next_sequence = 1
        """The number that the stream's next message must have."""
        self.next_line_number = 1
        self.stored_sequence = 0
        self._next_in_block = 1
        self._in_block = 0
        self._stream = stream
        self._changed = asyncio.Event()
        self._quiet = asyncio.Event()

    def opened(self, *, stored_sequence: int, next_line_number: int) -> None:
        """What is stored is known; what comes next is the message after it."""
        self.stored_sequence = stored_sequence
        self.next_sequence = self._next_in_block = stored_sequence + 1
        self.next_line_number = next_line_number
        self._enter(Event.OPENED)

    def finished(self) -> None:
        """The end is recorded."""
        self._enter(Event.FINISHED)

    def refuse(self, error: SihlaiError, *, sequence: int = 0) -> None:
        """Take nothing more. Rows that are in the queue will not be stored; those in a block may be."""
        if (self.state, Event.REFUSED) in TRANSITIONS:
            self.refusal = Refusal(error=error, sequence=sequence)
            log.info("writer_refused", writer=self.key.shown, sequence=sequence, reason=error.reason.value)
        self._enter(Event.REFUSED)

    def take(self) -> None:
        """Somebody else opens the writer."""
        if (self.state, Event.TAKEN) in TRANSITIONS:
            message = f"{self.key.shown} was opened by another stream: open it again later"
            self.refusal = Refusal(error=Aborted(Reason.WRITER_TAKEN, message), sequence=0)
        self._enter(Event.TAKEN)

    @property
    def is_open(self) -> bool:
        """Whether its stream may still send something for it."""
        return self.state in (State.OPENING, State.WRITING)

    @property
    def active(self) -> bool:
        """Whether anything may still be stored by this opening."""
        return self.is_open or self._in_block > 0

    @property
    def pending(self) -> bool:
        """Whether anything that was put is neither stored nor refused."""
        return self.active and self.stored_sequence < self.next_sequence - 1

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Something beside messages is being stored: who takes the writer waits for it."""
        self._in_block += 1
        try:
            yield
        finally:
            self._leave_block()

    def require_writing(self) -> None:
        """Raise what the writer was refused for, unless it writes."""
        if self.refusal is not None:
            raise self.refusal.error
        assert self.state is State.WRITING, f"a writer that is {self.state.value} was not refused"

    def require_token(self, now: datetime) -> None:
        """Raise Unauthenticated where the token has run out."""
        if now > self.token.expires_at + timedelta(seconds=LEEWAY_SECONDS):
            raise Unauthenticated(Reason.TOKEN_INVALID, f"the write token of {self.key.shown} has ended: renew it")

    def message(self, rows: PointRows | LineRows) -> Message:
        """The stream's next message, on its way into the queue."""
        assert self.state is State.WRITING, "only a writer that writes takes messages"
        assert rows.sequence == self.next_sequence, "the stream checks the number"
        self.next_sequence += 1
        return Message(key=self.key, rows=rows, from_step=self.token.from_step, definitions=self.definitions)

    async def quiet(self) -> None:
        """Return when nothing of this opening is being stored any more, nor ever will be; only once it was taken."""
        await self._quiet.wait()

    async def all_stored(self) -> None:
        """Return when all that was put is stored; raise what it was refused for."""
        while self.state is State.WRITING and self.pending:
            self._changed.clear()
            await self._changed.wait()
        self.require_writing()

    # What the inserter says. Each message that `enters_block` is then stored, not stored, or given up.

    def enters_block(self, sequence: int) -> bool:
        """Whether this message may be stored now: the writer writes, and it is the next one."""
        if self.state is not State.WRITING:
            return False
        if sequence != self._next_in_block:
            # Our mistake, which must not become a hole: nothing behind it is stored.
            log.error("block_order_broken", writer=self.key.shown, wanted=self._next_in_block, found=sequence)
            self.refuse(gap(self.key, wanted=self._next_in_block, found=sequence))
            return False
        self._next_in_block += 1
        self._in_block += 1
        return True

    def stored(self, sequence: int) -> None:
        """A message is stored."""
        self.stored_sequence = sequence
        self._leave_block()
        self._stream.advanced(self)

    def not_stored(self, sequence: int, error: SihlaiError) -> None:
        """A message is not stored and never will be, or nobody knows before ClickHouse is asked again."""
        self._leave_block()
        self.refuse(error, sequence=0 if error.reason in MENDABLE else sequence)

    def given_up(self) -> None:
        """A message that had entered a block is in none: the writer was refused or taken before it was inserted."""
        self._leave_block()

    def left_queue(self, size_bytes: int) -> None:
        """A message is out of the queue, however it ended."""
        self._stream.released(size_bytes)

    def shown(self) -> WriterState:
        """For an answer."""
        return WriterState(
            number=self.number,
            stored_sequence=self.stored_sequence,
            finished=self.state is State.FINISHED,
            refusal=self.refusal,
        )

    def _leave_block(self) -> None:
        self._in_block -= 1
        self._settle()

    def _enter(self, event: Event) -> None:
        self.state = TRANSITIONS.get((self.state, event), self.state)
        self._settle()
        self._stream.advanced(self)

    def _settle(self) -> None:
        self._changed.set()
        if not self.active:
            self._quiet.set()


def gap(key: WriterKey, *, wanted: int, found: int) -> Aborted:
    """A message that is not the writer's next."""
    return Aborted(
        Reason.SEQUENCE_GAP,
        f"{key.shown} sent message {found}, but {wanted} is the next: open it again and go on from there",
        {"wanted": str(wanted), "found": str(found)},
    )
