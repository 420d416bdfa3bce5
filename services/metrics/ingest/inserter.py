"""The queue before ClickHouse, and the loop that empties it block by block.

A message is in one block, whole. A block is inserted at once when it is large, when somebody watches one of its jobs,
or when nothing was inserted for a while; small inserts cost as much as large ones, so otherwise they wait a moment.

A block that is not stored refuses the writers in it, and nobody else: each message asks its writer once more before it
enters a block (`Writer.enters_block`). Where it is not ClickHouse that is away but something in the block that it does
not take, the block is divided until the one message is found.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.chassis.errors import Internal, Reason, SihlaiError
from services.chassis.log import get_logger
from services.metrics.clickhouse.ownership import Ownership
from services.metrics.clickhouse.store import Store
from services.metrics.ingest.block import line_block, point_block
from services.metrics.ingest.writer import MENDABLE, State, Writer
from services.metrics.rows import Message, PointRows
from services.metrics.writer_key import WriterKey, WriterKind

log = get_logger(__name__)

Deadline: TypeAlias = int | SihlaiError | None
"""Until when a block may be stored; an error where it may not be at all."""
BLOCKS = {WriterKind.POINTS: point_block, WriterKind.LINES: line_block}


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in the queue, and its writer, which hears how it ended."""

    message: Message
    writer: Writer
    size_bytes: int

    @property
    def sequence(self) -> int:
        """The message's number."""
        return self.message.rows.sequence


@dataclass(frozen=True, kw_only=True)
class BlockLimits:
    """When a block is large enough, and how long a smaller one waits after the one before."""

    rows: int
    rows_max: int
    seconds: float
    watched_seconds: float


class Inserter:
    """The queue and its loop. Streams bound the queue: they put no more than they have credit for."""

    def __init__(
        self,
        store: Store,
        ownership: Ownership,
        *,
        limits: BlockLimits,
        is_watched: Callable[[WriterKey], bool],
        publish: Callable[[Sequence[Message]], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._limits = limits
        self._is_watched = is_watched
        self._publish = publish
        self._monotonic = monotonic
        self._entries: deque[Entry] = deque()
        self._rows = 0
        self._watched = False
        self._at_once = False
        self._changed = asyncio.Event()
        self._inserted_at = -limits.seconds

    def put(self, entry: Entry) -> None:
        """Add a message. Messages of one writer are stored in the order in which they are put."""
        self._entries.append(entry)
        self._rows += entry.message.rows.row_count
        watched = self._is_watched(entry.message.key)
        # The loop is woken only for what changes when the next block is due: it costs more than the put.
        if len(self._entries) == 1 or self._rows >= self._limits.rows or watched > self._watched:
            self._changed.set()
        self._watched |= watched

    def flush(self) -> None:
        """Do not wait for more: somebody waits for what is here."""
        self._at_once = True
        self._changed.set()

    async def run(self) -> None:
        """Insert until cancelled. What still waits then is lost to this process, and kept by who sent it."""
        while True:
            while (pause := self._pause()) is None or pause > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    break
            await self._insert_next()
            self._inserted_at = self._monotonic()

    async def _insert_next(self) -> None:
        # Before the messages are taken: what a writer's owner may store ends with the lease that it had then.
        deadline: Deadline
        try:
            deadline = self._ownership.deadline_unix_us()
        except SihlaiError as error:
            deadline = error
        taken = self._taken()
        for kind in BLOCKS:
            await self._insert(kind, [entry for entry in taken if entry.message.key.kind is kind], deadline)
        for entry in taken:
            entry.writer.left_queue(entry.size_bytes)

    def _pause(self) -> float | None:
        """How long the next block must wait still; None where there is nothing to insert."""
        if not self._entries:
            self._at_once = False
            return None
        if self._at_once or self._rows >= self._limits.rows:
            return 0
        interval = self._limits.watched_seconds if self._watched else self._limits.seconds
        return self._inserted_at + interval - self._monotonic()

    def _taken(self) -> list[Entry]:
        """The messages of the next block; those whose writer has been refused or taken meanwhile are let go."""
        taken: list[Entry] = []
        rows = 0
        while self._entries and (not taken or rows + self._entries[0].message.rows.row_count <= self._limits.rows_max):
            entry = self._entries.popleft()
            self._rows -= entry.message.rows.row_count
            if entry.writer.enters_block(entry.sequence):
                taken.append(entry)
                rows += entry.message.rows.row_count
            else:
                entry.writer.left_queue(entry.size_bytes)
        self._watched = any(self._is_watched(entry.message.key) for entry in self._entries)
        return taken

    async def _insert(self, kind: WriterKind, entries: Sequence[Entry], deadline: Deadline) -> None:
        """Store the messages, and tell each writer how it ended."""
        block = [entry for entry in entries if entry.writer.state is State.WRITING]
        for entry in entries:
            if entry.writer.state is not State.WRITING:
                entry.writer.given_up()
        if not block:
            return
        try:
            await self._store_block(kind, [entry.message for entry in block], deadline)
        except SihlaiError as error:
            await self._not_stored(kind, block, deadline, error)
        except Exception:  # whatever it is, the loop goes on: with this block as with one that ClickHouse refuses
            log.exception("block_crashed", messages=len(block))
            mistake = Internal(Reason.INTERNAL, "the message could not be put into a block")
            await self._not_stored(kind, block, deadline, mistake)
        else:
            for entry in block:
                entry.writer.stored(entry.sequence)
            self._publish([entry.message for entry in block])

    async def _store_block(self, kind: WriterKind, messages: Sequence[Message], deadline: Deadline) -> None:
        if isinstance(deadline, SihlaiError):
            raise deadline
        definitions = [
            (message.key.job_uid, definition)
            for message in messages
            if isinstance(message.rows, PointRows)
            for definition in message.rows.new_definitions
        ]
        if definitions:
            await self._store.record_series(definitions)
        rows = await asyncio.to_thread(BLOCKS[kind], messages)
        await self._store.insert_rows(kind, rows, deadline_unix_us=deadline)

    async def _not_stored(
        self, kind: WriterKind, block: Sequence[Entry], deadline: Deadline, error: SihlaiError
    ) -> None:
        if error.reason in MENDABLE or len(block) == 1:
            log.warning("block_refused", messages=len(block), reason=error.reason.value, problem=error.message)
            for entry in block:
                entry.writer.not_stored(entry.sequence, error)
            return
        middle = len(block) // 2
        for part in (block[:middle], block[middle:]):
            await self._insert(kind, part, deadline)
