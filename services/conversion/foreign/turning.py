"""Boxes that are turned: where their corners are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.conversion.formats.number import Point


def turned_around(points: Sequence[Point], middle: Point, degrees: float) -> tuple[Point, ...]:
    """Points turned clockwise, as it is seen, around a middle."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x0, y0 = middle
    return tuple(
        (x0 + (x - x0) * cosine - (y - y0) * sine, y0 + (x - x0) * sine + (y - y0) * cosine) for x, y in points
    )


def corners_of_box(box: Sequence[float]) -> tuple[float, ...]:
    """x and y of the corners of a box, clockwise from the top left."""
    left, top, right, bottom = box
    return left, top, right, top, right, bottom, left, bottom
