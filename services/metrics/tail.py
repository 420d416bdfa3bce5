"""The tail of a job's log: how far a reader of lines is, and how it reads.

A place is the highest line number that was passed in an attempt and rank; lines that the filter leaves out are passed
too. Within an attempt and rank lines keep their order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from services.metrics.block import Entry
from services.metrics.cursor import Places, decode_cursor, encode_cursor
from services.metrics.lines import LineStore
from services.metrics.log import FromBeginning, FromCursor, FromLast, FromTime, LogFilter, Start
from services.metrics.rows import LineRows, Lines, require_regex
from services.metrics.store import Store
from services.metrics.writer import WriterKind


class LineReading:
    """A `Reading` of lines."""

    def __init__(
        self,
        store: Store,
        lines: LineStore,
        *,
        job_uid: str,
        start: Start,
        wanted: LogFilter,
        page_lines: int,
        batch_bytes_max: int,
    ) -> None:
        require_regex(wanted)
        self._store = store
        self._lines = lines
        self._job_uid = job_uid
        self._start = start
        self._wanted = wanted
        self._page_lines = page_lines
        self._batch_bytes_max = batch_bytes_max
        self._places: Places = {}

    async def begin(self) -> None:
        """Find the places before the first line that is wanted."""
        match self._start:
            case FromBeginning():
                return
            case FromCursor(cursor=cursor):
                self._places = decode_cursor(cursor, job_uid=self._job_uid, kind=WriterKind.LINES)
            case FromLast(lines=lines):
                stored = await self._store.stored_numbers(self._job_uid)
                self._places = await self._lines.before_last(
                    self._job_uid, lines=lines, wanted=self._wanted, stored=stored
                )
            case FromTime(time_unix_us=time_unix_us):
                stored = await self._store.stored_numbers(self._job_uid)
                self._places = await self._lines.before_time(self._job_uid, time_unix_us=time_unix_us, stored=stored)

    async def history(self) -> AsyncIterator[Lines]:
        """Lines up to what is stored now, attempt after attempt."""
        stored = await self._store.stored_numbers(self._job_uid)
        for (attempt, rank), upto in sorted(stored.items()):
            if not self._wanted.takes_writer(attempt, rank):
                self._places[attempt, rank] = max(upto, self._place(attempt, rank))
            while self._place(attempt, rank) < upto:
                page = await self._lines.page(
                    self._job_uid,
                    attempt,
                    rank,
                    after=self._place(attempt, rank),
                    upto=upto,
                    lines_max=self._page_lines,
                    wanted=self._wanted,
                )
                full = len(page.numbers) == self._page_lines
                for lines in self._passed(page):
                    yield lines
                if not full:
                    self._places[attempt, rank] = upto

    def joins(self, entry: Entry) -> bool:
        """Whether no number between the last line that was passed and these is missing."""
        rows = entry.rows
        assert isinstance(rows, LineRows), "followers of lines get lines"
        return rows.lines.numbers[0] <= self._place(rows.lines.attempt, rows.lines.rank) + 1

    def live(self, entry: Entry) -> Iterator[Lines]:
        """The lines that were not passed yet and are meant."""
        rows = entry.rows
        assert isinstance(rows, LineRows), "followers of lines get lines"
        writer = (rows.lines.attempt, rows.lines.rank)
        place, last = self._place(*writer), rows.lines.numbers[-1]
        if last <= place:
            return
        meant = rows.matching(self._wanted)
        if meant.numbers and meant.numbers[0] <= place:
            meant = meant.picked([i for i, number in enumerate(meant.numbers) if number > place])
        yield from self._passed(meant)
        self._places[writer] = last

    def cursor(self) -> str:
        """The places as text."""
        return encode_cursor(self._job_uid, WriterKind.LINES, self._places)

    def _passed(self, lines: Lines) -> Iterator[Lines]:
        """The lines in pieces that fit into a message; each is passed when it is given."""
        for piece in lines.pieces(self._batch_bytes_max):
            self._places[lines.attempt, lines.rank] = piece.numbers[-1]
            yield piece

    def _place(self, attempt: int, rank: int) -> int:
        return self._places.get((attempt, rank), 0)
