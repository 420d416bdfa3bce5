"""What is recorded of jobs once and never changes: what their series are, where their attempts began.

Rows are only ever added, so what was read is remembered until this process adds some (`forget`), or, where other
processes write to the same ClickHouse, until the number of rows says that somebody has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from services.metrics.clickhouse.rollup import BY_WRITER, FEW
from services.metrics.clickhouse.store import Store
from services.metrics.point import Cuts, Selector, SeriesDefinition, logged_from_steps

# A series may be recorded twice.
DEFINITIONS = """
SELECT job_uid, series_id, name, context, unit FROM series
WHERE job_uid IN {{job_uids:Array(String)}}{conditions}
LIMIT 1 BY job_uid, series_id LIMIT {{definitions:UInt64}}
"""
# The table's own order, job after job as they are asked for.
PAGE = """
SELECT job_uid, series_id, name, context, unit FROM series
WHERE job_uid IN {{job_uids:Array(String)}}{conditions}{after}
ORDER BY indexOf({{job_uids:Array(String)}}, job_uid), name, series_id
LIMIT 1 BY job_uid, name, series_id LIMIT {{definitions:UInt64}}
"""
AFTER = """
  AND (job_uid IN {later_job_uids:Array(String)}
    OR (job_uid = {after_job_uid:String} AND (name, series_id) > ({after_name:String}, {after_series_id:UInt64})))"""
FROM_STEPS = """
SELECT job_uid, attempt, max(from_step) AS from_step FROM writers
WHERE job_uid IN {job_uids:Array(String)} GROUP BY job_uid, attempt
"""
LOGGED = f"""
SELECT job_uid, attempt, min(by_time) AS only_by_time FROM points
WHERE job_uid IN {{job_uids:Array(String)}} GROUP BY job_uid, attempt {BY_WRITER}
"""  # noqa: S608 — BY_WRITER is ours
ROW_COUNTS = """
SELECT job_uid, countIf(is_series) AS series, countIf(NOT is_series) AS writers FROM (
    SELECT job_uid, true AS is_series FROM series WHERE job_uid IN {job_uids:Array(String)}
    UNION ALL SELECT job_uid, false FROM writers WHERE job_uid IN {job_uids:Array(String)}
) GROUP BY job_uid
"""
NO_LIMIT = 2**63
RE2_PLAIN = frozenset("_/-")
"""Beside letters and digits; everything else of ASCII gets a backslash, and nothing else of Unicode means anything."""

RowCounts = tuple[int, int]
NO_ROWS: RowCounts = (0, 0)


@dataclass(kw_only=True, eq=False)
class KnownJob:
    """What is remembered of a job, which had so many rows when it was read."""

    row_counts: RowCounts
    definitions: dict[Selector, tuple[SeriesDefinition, ...]] = field(default_factory=dict)
    from_steps: Mapping[int, int] | None = None
    logged: set[int] = field(default_factory=set)
    """Attempts that have logged a point of a series that goes by step."""
    weight: int = 1


class Catalog:
    """Series and attempts of jobs. Used from one event loop."""

    def __init__(self, store: Store, *, definitions_max: int) -> None:
        self._store = store
        self._definitions_max = definitions_max
        self._jobs: OrderedDict[str, KnownJob] = OrderedDict()
        self._weight = 0
        store.on_recorded(self.forget)

    async def definitions(
        self, job_uids: Sequence[str], selector: Selector, *, most: int
    ) -> dict[str, tuple[SeriesDefinition, ...]] | None:
        """The series that are meant, by job, sorted by name and context; None where they are more than `most`."""
        known = await self._known(job_uids)
        missing = [job_uid for job_uid in known if selector not in known[job_uid].definitions]
        if missing:
            conditions, parameters = conditions_of(selector)
            sql = DEFINITIONS.format(conditions=conditions) + FEW
            by_job = await self._store.read_into(
                _definitions_by_job, sql, job_uids=missing, definitions=most + 1, **parameters
            )
            if sum(map(len, by_job.values())) > most:
                return None
            for job_uid in missing:
                self._remember_definitions(job_uid, known[job_uid], selector, by_job.get(job_uid, ()))
        found = {job_uid: known[job_uid].definitions[selector] for job_uid in job_uids}
        return found if sum(map(len, found.values())) <= most else None

    async def page(
        self,
        job_uids: Sequence[str],
        selector: Selector,
        *,
        name_prefix: str,
        after: tuple[str, str, int] | None,
        size: int,
    ) -> list[tuple[str, SeriesDefinition]]:
        """At most `size` series with their jobs, in the order of the jobs, name and id, after (job uid, name, id)."""
        if after is None and not name_prefix:
            # What fits into one page is remembered as a whole.
            whole = await self.definitions(job_uids, selector, most=size)
            if whole is not None:
                return [(job_uid, definition) for job_uid in job_uids for definition in whole[job_uid]]
        conditions, parameters = conditions_of(selector)
        if name_prefix:
            conditions += " AND startsWith(name, {name_prefix:String})"
            parameters["name_prefix"] = name_prefix
        if after is not None:
            job_uid, name, series_id = after
            parameters |= {
                "later_job_uids": list(job_uids[job_uids.index(job_uid) + 1 :]),
                "after_job_uid": job_uid,
                "after_name": name,
                "after_series_id": series_id,
            }
        sql = PAGE.format(conditions=conditions, after=AFTER if after is not None else "") + FEW
        return await self._store.read_into(_definitions, sql, job_uids=list(job_uids), definitions=size, **parameters)

    async def cuts(self, job_uids: Collection[str]) -> dict[str, Cuts]:
        """Where the attempts of each job stop to count."""
        known = await self._attempts(job_uids)
        return {job_uid: Cuts(logged_from_steps(job.from_steps or {}, job.logged)) for job_uid, job in known.items()}

    async def _attempts(self, job_uids: Collection[str]) -> dict[str, KnownJob]:
        """What is remembered of each job, with its attempts."""
        known = await self._known(job_uids)
        missing = [job_uid for job_uid, job in known.items() if job.from_steps is None]
        if missing:
            found: dict[str, dict[int, int]] = {job_uid: {} for job_uid in missing}
            for row in (await self._store.read(FROM_STEPS + FEW, job_uids=missing)).to_pylist():
                found[row["job_uid"]][row["attempt"]] = row["from_step"]
            for job_uid in missing:
                known[job_uid].from_steps = found[job_uid]
        await self._learn_logged(known)
        return known

    async def attempts(self, job_uid: str) -> tuple[Mapping[int, int], frozenset[int]]:
        """The first step of each attempt of a job that has opened a writer, and which attempts cut those before them:
        what `logged_from_steps` takes."""
        job = (await self._attempts([job_uid]))[job_uid]
        return job.from_steps or {}, frozenset(job.logged)

    async def all_definitions(self, job_uid: str) -> tuple[SeriesDefinition, ...]:
        """Of a job, however many; they are not remembered."""
        sql = DEFINITIONS.format(conditions="") + FEW
        found = await self._store.read_into(_definitions_by_job, sql, job_uids=[job_uid], definitions=NO_LIMIT)
        return found.get(job_uid, ())

    def forget(self, job_uids: Iterable[str]) -> None:
        """Rows of these jobs were recorded. Who reads at this moment keeps its answer to itself."""
        for job_uid in job_uids:
            known = self._jobs.pop(job_uid, None)
            if known is not None:
                self._weight -= known.weight

    async def _known(self, job_uids: Collection[str]) -> dict[str, KnownJob]:
        """What is remembered of each job, and holds still. What is new is remembered before it is read: `forget` then
        takes it out of the memory, and not out of the hands of who fills it."""
        counts: Mapping[str, RowCounts] = {}
        if self._store.is_shared:
            rows = await self._store.read(ROW_COUNTS + FEW, job_uids=list(job_uids))
            counts = {row["job_uid"]: (row["series"], row["writers"]) for row in rows.to_pylist()}
        found = {}
        for job_uid in job_uids:
            known = self._jobs.get(job_uid)
            if known is None or known.row_counts != counts.get(job_uid, NO_ROWS):
                self.forget([job_uid])
                known = self._jobs[job_uid] = KnownJob(row_counts=counts.get(job_uid, NO_ROWS))
                self._weight += known.weight
            self._jobs.move_to_end(job_uid)
            found[job_uid] = known
        self._evict()
        return found

    async def _learn_logged(self, known: Mapping[str, KnownJob]) -> None:
        """Only a later attempt can cut one, and that it has logged stays true."""
        open_questions = [
            job_uid
            for job_uid, job in known.items()
            if job.from_steps and not set(sorted(job.from_steps)[1:]) <= job.logged
        ]
        if not open_questions:
            return
        for row in (await self._store.read(LOGGED, job_uids=open_questions)).to_pylist():
            if not row["only_by_time"]:
                known[row["job_uid"]].logged.add(row["attempt"])

    def _remember_definitions(
        self, job_uid: str, known: KnownJob, selector: Selector, definitions: tuple[SeriesDefinition, ...]
    ) -> None:
        if selector in known.definitions:
            return
        known.definitions[selector] = definitions
        if self._jobs.get(job_uid) is known:
            self._weight += 1 + len(definitions)
            known.weight += 1 + len(definitions)
        self._evict()

    def _evict(self) -> None:
        while self._weight > self._definitions_max and self._jobs:
            self.forget([next(iter(self._jobs))])


def conditions_of(selector: Selector) -> tuple[str, dict[str, Any]]:
    """The selector as SQL that begins with AND, with its parameters: the same choice that `Selector.matches` makes."""
    terms, parameters = [], dict[str, Any]()
    if selector.exact_names:
        terms.append("name IN {names:Array(String)}")
        parameters["names"] = list(selector.exact_names)
    if selector.patterns:
        terms.append("match(name, {pattern:String})")
        parameters["pattern"] = re2_of(selector.patterns)
    condition = f" AND ({' OR '.join(terms)})" if terms else ""
    for index, (key, value) in enumerate(selector.context):
        parameter = f"{{key{index}:String}}"
        condition += f" AND mapContains(context, {parameter}) AND context[{parameter}] = {{value{index}:String}}"
        parameters |= {f"key{index}": key, f"value{index}": value}
    return condition, parameters


def re2_of(patterns: Iterable[str]) -> str:
    """One RE2 expression that takes what one of the patterns takes, where `*` stands for any text."""
    choices = "|".join(".*".join(map(_escaped, pattern.split("*"))) for pattern in patterns)
    return f"^(?s:{choices})$"


def _escaped(text: str) -> str:
    return "".join(c if c.isalnum() or c in RE2_PLAIN or not c.isascii() else f"\\{c}" for c in text)


def _definitions(rows: pa.Table) -> list[tuple[str, SeriesDefinition]]:
    columns = (rows[name].to_pylist() for name in ("job_uid", "series_id", "name", "context", "unit"))
    return [
        (job_uid, SeriesDefinition(series_id=series_id, name=name, context=tuple(sorted(context)), unit=unit))
        for job_uid, series_id, name, context, unit in zip(*columns, strict=True)
    ]


def _definitions_by_job(rows: pa.Table) -> dict[str, tuple[SeriesDefinition, ...]]:
    found: dict[str, list[SeriesDefinition]] = {}
    for job_uid, definition in _definitions(rows):
        found.setdefault(job_uid, []).append(definition)
    return {job_uid: tuple(sorted(of_job, key=lambda d: (d.name, d.context))) for job_uid, of_job in found.items()}
