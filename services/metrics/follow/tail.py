"""The tail of a job's log: how lines are found in storage, and how live ones are filtered and serialised.

A place is the highest line number that was passed in an attempt and rank; lines that the filter leaves out are passed
too. Within an attempt and rank lines keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.metrics.clickhouse.lines import LineStore
from services.metrics.clickhouse.store import Store
from services.metrics.cursor import Places, decode_cursor
from services.metrics.follow.shared import SharedLooks, SharedPages
from services.metrics.follow.source import Page, PageSize, Piece, PieceKey
from services.metrics.log import FromBeginning, FromCursor, FromLast, FromTime, LogFilter, Start
from services.metrics.rows import LineRows, Lines, Message, matching_lines
from services.metrics.writer_key import WriterKind

INLINE_LINES_MAX = 200
"""So many lines are filtered and serialised on the event loop; more, or any regular expression, in a thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineLook:
    """How many lines each writer has stored."""

    places: Places


class LineWire(Protocol):
    """Lines and marks on the wire."""

    def body(self, lines: Lines) -> bytes:
        """Lines; bodies one behind the other are a body too."""

    def rows(self, body: bytes, cursor: str) -> bytes:
        """A message of lines."""

    def caught_up(self, cursor: str) -> bytes:
        """A mark."""

    def heartbeat(self, cursor: str) -> bytes:
        """A mark."""

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """A mark."""


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """What one page holds, and of how many lines it looks at the filter."""

    lines: int
    scanned_lines: int


class Tails:
    """What all tails share."""

    def __init__(
        self,
        store: Store,
        lines: LineStore,
        pages: SharedPages,
        wire: LineWire,
        *,
        limits: PageLimits,
    ) -> None:
        self.lines = lines
        self.pages = pages
        self.wire = wire
        self.limits = limits
        self._store = store
        self._looks: SharedLooks[LineLook] = SharedLooks()

    async def look(self, job_uid: str) -> LineLook:
        """What is stored of a job's log now."""

        async def look() -> LineLook:
            return LineLook(places=await self._store.stored_numbers(job_uid))

        return await self._looks.get(job_uid, look)

    async def begin(self, job_uid: str, start: Start, wanted: LogFilter) -> Places:
        """The places before the first line that is wanted."""
        match start:
            case FromBeginning():
                return {}
            case FromCursor(cursor=cursor):
                return decode_cursor(cursor, job_uid=job_uid, kind=WriterKind.LINES)
            case FromLast(lines=lines):
                stored = (await self.look(job_uid)).places
                return await self.lines.before_last(
                    job_uid, lines=lines, wanted=wanted, stored=stored, scanned_max=self.limits.scanned_lines
                )
            case FromTime(time_unix_us=time_unix_us):
                stored = (await self.look(job_uid)).places
                return await self.lines.before_time(job_uid, time_unix_us=time_unix_us, stored=stored)


class LineSource:
    """A `Source` of lines."""

    kind = WriterKind.LINES
    named: frozenset[int] = frozenset()
    """Lines name nothing."""

    def __init__(self, tails: Tails, *, job_uid: str, wanted: LogFilter) -> None:
        self.job_uid = job_uid
        self._tails = tails
        self._wire = tails.wire
        self._wanted = wanted

    async def look(self) -> LineLook:
        """What is stored now."""
        return await self._tails.look(self.job_uid)

    async def greeting(self, look: LineLook, named: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """Nothing."""
        return ()

    async def page(self, look: LineLook, writer: tuple[int, int], *, after: int, size: PageSize) -> Page:
        """The next lines of a writer that the filter takes among a bounded number."""
        upto = look.places[writer]
        if not self._wanted.takes_writer(*writer):
            return Page(pieces=(), end=upto)
        upto = min(upto, after + self._tails.limits.scanned_lines)
        key = (self.job_uid, self.kind, self._wanted, writer, after, upto, size)

        async def read() -> Page:
            return await self._page(writer, after=after, upto=upto, size=size)

        return await self._tails.pages.get(key, read)

    def span(self, message: Message) -> tuple[int, int]:
        """The numbers of the first and the last line."""
        numbers = _lines(message).numbers
        return numbers[0], numbers[-1]

    def begin_live(self, look: LineLook) -> None:
        """Lines need to know nothing."""

    async def live(self, messages: Sequence[Message], *, bytes_max: int) -> Sequence[Piece]:
        """The lines that are meant."""
        count = sum(message.rows.row_count for message in messages)
        if count <= INLINE_LINES_MAX and not self._wanted.regex:
            return list(self._live(messages, bytes_max))
        return await asyncio.to_thread(lambda: list(self._live(messages, bytes_max)))

    def naming(self, ids: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """Nothing."""
        return ()

    def rows(self, key: PieceKey, body: bytes, cursor: str) -> bytes:
        """A message of lines."""
        return self._wire.rows(body, cursor)

    def caught_up(self, cursor: str) -> bytes:
        """A message."""
        return self._wire.caught_up(cursor)

    def heartbeat(self, cursor: str) -> bytes:
        """A message."""
        return self._wire.heartbeat(cursor)

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """A message."""
        return self._wire.ended(cursor, state=state, complete=complete)

    async def _page(self, writer: tuple[int, int], *, after: int, upto: int, size: PageSize) -> Page:
        limit = self._tails.limits.lines
        lines, whole = await self._tails.lines.page(
            self.job_uid,
            *writer,
            after=after,
            upto=upto,
            lines_max=limit,
            bytes_max=size.page_bytes,
            wanted=self._wanted,
        )
        pieces = await asyncio.to_thread(lambda: tuple(self._pieces(lines, size.message_bytes)))
        return Page(pieces=pieces, end=upto if whole else lines.numbers[-1])

    def _live(self, messages: Sequence[Message], bytes_max: int) -> Iterator[Piece]:
        for message in messages:
            lines = _lines(message)
            yield from self._pieces(matching_lines(lines, self._wanted), bytes_max)

    def _pieces(self, lines: Lines, bytes_max: int) -> Iterator[Piece]:
        writer = (lines.attempt, lines.rank)
        for piece in lines.pieces(bytes_max):
            yield Piece(key=(), body=self._wire.body(piece), places={writer: piece.numbers[-1]})


def _lines(message: Message) -> Lines:
    assert isinstance(message.rows, LineRows), "followers of lines get lines"
    return message.rows.lines
