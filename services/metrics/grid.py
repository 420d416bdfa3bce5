"""Axes, and the grid of buckets on them. Standard library and errors only.

The grid is fixed: a bucket's width is a power of two and its first place a multiple of it, so that bounds do not move
when points come, are the same for all jobs side by side, and are the same whoever makes the buckets.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

AXIS_MIN = -(2**63)
AXIS_MAX = 2**63 - 1
WHOLE_BITS = 64

Interval = tuple[int, int]
"""First and last, both included."""


class Axis(enum.Enum):
    """What points are laid out by. Series named `system/…` go by time where STEP is asked for."""

    STEP = "step"
    TIME = "time"
    """Microseconds since 1970."""
    RELATIVE_TIME = "relative_time"
    """Microseconds since the job's first point."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """From where to where on an axis, both included."""

    low: int = AXIS_MIN
    high: int = AXIS_MAX

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return (self.low, self.high) == (AXIS_MIN, AXIS_MAX)

    def within(self, first: int, last: int) -> Interval | None:
        """What of a range lies in these bounds."""
        low, high = max(self.low, first), min(self.high, last)
        return (low, high) if low <= high else None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Buckets that are 2^bits wide. Bucket 0 begins at 0; with 64 bits it is the only one and holds everything."""

    bits: int

    @classmethod
    def over(cls, first: int, last: int, buckets_max: int) -> Grid:
        """The narrowest buckets of which at most `buckets_max` cover the range."""
        bits = 0
        while bits < WHOLE_BITS and (last >> bits) - (first >> bits) >= buckets_max:
            bits += 1
        return cls(bits=bits)

    def first(self, bucket: int) -> int:
        """Where a bucket begins."""
        return AXIS_MIN if self.bits == WHOLE_BITS else bucket << self.bits

    def last(self, bucket: int) -> int:
        """Where it ends, included."""
        return AXIS_MAX if self.bits == WHOLE_BITS else ((bucket + 1) << self.bits) - 1


def split(interval: Interval, bits: Sequence[int]) -> list[list[Interval]]:
    """The interval in blocks of 2^bits, as large as fit: intervals of block numbers for each of `bits` (rising from 0).

    Every place of the interval is in exactly one block, and no block reaches beyond it.
    """
    found: list[list[Interval]] = [[] for _ in bits]
    rest = [interval]
    for level in reversed(range(len(bits))):
        width = 1 << bits[level]
        smaller = []
        for low, high in rest:
            first, end = -(-low // width), (high + 1) // width
            if first >= end:
                smaller.append((low, high))
                continue
            found[level].append((first, end - 1))
            smaller += [(low, first * width - 1)] if low < first * width else []
            smaller += [(end * width, high)] if end * width <= high else []
        rest = smaller
    return found
