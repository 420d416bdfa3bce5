"""Watching a job's points: how points are found in storage, and how live ones are picked and serialised.

A place is the highest message that was passed of an attempt and rank. Points that no longer count, because a later
attempt logs their steps again, are passed and not sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.metrics.clickhouse.catalog import Catalog
from services.metrics.clickhouse.series import SeriesStore
from services.metrics.clickhouse.store import Store
from services.metrics.clickhouse.wanted import Counted, WriterPoints
from services.metrics.cursor import Places, decode_cursor
from services.metrics.follow.shared import SharedLooks, SharedPages
from services.metrics.follow.source import Page, PageSize, Piece, PieceKey
from services.metrics.point import Cuts, Selector, SeriesDefinition, logged_from_steps
from services.metrics.rows import Message, PointColumns, PointRows
from services.metrics.writer_key import WriterKind

INLINE_COLUMNS_MAX = 500
"""So many columns are picked and serialised on the event loop; more in a thread."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Meant:
    """The series of a job that a selector means."""

    definitions: Mapping[int, SeriesDefinition]
    ids: frozenset[int]
    system_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointLook:
    """How many messages each writer has stored, and the series of the job, all of which these messages may speak of."""

    places: Places
    from_steps: Mapping[int, int]
    logged: frozenset[int]
    """The attempts that cut those before them."""
    cuts: Cuts
    definitions: Sequence[SeriesDefinition]
    meant: dict[Selector, Meant] = field(default_factory=dict)
    """By selector; found once."""


class PointWire(Protocol):
    """Points and marks on the wire."""

    def names(self, definition: SeriesDefinition) -> bytes:
        """A series that is named; bodies one behind the other are a body too."""

    def columns(self, columns: PointColumns) -> bytes:
        """Points of one series; likewise."""

    def rows(self, attempt: int, from_step: int, body: bytes, cursor: str) -> bytes:
        """A message of points."""

    def caught_up(self, cursor: str) -> bytes:
        """A mark."""

    def heartbeat(self, cursor: str) -> bytes:
        """A mark."""

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """A mark."""


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """What one page holds, and of how many messages it looks."""

    rows: int
    scanned_messages: int


class Watches:
    """What all watches share."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        series: SeriesStore,
        pages: SharedPages,
        wire: PointWire,
        *,
        limits: WatchLimits,
    ) -> None:
        self.series = series
        self.pages = pages
        self.wire = wire
        self.limits = limits
        self._store = store
        self._catalog = catalog
        self._looks: SharedLooks[PointLook] = SharedLooks()

    async def look(self, job_uid: str) -> PointLook:
        """What is stored of a job's points now."""

        async def look() -> PointLook:
            # In this order: what is stored was defined before.
            places = await self._store.stored_sequences(job_uid, WriterKind.POINTS)
            from_steps, logged = await self._catalog.attempts(job_uid)
            definitions = await self._catalog.all_definitions(job_uid)
            cuts = Cuts(logged_from_steps(from_steps, logged))
            return PointLook(places=places, from_steps=from_steps, logged=logged, cuts=cuts, definitions=definitions)

        return await self._looks.get(job_uid, look)

    async def begin(self, job_uid: str, cursor: str) -> Places:
        """The places before the first point that is wanted."""
        return decode_cursor(cursor, job_uid=job_uid, kind=WriterKind.POINTS) if cursor else {}


class PointSource:
    """A `Source` of points."""

    kind = WriterKind.POINTS

    def __init__(self, watches: Watches, *, job_uid: str, selector: Selector) -> None:
        self.job_uid = job_uid
        self._watches = watches
        self._wire = watches.wire
        self._selector = selector
        self._live_definitions: dict[int, SeriesDefinition | None] = {}
        """None stands for a series that is not meant."""
        self._named: frozenset[int] = frozenset()
        self._from_steps: dict[int, int] = {}
        self._logged: set[int] = set()
        self._cuts = Cuts({})

    @property
    def named(self) -> frozenset[int]:
        """The series that live points may be of."""
        return self._named

    async def look(self) -> PointLook:
        """What is stored now."""
        look = await self._watches.look(self.job_uid)
        if self._selector not in look.meant:
            look.meant[self._selector] = await asyncio.to_thread(_meant, look.definitions, self._selector)
        return look

    async def greeting(self, look: PointLook, named: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """The series of the job that are meant."""
        meant = look.meant[self._selector]
        unnamed = meant.ids - named if named else meant.ids
        if not unnamed:
            return ()
        if named:
            return self._naming((meant.definitions[each] for each in unnamed), bytes_max)

        async def read() -> Page:
            return Page(pieces=tuple(self._naming(meant.definitions.values(), bytes_max)), end=0)

        key = (self.job_uid, self.kind, self._selector, unnamed, bytes_max)
        return (await self._watches.pages.get(key, read)).pieces

    async def page(self, look: PointLook, writer: tuple[int, int], *, after: int, size: PageSize) -> Page:
        """The next messages of a writer: about a page of points that are meant and count, or one message."""
        upto = min(look.places[writer], after + self._watches.limits.scanned_messages)
        attempt, rank = writer
        meant = look.meant[self._selector]
        if not meant.ids:
            return Page(pieces=(), end=upto)
        wanted = WriterPoints(
            job_uid=self.job_uid,
            attempt=attempt,
            rank=rank,
            series_ids=tuple(meant.ids),
            counted=Counted(cuts={self.job_uid: look.cuts}, system_ids=meant.system_ids),
        )
        bound = look.cuts.bound(attempt)
        key = (self.job_uid, self.kind, self._selector, writer, after, upto, bound)

        async def read() -> Page:
            return await self._page(wanted, look.from_steps.get(attempt, 0), after=after, upto=upto)

        return await self._watches.pages.get(key, read)

    def span(self, message: Message) -> tuple[int, int]:
        """The message's number."""
        return message.rows.sequence, message.rows.sequence

    def begin_live(self, look: PointLook) -> None:
        """Live points are of these series, or of new ones."""
        meant = look.meant[self._selector]
        self._live_definitions = {each.series_id: meant.definitions.get(each.series_id) for each in look.definitions}
        self._named = meant.ids
        self._from_steps, self._logged, self._cuts = dict(look.from_steps), set(look.logged), look.cuts

    async def live(self, messages: Sequence[Message], *, bytes_max: int) -> Sequence[Piece]:
        """The points that are meant and count."""
        for message in messages:
            self._learn_attempt(message)
        if sum(len(_rows(message).series_ids) for message in messages) <= INLINE_COLUMNS_MAX:
            return list(self._live(messages))
        return await asyncio.to_thread(lambda: list(self._live(messages)))

    def naming(self, ids: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """What tells a stream of these series."""
        definitions = (self._live_definitions[series_id] for series_id in ids)
        return self._naming((each for each in definitions if each is not None), bytes_max)

    def rows(self, key: PieceKey, body: bytes, cursor: str) -> bytes:
        """A message of points."""
        attempt, from_step = key
        return self._wire.rows(attempt, from_step, body, cursor)

    def caught_up(self, cursor: str) -> bytes:
        """A message."""
        return self._wire.caught_up(cursor)

    def heartbeat(self, cursor: str) -> bytes:
        """A message."""
        return self._wire.heartbeat(cursor)

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """A message."""
        return self._wire.ended(cursor, state=state, complete=complete)

    async def _page(self, wanted: WriterPoints, from_step: int, *, after: int, upto: int) -> Page:
        ends = await self._watches.series.page_ends(wanted, after=after, upto=upto, rows_max=self._watches.limits.rows)
        columns = await self._watches.series.page(wanted, after=after, upto=ends[0])
        if not columns:
            return Page(pieces=(), end=ends[0])
        body = await asyncio.to_thread(lambda: b"".join(map(self._wire.columns, columns)))
        writer = (wanted.attempt, wanted.rank)
        piece = Piece(key=(wanted.attempt, from_step), body=body, places={writer: ends[0]})
        return Page(pieces=(piece,), end=ends[0])

    def _live(self, messages: Sequence[Message]) -> Iterator[Piece]:
        for message in messages:
            attempt, rank = message.key.attempt, message.key.rank
            body, new = [], []
            for columns in _rows(message).columns:
                series_id = columns.series_id
                if series_id not in self._live_definitions:
                    definition = message.definitions[series_id]
                    meant = definition if self._selector.matches(definition) else None
                    self._live_definitions[series_id] = meant
                    if meant is not None:
                        new.append(series_id)
                        body.append(self._wire.names(meant))
                counted = self._counted(attempt, columns)
                if counted is not None:
                    body.append(self._wire.columns(counted))
            if new:
                self._named |= frozenset(new)
            if body:
                key = (attempt, self._from_steps.get(attempt, 0))
                places = {(attempt, rank): message.rows.sequence}
                yield Piece(key=key, body=b"".join(body), places=places, named=frozenset(new))

    def _counted(self, attempt: int, columns: PointColumns) -> PointColumns | None:
        """The points that are meant and count; None where none is."""
        definition = self._live_definitions[columns.series_id]
        if definition is None:
            return None
        bound = self._cuts.bound(attempt)
        if bound is None or definition.is_system:
            return columns
        counts = columns.steps < bound
        if not counts.any():
            return None
        return PointColumns(
            series_id=columns.series_id,
            steps=columns.steps[counts],
            times_unix_us=columns.times_unix_us[counts],
            values=columns.values[counts],
        )

    def _learn_attempt(self, message: Message) -> None:
        attempt = message.key.attempt
        self._from_steps[attempt] = message.from_step
        if attempt in self._logged or all(
            message.definitions[series_id].is_system for series_id in _rows(message).series_ids.tolist()
        ):
            return
        self._logged.add(attempt)
        self._cuts = Cuts(logged_from_steps(self._from_steps, self._logged))

    def _naming(self, definitions: Iterable[SeriesDefinition], bytes_max: int) -> list[Piece]:
        pieces: list[Piece] = []
        bodies: list[bytes] = []
        ids: list[int] = []
        size_bytes = 0

        def end() -> None:
            if ids:
                pieces.append(Piece(key=(0, 0), body=b"".join(bodies), places={}, named=frozenset(ids)))

        for definition in definitions:
            body = self._wire.names(definition)
            if size_bytes + len(body) > bytes_max:
                end()
                bodies, ids, size_bytes = [], [], 0
            bodies.append(body)
            ids.append(definition.series_id)
            size_bytes += len(body)
        end()
        return pieces


def _meant(definitions: Sequence[SeriesDefinition], selector: Selector) -> Meant:
    by_id = {each.series_id: each for each in definitions if selector.matches(each)}
    system_ids = tuple(each.series_id for each in by_id.values() if each.is_system)
    return Meant(definitions=by_id, ids=frozenset(by_id), system_ids=system_ids)


def _rows(message: Message) -> PointRows:
    assert isinstance(message.rows, PointRows), "followers of points get points"
    return message.rows
