"""Panoptic quality (Kirillov et al. 2019), by the rules of COCO's panopticapi.

A predicted and a true segment match where they have one category and overlap by more than a half; void pixels of the
truth count on neither side. A segment that lies mostly in void, or in a crowd of its category, is not wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.tasks.average_precision import CATEGORIES_TOLD_APART_MAX
from runner.tasks.objects import Flags, Integers
from runner.tasks.task import MetricValue

METRICS = ("pq", "sq", "rq", "pq_things", "pq_stuff")
OVERLAP_MIN = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """Segments of one image: in `labels` 0 is void and n the nth segment, whose category, from 0 on, is in order."""

    labels: NDArray[Any]
    categories: Integers


class PanopticQuality:
    """Gathers images. `things` are the categories whose segments are instances."""

    def __init__(self, names: Sequence[str], things: Collection[int]) -> None:
        self._names = names
        self._things = np.array([index in things for index in range(len(names))], np.bool_)
        count = len(names)
        self._overlap = np.zeros(count)
        self._right, self._wrong, self._missed = (np.zeros(count, np.int64) for _ in range(3))

    def add(self, truth: Segmented, crowd: Flags, found: Segmented) -> None:
        """An image; `crowd` is by true segment."""
        rows, columns = len(truth.categories) + 1, len(found.categories) + 1
        pairs = truth.labels.ravel().astype(np.int64) * columns + found.labels.ravel()
        shared = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
        areas = shared.sum(axis=0)[1:]
        void = shared[0, 1:]
        inside = shared[1:, 1:]
        union = areas + shared.sum(axis=1)[1:, None] - inside - void
        same = truth.categories[:, None] == found.categories[None]
        overlap = inside / np.maximum(union, 1)
        match = same & ~crowd[:, None] & (overlap > OVERLAP_MIN)  # of no segment can more than one match
        of_truth, of_found = np.nonzero(match)
        np.add.at(self._overlap, truth.categories[of_truth], overlap[of_truth, of_found])
        np.add.at(self._right, truth.categories[of_truth], 1)
        missed = ~match.any(axis=1) & ~crowd
        np.add.at(self._missed, truth.categories[missed], 1)
        excused = void + (inside * (same & crowd[:, None])).sum(axis=0)
        wrong = ~match.any(axis=0) & (excused <= OVERLAP_MIN * areas) & (areas > 0)
        np.add.at(self._wrong, found.categories[wrong], 1)

    def values(self) -> list[MetricValue]:
        """The means over the categories that occur; none where none does."""
        occurs = self._right + self._wrong + self._missed > 0
        if not occurs.any():
            return []
        segmentation = self._overlap / np.maximum(self._right, 1)
        recognition = self._right / np.maximum(self._right + (self._wrong + self._missed) / 2, 0.5)
        quality = segmentation * recognition
        values = [
            MetricValue(name="pq", value=float(quality[occurs].mean())),
            MetricValue(name="sq", value=float(segmentation[occurs].mean())),
            MetricValue(name="rq", value=float(recognition[occurs].mean())),
        ]
        for name, some in (("pq_things", occurs & self._things), ("pq_stuff", occurs & ~self._things)):
            if some.any():
                values.append(MetricValue(name=name, value=float(quality[some].mean())))
        if len(self._names) <= CATEGORIES_TOLD_APART_MAX:
            values += [
                MetricValue(name="quality", value=float(quality[index]), context={"class": self._names[index]})
                for index in np.flatnonzero(occurs).tolist()
            ]
        return values
