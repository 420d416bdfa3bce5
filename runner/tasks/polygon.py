"""Quadrilaterals as polygons: how much they overlap. Those that are concave, or bow-ties, are what they enclose."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from runner.tasks.objects import Flags
from runner.trainer.view import Floats


def polygons_of(quads: Floats) -> NDArray[Any]:
    """Of corners, (n, 4, 2)."""
    found: NDArray[Any] = shapely.polygons(quads.reshape(-1, 4, 2))
    broken = ~shapely.is_valid(found)
    found[broken] = shapely.make_valid(found[broken])
    return found


def polygon_overlaps(first: NDArray[Any], second: NDArray[Any], crowd: Flags) -> Floats:
    """The intersection over union of each pair, first x second; over the first one alone where that is a crowd."""
    overlaps = np.zeros((len(first), len(second)))
    if not overlaps.size:
        return overlaps
    rows, columns = shapely.STRtree(second).query(first, predicate="intersects")
    inside = shapely.area(shapely.intersection(first[rows], second[columns]))
    areas, others = shapely.area(first), shapely.area(second)
    union = np.where(crowd[columns], areas[rows], areas[rows] + others[columns] - inside)
    overlaps[rows, columns] = inside / np.maximum(union, np.finfo(np.float64).tiny)
    return overlaps


def without_doubles(polygons: NDArray[Any], categories: NDArray[Any], overlap_max: float) -> Flags:
    """Which polygons, the likeliest first, are no double of a likelier one of their category."""
    kept = np.ones(len(polygons), np.bool_)
    none = np.zeros(len(polygons), np.bool_)
    double = polygon_overlaps(polygons, polygons, none) > overlap_max
    double &= categories[:, None] == categories[None]
    for place in range(len(polygons)):
        if kept[place]:
            kept[place + 1 :] &= ~double[place, place + 1 :]
    return kept
