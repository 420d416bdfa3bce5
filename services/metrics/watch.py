"""Watching a job's points: how far a reader of points is, and how it reads.

A place is the highest message that was passed of an attempt and rank. Points that no longer count, because a later
attempt logs their steps again, are passed and not sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from services.metrics.block import Entry
from services.metrics.cursor import Places, decode_cursor, encode_cursor
from services.metrics.point import Cuts, Selector, SeriesDefinition
from services.metrics.rows import PointColumns, PointRows
from services.metrics.series import Counted, SeriesStore, WriterPoints
from services.metrics.store import Store
from services.metrics.writer import WriterKind


@dataclass(frozen=True, kw_only=True, eq=False)
class AttemptPoints:
    """Points of one attempt, which began at `from_step`. `new_definitions`: series that come for the first time."""

    attempt: int
    from_step: int
    columns: tuple[PointColumns, ...]
    new_definitions: tuple[SeriesDefinition, ...]


class PointReading:
    """A `Reading` of points."""

    def __init__(
        self,
        store: Store,
        series: SeriesStore,
        *,
        job_uid: str,
        selector: Selector,
        cursor: str,
        page_rows: int,
    ) -> None:
        self._store = store
        self._series = series
        self._job_uid = job_uid
        self._selector = selector
        self._page_rows = page_rows
        self._places: Places = decode_cursor(cursor, job_uid=job_uid, kind=WriterKind.POINTS) if cursor else {}
        self._from_steps: dict[int, int] = {}
        self._cuts = Cuts({})
        self._definitions: dict[int, SeriesDefinition | None] = {}
        self._named: set[int] = set()

    async def begin(self) -> None:
        """The cursor says it all."""

    async def history(self) -> AsyncIterator[AttemptPoints]:
        """Points up to what is stored now, attempt after attempt."""
        # In this order: what is stored was defined before.
        stored = await self._store.stored_sequences(self._job_uid, WriterKind.POINTS)
        self._learn_from_steps(await self._store.from_steps(self._job_uid))
        for definition in (await self._series.definitions([self._job_uid], Selector()))[self._job_uid]:
            self._learn_definition(definition)
        meant = [definition for definition in self._definitions.values() if definition is not None]
        counted = Counted(cuts={self._job_uid: self._cuts}, system_ids=tuple(d.series_id for d in meant if d.is_system))
        for (attempt, rank), upto in sorted(stored.items()):
            wanted = WriterPoints(
                job_uid=self._job_uid,
                attempt=attempt,
                rank=rank,
                series_ids=tuple(d.series_id for d in meant),
                counted=counted,
            )
            async for columns in self._pages(wanted, upto):
                points = self._attempt_points(attempt, columns)
                if points is not None:
                    yield points

    def joins(self, entry: Entry) -> bool:
        """Whether no message between the last one that was passed and this one is missing."""
        return entry.rows.sequence <= self._place(entry.key.attempt, entry.key.rank) + 1

    def live(self, entry: Entry) -> Iterator[AttemptPoints]:
        """The points of a message that was not passed yet, as far as they are meant and count."""
        rows, key = entry.rows, entry.key
        assert isinstance(rows, PointRows), "followers of points get points"
        if rows.sequence <= self._place(key.attempt, key.rank):
            return
        self._places[key.attempt, key.rank] = rows.sequence
        self._learn_from_steps({key.attempt: entry.from_step})
        for columns in rows.columns:
            self._learn_definition(entry.definitions[columns.series_id])
        counted = [self._counted(key.attempt, columns) for columns in rows.columns]
        points = self._attempt_points(key.attempt, [columns for columns in counted if len(columns.steps)])
        if points is not None:
            yield points

    def cursor(self) -> str:
        """The places as text."""
        return encode_cursor(self._job_uid, WriterKind.POINTS, self._places)

    async def _pages(self, wanted: WriterPoints, upto: int) -> AsyncIterator[list[PointColumns]]:
        place = self._place(wanted.attempt, wanted.rank)
        if place >= upto:
            return
        for end in await self._series.page_ends(wanted, after=place, upto=upto, rows_max=self._page_rows):
            page = await self._series.page(wanted, after=place, upto=end)
            self._places[wanted.attempt, wanted.rank] = place = end
            yield page

    def _attempt_points(self, attempt: int, columns: Sequence[PointColumns]) -> AttemptPoints | None:
        meant = tuple(c for c in columns if self._definitions.get(c.series_id) is not None)
        if not meant:
            return None
        new = [c.series_id for c in meant if c.series_id not in self._named]
        self._named.update(new)
        definitions = (self._definitions[series_id] for series_id in dict.fromkeys(new))
        return AttemptPoints(
            attempt=attempt,
            from_step=self._from_steps.get(attempt, 0),
            columns=meant,
            new_definitions=tuple(definition for definition in definitions if definition is not None),
        )

    def _counted(self, attempt: int, columns: PointColumns) -> PointColumns:
        bound = self._cuts.bound(attempt)
        definition = self._definitions[columns.series_id]
        if bound is None or definition is None or definition.is_system:
            return columns
        counts = columns.steps < bound
        return PointColumns(
            series_id=columns.series_id,
            steps=columns.steps[counts],
            times_unix_us=columns.times_unix_us[counts],
            values=columns.values[counts],
        )

    def _learn_from_steps(self, from_steps: dict[int, int]) -> None:
        if not from_steps.items() <= self._from_steps.items():
            self._from_steps |= from_steps
            self._cuts = Cuts(self._from_steps)

    def _learn_definition(self, definition: SeriesDefinition) -> None:
        """None stands for a series that is not meant."""
        if definition.series_id not in self._definitions:
            meant = self._selector.matches(definition)
            self._definitions[definition.series_id] = definition if meant else None

    def _place(self, attempt: int, rank: int) -> int:
        return self._places.get((attempt, rank), 0)
