"""Which points a query wants, and which of them count, as SQL: of rows, and of the blocks of rollups.

What counts is decided here and only here (`Counted`), for points, buckets and summaries alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.metrics.clickhouse.rollup import block, block_bits
from services.metrics.grid import AXIS_MAX, AXIS_MIN, Axis, Bounds, Interval, split
from services.metrics.point import SELECTED_SERIES_MAX, Cuts

LEVELS = (0, 1, 2)
"""Rows, and the two levels of rollups."""
# In pairs: two conditions would have ClickHouse look into the granules of each job for the series of all others.
OF_SERIES = "(job_uid, series_id) IN {series:Array(Tuple(String, UInt64))}"


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Which rows of jobs count, as SQL."""

    cuts: Mapping[str, Cuts]
    system_ids: tuple[int, ...] = ()

    def conditions(self) -> str:
        """Begins with AND, or is empty. Made of numbers and of uids that the database gave."""
        terms = [
            f"(job_uid != {quoted(job_uid)} OR attempt != {attempt:d} OR step < {bound:d})"
            for job_uid, attempt, bound in self.bounds()
        ]
        if not terms:
            return ""
        condition = " AND ".join(terms)
        if self.system_ids:
            condition = f"(series_id IN ({', '.join(map(str, self.system_ids))}) OR ({condition}))"
        return f" AND {condition}"

    def bounds(self) -> list[tuple[str, int, int]]:
        """Job uid, attempt and the first step that no longer counts, of each attempt that is cut."""
        return [
            (job_uid, attempt, bound) for job_uid, cuts in self.cuts.items() for attempt, bound in cuts.bounds.items()
        ]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Points of some series, all of which go by time or all by step, within bounds, as far as they count."""

    series: Mapping[str, tuple[int, ...]]
    """By job; at least one of each."""
    by_time: bool
    axis: Axis
    bounds: Bounds
    """On the axis, or of the steps where the axis is STEP, also of series that go by time."""
    cuts: Mapping[str, Cuts]
    """None for series that go by time."""
    origins: Mapping[str, int]
    """Where the time of each job begins, for relative time."""

    @property
    def series_ids(self) -> tuple[int, ...]:
        """Of all jobs."""
        return tuple(series_id for series_ids in self.series.values() for series_id in series_ids)

    @property
    def is_uncut(self) -> bool:
        """Whether all points count."""
        return not any(cuts.bounds for cuts in self.cuts.values())

    def origin(self, job_uid: str) -> int:
        """Where the time of a job begins."""
        return self.origins.get(job_uid, 0)

    @property
    def is_own_axis(self) -> bool:
        """Whether the series are laid out by what they go by, which is what rollups know of."""
        return self.axis is (Axis.TIME if self.by_time else Axis.STEP)

    @property
    def laid_out_by(self) -> Axis:
        """Series that go by time do so where steps are asked for."""
        return Axis.TIME if self.by_time and self.axis is Axis.STEP else self.axis

    @property
    def has_rollups(self) -> bool:
        """Whether blocks of 64 and 4,096 can answer."""
        return self.is_own_axis or (self.by_time and self.axis is Axis.STEP and self.bounds.is_whole)

    def axis_sql(self) -> str:
        """Where a point lies."""
        if self.laid_out_by is Axis.STEP:
            return "step"
        if self.laid_out_by is Axis.TIME:
            return "time_unix_us"
        if len(self.series) == 1:
            return f"(time_unix_us - {self.origin(next(iter(self.series))):d})"
        uids = ", ".join(map(quoted, self.series))
        origins = ", ".join(f"toInt64({self.origin(job_uid):d})" for job_uid in self.series)
        return f"(time_unix_us - transform(toString(job_uid), [{uids}], [{origins}], toInt64(0)))"

    def conditions(self) -> str:
        """For queries of rows. Begins with AND, or is empty."""
        bounded = "step" if self.axis is Axis.STEP else self.axis_sql()
        low = "" if self.bounds.low == AXIS_MIN else f" AND {bounded} >= {self.bounds.low:d}"
        high = "" if self.bounds.high == AXIS_MAX else f" AND {bounded} <= {self.bounds.high:d}"
        return low + high + Counted(cuts=self.cuts).conditions()

    def parameters(self) -> dict[str, Any]:
        """For the queries."""
        return {"series": pairs(self.series)}


@dataclass(frozen=True, kw_only=True)
class Position:
    """A point's place among all points of some series. Two processes of one attempt may write one series: the rank."""

    series_id: int
    place: int
    attempt: int
    sequence: int
    row: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class WriterPoints:
    """Points of one writer, of some series, as far as they count."""

    job_uid: str
    attempt: int
    rank: int
    series_ids: tuple[int, ...]
    counted: Counted

    def conditions(self) -> tuple[str, dict[str, Any]]:
        """For the queries, with their parameters."""
        condition, parameters = among(self.series_ids)
        writer = {"job_uid": self.job_uid, "attempt": self.attempt, "rank": self.rank}
        return condition + self.counted.conditions(), {**parameters, **writer}


def block_terms(
    of_attempts: Mapping[tuple[str, int], Interval | None],
    of_others: Interval | None,
    levels: Sequence[int],
    *,
    by_time: bool,
) -> list[list[str]]:
    """For each level the blocks, as SQL terms one of which must hold, that lie within the interval of their attempt."""
    bits = [block_bits(level, by_time=by_time) for level in levels]
    found: list[list[str]] = [[] for _ in levels]
    expressions = [block(level) if level else ("time_unix_us" if by_time else "step") for level in levels]

    def add(attempt: str, interval: Interval | None) -> None:
        if interval is None:
            return
        for level, intervals in enumerate(split(interval, bits)):
            terms = [_within(expressions[level], each, bits[level]) for each in intervals]
            if terms:
                found[level].append(f"({attempt} AND ({' OR '.join(terms)}))")

    for (job_uid, attempt), interval in sorted(of_attempts.items()):
        add(f"job_uid = {quoted(job_uid)} AND attempt = {attempt:d}", interval)
    named = ", ".join(f"({quoted(job_uid)}, {attempt:d})" for job_uid, attempt in sorted(of_attempts))
    add(f"(job_uid, attempt) NOT IN ({named})" if named else "1", of_others)
    return found


def _within(expression: str, interval: Interval, bits: int) -> str:
    low, high = interval
    terms = [f"{expression} >= {low:d}"] if low > AXIS_MIN >> bits else []
    terms += [f"{expression} <= {high:d}"] if high < AXIS_MAX >> bits else []
    return " AND ".join(terms) or "1"


def among(series_ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """A condition that spares reading other series. Very many would not fit into a request: the caller picks then."""
    if len(series_ids) > SELECTED_SERIES_MAX:
        return "", {}
    return " AND series_id IN {series_ids:Array(UInt64)}", {"series_ids": list(series_ids)}


def pairs(series: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Job uid and id of each series, for OF_SERIES."""
    return [(job_uid, series_id) for job_uid, series_ids in series.items() for series_id in series_ids]


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
