"""Buckets of series: made of points here, and of parts that ClickHouse made of very many. Both say the same.

No bucket loses a spike, and none hides a value that is not a number. First and last go by the point's place: where it
lies on the axis, then attempt, sequence, row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.metrics.grid import WHOLE_BITS, Grid

SUM_SCALE = 2.0**-64
"""Values are scaled before they are added: no sum of finite ones overflows."""
COUNTS = ("count", "nan_count", "positive_infinity_count", "negative_infinity_count")


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPoints:
    """Points of one series with their places, in no order; all columns have the same length, at least 1."""

    places: npt.NDArray[np.int64]
    """On the axis."""
    turns: npt.NDArray[np.uint64]
    """Attempt, sequence and row as one number: the order of points that lie at one place."""
    times_unix_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Parts of buckets of several series, in no order; several may make up one bucket. All columns are equally long."""

    series_ids: npt.NDArray[np.uint64]
    numbers: npt.NDArray[np.int64]
    attempts: npt.NDArray[np.uint16]
    """Parts of one bucket and attempt do not overlap on the axis."""
    columns: Mapping[str, npt.NDArray[Any]]
    """axis_min, axis_max, first, last, last_time_unix_us, minimum, maximum (NaN: none), scaled_sum, and COUNTS."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """Buckets of one series that have points, by place; all columns have the same length."""

    firsts: list[int]
    """Where on the axis each begins."""
    lasts: list[int]
    columns: Mapping[str, npt.NDArray[Any]]
    """minimum, maximum, first, last, mean, count, nan_count, …infinity_count, last_time_unix_us."""


def placed_range(series: Iterable[PlacedPoints]) -> tuple[int, int]:
    """From where to where the points of at least one series lie."""
    ends = [(int(points.places.min()), int(points.places.max())) for points in series]
    return min(first for first, _ in ends), max(last for _, last in ends)


def bucketed(points: PlacedPoints, grid: Grid) -> Buckets:
    """The buckets of points."""
    order = np.lexsort((points.turns, points.places))
    places, values = points.places[order], points.values[order]
    numbers = _numbers(places, grid)
    starts = _starts(numbers)
    ends = np.concatenate((starts[1:], [len(numbers)])) - 1
    finite = np.isfinite(values)
    counts = {
        "count": ends - starts + 1,
        "nan_count": np.add.reduceat(np.isnan(values), starts, dtype=np.int64),
        "positive_infinity_count": np.add.reduceat(values == np.inf, starts, dtype=np.int64),
        "negative_infinity_count": np.add.reduceat(values == -np.inf, starts, dtype=np.int64),
    }
    none = np.where(np.add.reduceat(finite, starts, dtype=np.int64) == 0, np.nan, 0.0)
    columns = {
        # Minus zero is zero: neither is lower than the other.
        "minimum": np.minimum.reduceat(np.where(finite, values + 0.0, np.inf), starts) + none,
        "maximum": np.maximum.reduceat(np.where(finite, values + 0.0, -np.inf), starts) + none,
        "first": values[starts],
        "last": values[ends],
        "last_time_unix_us": points.times_unix_us[order][ends],
        "scaled_sum": np.add.reduceat(np.where(finite, values, 0.0) * SUM_SCALE, starts),
        **counts,
    }
    return _made(numbers[starts], _with_means(columns), grid)


def joined(parts: Parts, grid: Grid) -> dict[int, Buckets]:
    """The buckets that the parts make up, by series."""
    if not len(parts.numbers):
        return {}
    order = np.lexsort((parts.attempts, parts.columns["axis_min"], parts.numbers, parts.series_ids))
    ids, numbers, attempts = parts.series_ids[order], parts.numbers[order], parts.attempts[order]
    of = {name: column[order] for name, column in parts.columns.items()}
    starts = np.flatnonzero(np.concatenate(([True], (ids[1:] != ids[:-1]) | (numbers[1:] != numbers[:-1]))))
    # The last of a bucket: the part that reaches furthest, of several the one of the latest attempt.
    furthest = np.lexsort((attempts, of["axis_max"], numbers, ids))
    ends = furthest[np.concatenate((starts[1:], [len(ids)])) - 1]
    columns = {
        "minimum": np.fmin.reduceat(of["minimum"], starts),
        "maximum": np.fmax.reduceat(of["maximum"], starts),
        "first": of["first"][starts],
        "last": of["last"][ends],
        "last_time_unix_us": of["last_time_unix_us"][ends],
        "scaled_sum": np.add.reduceat(of["scaled_sum"], starts),
        **{name: np.add.reduceat(of[name].astype(np.int64), starts) for name in COUNTS},
    }
    columns = _with_means(columns)
    ids, numbers = ids[starts], numbers[starts]
    found = {}
    series_starts = _starts(ids)
    for start, end in zip(series_starts, [*series_starts[1:], len(ids)], strict=True):
        of_series = {name: column[start:end] for name, column in columns.items()}
        found[int(ids[start])] = _made(numbers[start:end], of_series, grid)
    return found


def _numbers(places: npt.NDArray[np.int64], grid: Grid) -> npt.NDArray[np.int64]:
    return np.zeros_like(places) if grid.bits == WHOLE_BITS else places >> np.int64(grid.bits)


def _starts(sorted_values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.concatenate(([True], sorted_values[1:] != sorted_values[:-1])))


def _with_means(columns: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """With the mean of the finite values in place of their sum; no rounding takes it out of their range."""
    finite_counts = columns["count"] - sum(columns[name] for name in COUNTS[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = columns.pop("scaled_sum") / finite_counts / SUM_SCALE
    return {**columns, "mean": np.clip(means, columns["minimum"], columns["maximum"])}


def _made(numbers: npt.NDArray[np.int64], columns: Mapping[str, npt.NDArray[Any]], grid: Grid) -> Buckets:
    buckets = numbers.tolist()
    return Buckets(firsts=[grid.first(n) for n in buckets], lasts=[grid.last(n) for n in buckets], columns=columns)
