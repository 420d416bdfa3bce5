"""Polygons to masks by COCO's own rule, and masks to polygons along the edges of their pixels.

COCO draws an outline on a grid five times as fine, and takes a column's pixels between the outline's crossings of the
column's middle. The result equals pycocotools' to the pixel, which no other way of filling does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.conversion.raster.error import RasterError
from services.conversion.raster.runs import Integers, Runs, bounds_of_runs, union_of_bounds, window_of_runs

SCALE = 5
"""Fine steps of a pixel."""
POINTS_MAX = 2**22
"""Fine points of the outlines of one mask."""


def runs_of_polygons(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> Runs:
    """The union of polygons, each [x0, y0, x1, y1, …]. Raises RasterError (bad_polygon)."""
    if not polygons:
        return Runs(starts=np.zeros(0, np.int64), lengths=np.zeros(0, np.int64))
    corners = [_corners(polygon) for polygon in polygons]
    sizes = np.array([len(each) for each in corners])
    x, y, edge = _outline(np.concatenate(corners), sizes)
    # The middle of column c lies between the fine columns 5c + 2 and 5c + 3; each step from one to the other counts.
    column = (x + SCALE // 2) // SCALE
    step = np.flatnonzero(column[1:] != column[:-1])
    polygon = np.repeat(np.arange(len(sizes)), sizes)[edge[step]]
    column = np.minimum(column[step], column[step + 1])
    kept = (column >= 0) & (column < width) & (step + 1 < edge.searchsorted(sizes.cumsum())[polygon])
    step, column, polygon = step[kept], column[kept], polygon[kept]
    # The first pixel of the column whose middle is not above.
    row = (np.minimum(y[step], y[step + 1]) + SCALE // 2) // SCALE
    row = np.minimum(np.maximum(row, 0), height)  # np.clip takes five times as long for so few
    # A polygon's crossings in order are where it begins and ends by turns; where one is left over, the map's end.
    pixels = height * width
    crossings = polygon * (pixels + 1) + column * height + row
    odd = np.flatnonzero(np.bincount(polygon) % 2)
    crossings = np.append(crossings, odd * (pixels + 1) + pixels)
    crossings.sort()
    crossings %= pixels + 1
    return union_of_bounds(crossings[0::2], crossings[1::2])


def _corners(polygon: Sequence[float]) -> Integers:
    """The corners (corners, 2) of a polygon in fine steps."""
    try:
        numbers = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RasterError("bad_polygon", "has a polygon that is no list of numbers") from error
    if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2:
        problem = f"has a polygon of {numbers.size} numbers, where x and y of at least 3 corners were wanted"
        raise RasterError("bad_polygon", problem)
    if not (np.abs(numbers) < 2**31).all():  # also where it is not a number
        raise RasterError("bad_polygon", "has a polygon with a coordinate that no map has")
    return (SCALE * numbers + 0.5).astype(np.int64).reshape(-1, 2)


def _outline(corners: Integers, sizes: Integers) -> tuple[Integers, Integers, Integers]:
    """Each fine point of the outlines of polygons of so many corners, one after the other: x, y and which edge."""
    following = np.arange(1, len(corners) + 1)
    ends = sizes.cumsum()
    following[ends - 1] = ends - sizes
    distance = corners[following] - corners
    flat = np.abs(distance[:, 0]) >= np.abs(distance[:, 1])
    # A line goes step by step along the axis on which it is longer, and by rounding along the other. One that would go
    # backward is drawn from its other end, where rounding is not the same.
    main, side = np.where(flat, corners.T, corners.T[::-1])
    main_way, side_way = np.where(flat, distance.T, distance.T[::-1])
    length = np.abs(main_way)
    if (points := int(length.sum()) + len(length)) > POINTS_MAX:
        raise RasterError("bad_polygon", f"has an outline of more than {POINTS_MAX // SCALE} pixels")
    back = main_way < 0
    way = np.where(back, -1, 1)
    first = np.cumsum(length + 1) - length - 1
    begin = np.minimum(main, main + main_way)
    rounded_begin = np.where(back, side + side_way, side)
    slope = way * side_way / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(length)), length + 1)
    stepped = (main - way * first)[edge] + way[edge] * np.arange(points)
    rounded = rounded_begin[edge] + slope[edge] * (stepped - begin[edge]) + 0.5
    rounded = rounded.astype(np.int64)  # towards 0, as C does
    level = flat[edge]
    return np.where(level, stepped, rounded), np.where(level, rounded, stepped), edge


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
