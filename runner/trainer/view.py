"""How an image lies on the model's canvas: one affine map, by which pixels, points, boxes and maps are moved alike.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1). Scaling to the canvas, flips, turns,
shifts, zooms and crops are factors of the one matrix, so that a target cannot miss what happened to its image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x' = a x + b y + c and y' = d x + e y + f."""
Floats: TypeAlias = NDArray[np.float64]
Value = TypeVar("Value", bound=np.generic)

IDENTITY: Matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """An image of `width` x `height` pixels on a canvas; `matrix` is from the image's pixels to the canvas's."""

    width: int
    height: int
    canvas_width: int
    canvas_height: int
    matrix: Matrix

    @property
    def scale(self) -> float:
        """Pixels of the canvas a pixel of the image, along a side in the mean."""
        a, b, _, d, e, _ = self.matrix
        return math.sqrt(abs(a * e - b * d))

    def then(self, change: Matrix) -> View:
        """The view after the canvas itself was moved by `change`."""
        return self if change is IDENTITY else replace(self, matrix=product(change, self.matrix))

    def points(self, points: Sequence[Sequence[float]] | Floats) -> Floats:
        """Points of the image, (…, 2) as x and y, on the canvas."""
        return _moved(self.matrix, points)

    def inverse(self, points: Sequence[Sequence[float]] | Floats) -> Floats:
        """Points of the canvas, (…, 2) as x and y, in the image."""
        return _moved(inverted(self.matrix), points)

    def boxes(self, boxes: Sequence[Sequence[float]] | Floats) -> Floats:
        """Boxes of the image, (…, 4) as left, top, right, bottom; what encloses their corners on the canvas."""
        left, top, right, bottom = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
        corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1)
        moved = self.points(corners.reshape(*corners.shape[:-1], 4, 2))
        return np.concatenate([moved.min(axis=-2), moved.max(axis=-2)], axis=-1)

    def map(self, values: NDArray[Value], outside: Any) -> NDArray[Value]:
        """A map of the image, (…, height, width), on the canvas; nearest pixels, `outside` where the image is not.

        The map may be smaller than the image: it covers the image all the same.
        """
        height, width = values.shape[-2:]
        a, b, c, d, e, f = inverted(self.matrix)
        along, down = width / self.width, height / self.height
        to_map = (a * along, b * along, c * along, d * down, e * down, f * down)
        x, y = _pixels(to_map, self.canvas_width, self.canvas_height)
        found: NDArray[Value] = values[..., y.clip(0, height - 1), x.clip(0, width - 1)]
        found[..., (x < 0) | (x >= width) | (y < 0) | (y >= height)] = outside
        return found

    def map_back(self, values: NDArray[Value], width: int = 0, height: int = 0) -> NDArray[Value]:
        """A map of the canvas, (height, width), in the image; nearest pixels.

        `width`, `height`: of the answer, where it shall not have the image's size but cover the image all the same.
        What lies beside the canvas gets the value of its border.
        """
        width, height = width or self.width, height or self.height
        a, b, c, d, e, f = self.matrix
        along, down = self.width / width, self.height / height
        x, y = _pixels((a * along, b * down, c, d * along, e * down, f), width, height)
        rows, columns = values.shape
        found: NDArray[Value] = values[y.clip(0, rows - 1), x.clip(0, columns - 1)]
        return found


def whole(view: View, shape: tuple[int, ...]) -> View:
    """How the image of a view lies on a canvas of (height, width) that it covers, such as a map of it."""
    height, width = shape
    matrix = (width / view.width, 0.0, 0.0, 0.0, height / view.height, 0.0)
    return View(width=view.width, height=view.height, canvas_width=width, canvas_height=height, matrix=matrix)


def product(second: Matrix, first: Matrix) -> Matrix:
    """What is moved by `first`, then by `second`."""
    a, b, c, d, e, f = second
    g, h, i, j, k, m = first
    return (
        a * g + b * j,
        a * h + b * k,
        a * i + b * m + c,
        d * g + e * j,
        d * h + e * k,
        d * i + e * m + f,
    )


def inverted(matrix: Matrix) -> Matrix:
    """The way back."""
    a, b, c, d, e, f = matrix
    determinant = a * e - b * d
    g, h, j, k = e / determinant, -b / determinant, -d / determinant, a / determinant
    return (g, h, -(g * c + h * f), j, k, -(j * c + k * f))


def shift(right: float, down: float) -> Matrix:
    """By so many pixels."""
    return (1.0, 0.0, right, 0.0, 1.0, down)


def flip_horizontally(width: float) -> Matrix:
    """Left to right, of a canvas of this width."""
    return (-1.0, 0.0, width, 0.0, 1.0, 0.0)


def flip_vertically(height: float) -> Matrix:
    """Upside down, of a canvas of this height."""
    return (1.0, 0.0, 0.0, 0.0, -1.0, height)


def turn_and_zoom(degrees: float, zoom: float, x: float, y: float) -> Matrix:
    """Clockwise as it is seen, and larger by a factor, both about a point."""
    radians = math.radians(degrees)
    cosine, sine = zoom * math.cos(radians), zoom * math.sin(radians)
    return (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)


def _moved(matrix: Matrix, points: Sequence[Sequence[float]] | Floats) -> Floats:
    a, b, c, d, e, f = matrix
    found = np.asarray(points, np.float64)
    x, y = found[..., 0], found[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


def _pixels(matrix: Matrix, width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pixels, as columns and rows to index with, that the centres of width x height pixels are moved into."""
    a, b, c, d, e, f = matrix
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    columns, rows = a * x + c, e * y + f
    if b or d:  # else one row of columns and one column of rows say it all, in a fraction of the time
        columns, rows = columns + b * y, rows + d * x
    return np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
