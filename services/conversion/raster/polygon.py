"""Polygons to masks by COCO's own rule, and masks to polygons along the edges of their pixels.

COCO draws an outline on a grid five times as fine, and takes a column's pixels between the outline's crossings of the
column's middle. No other way of filling gives the same pixels, so pycocotools does it. It believes whatever it gets,
in C: nothing may reach it here that was not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from services.conversion.raster.error import RasterError
from services.conversion.raster.rle import decode_rle
from services.conversion.raster.runs import Integers, Runs, bounds_of_runs, window_of_runs

COORDINATE_MAX = 2**27
"""Pixels. Five times as many, the difference of two included, is a number of C."""
OUTLINE_PIXELS_MAX = 1_000_000
"""Of the outlines of one mask, across and down added up, but for the last edge of each: the others bound it."""
MERGED_MAX = 32
"""Masks that are merged at once: each goes through all that was before it."""


def runs_of_polygons(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> Runs:
    """The union of polygons, each [x0, y0, x1, y1, …]. Raises RasterError (bad_polygon)."""
    return decode_rle(rle_of_polygons(polygons, height=height, width=width), height=height, width=width)


def rle_of_polygons(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> bytes:
    """The same as an RLE's text: many of them are best decoded at once. At least one polygon must be given."""
    masks = coco.frPyObjects(_checked(polygons), height, width)
    while len(masks) > 1:
        masks = [coco.merge(masks[start : start + MERGED_MAX]) for start in range(0, len(masks), MERGED_MAX)]
    text: bytes = masks[0]["counts"]
    return text


def _checked(polygons: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    """The polygons where pycocotools can take them."""
    if not polygons:
        raise RasterError("bad_polygon", "has no polygon")
    checked = []
    outline = 0.0
    for polygon in polygons:
        try:
            numbers = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise RasterError("bad_polygon", "has a polygon that is no list of numbers") from error
        if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2:
            problem = f"has a polygon of {numbers.size} numbers, where x and y of at least 3 corners were wanted"
            raise RasterError("bad_polygon", problem)
        if not np.abs(numbers).max() < COORDINATE_MAX:  # also where it is not a number
            raise RasterError("bad_polygon", "has a polygon with a coordinate that no map has")
        outline += np.abs(numbers[2:] - numbers[:-2]).sum() + numbers.size // 2
        if outline > OUTLINE_PIXELS_MAX:
            raise RasterError("bad_polygon", f"has an outline of more than {OUTLINE_PIXELS_MAX} pixels")
        checked.append(numbers)
    return checked


def polygons_of_runs(runs: Runs, *, height: int, width: int) -> list[list[int]]:
    """The outlines of a mask along the edges of pixels, each [x0, y0, x1, y1, …] with a right angle at each corner.

    What lies within an odd number of them is the mask. On the screen the outline of an area goes clockwise, that of a
    hole the other way. Pixels that touch at a corner alone are areas of their own. Rings come in the order of their
    highest corners, of which they begin with the leftmost.
    """
    if not runs.starts.size:
        return []
    left, top, right, _ = bounds = bounds_of_runs(runs, height=height)
    assert right <= width, "the mask is of a wider map"
    xs, ys, across, down, inside = _grid_corners(np.pad(window_of_runs(runs, bounds, height=height), 1))
    corners = np.stack([xs + left, ys + top], axis=1)
    rings: list[list[int]] = []
    seen = [False] * len(corners)
    for first, outline in enumerate(inside):
        if seen[first]:
            continue
        places: list[int] = []
        place = first
        while not seen[place]:
            mate = across[place]
            places += (place, mate)
            seen[place] = seen[mate] = True
            place = down[mate]
        # It went along the upper edge to the right, so that it is clockwise.
        ring = corners[places if outline else [first, *reversed(places[1:])]]
        rings.append(ring.reshape(-1).tolist())
    return rings


def _grid_corners(padded: NDArray[np.bool_]) -> tuple[Integers, Integers, list[int], list[int], list[bool]]:
    """The corners of a mask with a border of nothing around it, by rows; where two areas touch, one for each of them.

    Gives x, y, the corner at the other end of the edge across, that of the edge down or up, and whether the pixel to
    the lower right is inside. Edges never cross: along each line corners pair up from its beginning.
    """
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    corner = upper_left ^ upper_right ^ lower_left ^ lower_right
    touch = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    ys, xs = np.nonzero(corner | touch)
    times = 1 + touch[ys, xs]
    inside = np.repeat(lower_right[ys, xs], times)
    # The first of two corners at one place has the edge to the left, the second the edge to the right. The area that
    # has that edge is above where it is the lower left or the upper right one.
    crossed = np.repeat(touch[ys, xs] & upper_right[ys, xs], times)
    second = np.arange(len(inside)) - np.repeat(np.cumsum(times) - times, times)
    ys, xs = np.repeat(ys, times), np.repeat(xs, times)
    order = np.lexsort((np.where(crossed, 1 - second, second), ys, xs))
    down = np.empty(len(order), np.int64)
    down[order[0::2]], down[order[1::2]] = order[1::2], order[0::2]
    across = np.arange(len(order)) ^ 1
    return xs.astype(np.int64), ys.astype(np.int64), across.tolist(), down.tolist(), inside.tolist()
