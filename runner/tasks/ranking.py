"""How good an order by scores is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(positive: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """The area under the steps of precision over recall; at least one is positive. Equal scores count as one step."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of those with equal scores
    found, shown = hits[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) * (found / shown)).sum() / hits[-1])


def area_under_roc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The share of pairs of a positive and a negative that are in order; equal scores are half in order.

    There is at least one of each.
    """
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # the mean place of those with equal scores
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    return float((middle[ranks][positive].sum() - positives * (positives + 1) / 2) / pairs)
