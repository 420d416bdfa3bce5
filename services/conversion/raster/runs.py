"""A mask as runs of pixels in column-major order, which is how COCO's RLE counts them.

Masks go in and out through one scan each, in vectors; a map of many labels is scanned once for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Bounds: TypeAlias = tuple[int, int, int, int]
"""(xmin, ymin, xmax, ymax), half-open."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Runs:
    """A mask of one map. Pixel (x, y) of a map of `height` rows has the position x * height + y.

    `starts` and `lengths` are one-dimensional, int64, of equal size; runs are in order, not empty, and as long as can
    be: between two of them lies at least one pixel. No run at all is an empty mask.
    """

    starts: Integers
    lengths: Integers

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.lengths.sum())

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Runs)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.lengths, other.lengths)
        )


def runs_of_mask(mask: NDArray[np.bool_]) -> Runs:
    """The runs of a mask of shape (height, width)."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    inside = flat[:1].any()
    bounds = np.concatenate(([0] if inside else [], edges, [flat.size] if inside ^ (edges.size & 1) else []))
    bounds = bounds.astype(np.int64)
    return Runs(starts=bounds[0::2], lengths=bounds[1::2] - bounds[0::2])


def mask_of_runs(runs: Runs, *, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of shape (height, width), its rows one after the other in memory."""
    return window_of_runs(runs, (0, 0, width, height), height=height)


def runs_of_window(window: NDArray[np.bool_], *, left: int, top: int, height: int) -> Runs:
    """The runs of a mask in a map of that height, of which the window has its first pixel at (left, top)."""
    rows, columns = window.shape
    if rows == height:
        runs = runs_of_mask(window)
        return Runs(starts=runs.starts + left * height, lengths=runs.lengths)
    apart = np.zeros((columns, rows + 1), np.bool_)  # so that no run goes on in the next column
    apart[:, :rows] = window.T
    runs = runs_of_mask(apart.T)
    across, down = np.divmod(runs.starts, rows + 1)
    return Runs(starts=(left + across) * height + top + down, lengths=runs.lengths)


def window_of_runs(runs: Runs, bounds: Bounds, *, height: int) -> NDArray[np.bool_]:
    """The part of a mask within bounds, outside of which, to their left and right, it has nothing."""
    left, top, right, bottom = bounds
    turns = np.empty(2 * runs.starts.size + 2, np.int64)
    turns[0] = left * height
    turns[1:-1:2] = runs.starts
    np.add(runs.starts, runs.lengths, out=turns[2:-1:2])
    turns[-1] = right * height
    inside = np.zeros(turns.size - 1, np.bool_)
    inside[1::2] = True
    columns = np.repeat(inside, np.diff(turns)).reshape(right - left, height)
    return np.ascontiguousarray(columns[:, top:bottom].T)


def runs_of_labels(labels: NDArray[np.uint16], count: int) -> tuple[Runs, ...]:
    """The runs of the labels 1 to `count` of a map of shape (height, width), label n at n - 1.

    A label that the map lacks has no runs; 0 is nothing. No label may be above `count`.
    """
    flat = labels.T.reshape(-1)
    first = np.ones(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    values = flat[starts]
    order = np.argsort(values, kind="stable")  # on 16 bits it is a radix sort
    lengths = np.diff(starts, append=flat.size)[order]
    starts = starts[order]
    bounds = np.searchsorted(values[order], np.arange(1, count + 2)).tolist()
    assert bounds[-1] == starts.size, "a label is above the count"
    return tuple(
        Runs(starts=starts[start:end], lengths=lengths[start:end]) for start, end in itertools.pairwise(bounds)
    )


def bounds_of_runs(runs: Runs, *, height: int) -> Bounds:
    """The smallest box around a mask that is not empty."""
    return bounds_of_many([runs], height=height)[0]


def bounds_of_many(masks: Sequence[Runs], *, height: int) -> list[Bounds]:
    """The smallest box around each mask; none may be empty. Many at once cost little more than one."""
    if not masks:
        return []
    sizes = np.array([mask.starts.size for mask in masks])
    assert sizes.all(), "an empty mask has no bounds"
    starts = np.concatenate([mask.starts for mask in masks])
    lasts = starts + np.concatenate([mask.lengths for mask in masks]) - 1
    firsts = np.cumsum(sizes) - sizes
    left, top = np.divmod(starts, height)
    right, bottom = np.divmod(lasts, height)
    across = right > left  # such a run touches the map's last row and its first
    top[across], bottom[across] = 0, height - 1
    columns = (
        left[firsts],
        np.minimum.reduceat(top, firsts),
        right[firsts + sizes - 1] + 1,
        np.maximum.reduceat(bottom, firsts) + 1,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


def runs_of_bounds(starts: Integers, ends: Integers) -> Runs:
    """The runs from each start to its end, both in order: empty ones go, and those that touch become one."""
    kept = ends > starts
    starts, ends = starts[kept], ends[kept]
    apart = starts[1:] > ends[:-1]
    if not apart.all():
        starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    return Runs(starts=starts, lengths=ends - starts)
