"""Buckets of a series: made here for few points, and by ClickHouse for many (`series.BUCKETS`). Both say the same.

No bucket loses a spike, and none hides a value that is not a number. First and last go by the point's place: step, then
attempt, then sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.metrics.point import BucketBounds


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPoints:
    """Points of one series with their places, in no order; all columns have the same length, at least 1."""

    steps: npt.NDArray[np.int64]
    attempts: npt.NDArray[np.uint16]
    sequences: npt.NDArray[np.uint64]
    times_unix_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """Buckets of one series that have points, by step; all columns have the same length."""

    first_steps: list[int]
    last_steps: list[int]
    columns: Mapping[str, npt.NDArray[Any]]
    """minimum, maximum, first, last, mean, count, nan_count, …infinity_count, last_time_unix_us."""

    @classmethod
    def of(cls, numbers: Sequence[int], columns: Mapping[str, npt.NDArray[Any]], bounds: BucketBounds) -> Buckets:
        """The buckets with these numbers, counted from the first of `bounds`."""
        first_steps = [bounds.first_step(number) for number in numbers]
        return cls(
            first_steps=first_steps, last_steps=[bounds.last_step(step) for step in first_steps], columns=columns
        )


def bucketed(points: PlacedPoints, bounds: BucketBounds) -> Buckets:
    """The buckets of points, all of which lie within `bounds`."""
    order = np.lexsort((points.sequences, points.attempts, points.steps))
    steps, values = points.steps[order], points.values[order]
    # The difference of steps may wrap around as a signed number and is then right as an unsigned one.
    numbers = (steps - np.int64(bounds.first)).view(np.uint64) // np.uint64(bounds.width)
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    lasts = np.concatenate((starts[1:], [len(numbers)])) - 1
    finite = np.isfinite(values)
    finite_counts = np.add.reduceat(finite, starts, dtype=np.int64)
    none = np.where(finite_counts == 0, np.nan, 0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        columns = {
            "minimum": np.minimum.reduceat(np.where(finite, values, np.inf), starts) + none,
            "maximum": np.maximum.reduceat(np.where(finite, values, -np.inf), starts) + none,
            "first": values[starts],
            "last": values[lasts],
            "mean": np.add.reduceat(np.where(finite, values, 0.0), starts) / finite_counts,
            "count": lasts - starts + 1,
            "nan_count": np.add.reduceat(np.isnan(values), starts, dtype=np.int64),
            "positive_infinity_count": np.add.reduceat(values == np.inf, starts, dtype=np.int64),
            "negative_infinity_count": np.add.reduceat(values == -np.inf, starts, dtype=np.int64),
            "last_time_unix_us": points.times_unix_us[order][lasts],
        }
    return Buckets.of(numbers[starts].tolist(), columns, bounds)
