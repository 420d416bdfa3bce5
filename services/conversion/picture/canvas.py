"""An image, scaled to a tile, that takes lines, points, maps and words in pixels of the image.

Everything is drawn at twice the tile's size and scaled down at the end, so that slanted lines are smooth; words come
last, at their own size. Whatever the coordinates, the work is bounded: lines are clipped to the tile first.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from services.conversion.formats.colors import Color
from services.conversion.formats.number import Point
from services.conversion.index import ImageSize
from services.conversion.picture.color import BLACK, WHITE, text_color
from services.conversion.picture.text import cut, font, width_of

FINE = 2
"""Fine pixels a tile's pixel, each way."""
ENLARGED_CRISP = 3.0
"""An image that is enlarged more than so much shows its pixels: coordinates can be checked against them."""
LINE_SHARE = 1 / 150
"""Width of a line, of the fine tile's longer side."""
LINE_WIDTH_MIN, LINE_WIDTH_MAX = 3, 8
LINES_ACROSS = 5
"""What is narrower than so many line widths gets a thinner line."""
DASH_LINES = 4
"""A dash is so many line widths long, and so is the gap."""
HATCH_SHARE = 1 / 60
TAG_TEXT_PIXELS = 11
TAG_PADDING = 2
TAG_WIDTH_MIN = 80
"""A word may be so wide where its object is narrower."""
MAP_ALPHA = 0.55
HATCH_ALPHA = 0.35

NO_COLORS: Mapping[str, Color] = {}

Window: TypeAlias = tuple[float, float, float, float]


class Stroke(enum.Enum):
    """How a line is drawn."""

    SOLID = "solid"
    DASHED = "dashed"


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How one label of a map is painted. `striped`: half of it is left bare."""

    color: Color
    striped: bool = False


def scaled(image: Image.Image, size: ImageSize, side: int) -> Image.Image:
    """An image as a canvas takes it, for a tile of at most `side` by `side`. `image` may be smaller than its `size`."""
    scale = min(side / size.width, side / size.height)
    fine = FINE * max(1, round(size.width * scale)), FINE * max(1, round(size.height * scale))
    crisp = FINE * scale > ENLARGED_CRISP
    return image.resize(fine, Image.Resampling.NEAREST if crisp else Image.Resampling.BILINEAR, reducing_gap=2.0)


class Canvas:
    """One tile. `scaled_image` is what `scaled` gave, and stays as it is; `size` is that of the image itself.

    `colors`: those of categories that have their own, so that they keep them where a conversion forgets colours.
    """

    def __init__(self, scaled_image: Image.Image, size: ImageSize, colors: Mapping[str, Color] = NO_COLORS) -> None:
        self.colors = colors
        self.width, self.height = scaled_image.width // FINE, scaled_image.height // FINE
        self._fine = scaled_image.copy()
        self._draw = ImageDraw.Draw(self._fine)
        self._across, self._down = self._fine.width / size.width, self._fine.height / size.height
        line_width = round(max(self._fine.size) * LINE_SHARE)
        self._line_width = min(max(LINE_WIDTH_MIN, line_width), LINE_WIDTH_MAX)
        self._tags: list[tuple[int, int, str, Color]] = []
        self._tag_places: list[tuple[int, int, int, int]] = []

    def outline(self, corners: Sequence[Point], color: Color, *, stroke: Stroke = Stroke.SOLID) -> None:
        """A closed line through points of the image, with a dark rim, so that it is seen on any background."""
        at = [(x * self._across, y * self._down) for x, y in corners]
        line_width = self._width_for(at)
        margin = 2.0 * line_width
        window = (-margin, -margin, self._fine.width + margin, self._fine.height + margin)
        sides = zip(at, [*at[1:], at[0]], strict=True)
        pieces = [piece for start, end in sides if (piece := clipped_segment(start, end, window)) is not None]
        if stroke is Stroke.DASHED:
            pieces = [dash for piece in pieces for dash in dashes(piece, DASH_LINES * line_width)]
        for width, ink in ((line_width + 2, BLACK), (line_width, color)):
            for start, end in pieces:
                self._draw.line((start, end), fill=ink, width=width)
                if stroke is Stroke.SOLID:  # corners have no notch
                    self._disc(end, (width - 1) / 2, ink)

    def dot(self, point: Point, color: Color, *, size_max: float = math.inf) -> None:
        """A point of the image, at most `size_max` of its pixels wide, yet always seen."""
        x, y = point[0] * self._across, point[1] * self._down
        if not (0 <= x <= self._fine.width and 0 <= y <= self._fine.height):
            return
        radius = max(LINE_WIDTH_MIN - 0.5, min(1.6 * self._line_width, size_max * self._across / 2))
        self._disc((x, y), radius + 1.5, BLACK)
        self._disc((x, y), radius, color)

    def arrow(self, start: Point, end: Point, color: Color, *, size_max: float) -> None:
        """The direction from a point of the image to another: a head between them, left out where there is no room."""
        (ax, ay), (bx, by) = ((x * self._across, y * self._down) for x, y in (start, end))
        length = math.hypot(bx - ax, by - ay)
        x, y = (ax + bx) / 2, (ay + by) / 2
        reach = min(2.6 * self._line_width, size_max * self._across / 2)
        inside = -reach <= x <= self._fine.width + reach and -reach <= y <= self._fine.height + reach
        if length < 4 * reach or reach < 1.2 * self._line_width or not inside:
            return
        dx, dy = (bx - ax) / length * reach, (by - ay) / length * reach
        head = [(x + dx, y + dy), (x - dx - dy * 0.8, y - dy + dx * 0.8), (x - dx + dy * 0.8, y - dy - dx * 0.8)]
        self._draw.polygon(head, fill=color, outline=BLACK)

    def tag(self, point: Point, text: str, color: Color, width_max: float) -> None:
        """A word above a point of the image, cut to about `width_max` of its pixels; left out where one is already."""
        x, y = round(point[0] * self._across / FINE), round(point[1] * self._down / FINE)
        room = max(round(width_max * self._across / FINE), TAG_WIDTH_MIN)
        shown = cut(text, TAG_TEXT_PIXELS, room)
        wide, high = width_of(shown, TAG_TEXT_PIXELS) + 2 * TAG_PADDING, TAG_TEXT_PIXELS + 2 * TAG_PADDING
        left = min(max(x, 0), max(self.width - wide, 0))
        top = min(max(y - high if y >= high else y, 0), max(self.height - high, 0))
        place = (left, top, left + wide, top + high)
        if any(overlaps(place, each) for each in self._tag_places):
            return
        self._tag_places.append(place)
        self._tags.append((left, top, shown, color))

    def paint(self, labels: NDArray[np.uint16], paints: Sequence[Paint], *, hatched: bool) -> None:
        """Lay a map over the image: label n takes `paints[n - 1]`, 0 is left bare, or `hatched`.

        `labels`, (height, width), may be smaller than the image. Edges between labels are drawn.
        """
        rows, columns = (
            (np.arange(fine) * 2 + 1) * coarse // (2 * fine)
            for fine, coarse in zip((self._fine.height, self._fine.width), labels.shape, strict=True)
        )
        fine = labels[rows[:, None], columns]
        table = np.asarray([BLACK, *(each.color for each in paints)], dtype=np.uint16)
        striped = np.asarray([hatched, *(each.striped for each in paints)])
        bare = np.asarray([not hatched, *(False for _ in paints)])[fine]
        if striped.any():
            bare |= striped[fine] & self._stripes()
        alpha = np.full(len(table), round(MAP_ALPHA * 256), dtype=np.uint16)
        alpha[0] = round(HATCH_ALPHA * 256)
        table *= alpha[:, None]
        below = np.asarray(self._fine)
        mixed = (below * (256 - alpha)[fine][..., None] + table[fine]) >> 8
        painted = np.where(bare[..., None], below, mixed.astype(np.uint8))
        self._show(painted, _edges(fine))

    def replace(self, colors: NDArray[np.uint8], bare: NDArray[np.bool_]) -> None:
        """Lay a picture, (height, width, 3) of any size, on the image; where it is `bare` the image stays, hatched."""
        size = (self._fine.width, self._fine.height)
        picture = np.asarray(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST))
        open_to = np.asarray(Image.fromarray(bare).resize(size, Image.Resampling.NEAREST))
        below = np.asarray(self._fine)
        dark = (below.astype(np.uint16) * 5 // 8).astype(np.uint8)
        hatched = np.where(self._stripes()[..., None], below, dark)
        self._show(np.where(open_to[..., None], hatched, picture), None)

    def finished(self) -> Image.Image:
        """The tile."""
        tile = self._fine.reduce(FINE)
        draw = ImageDraw.Draw(tile)
        for left, top, text, color in self._tags:
            right = left + width_of(text, TAG_TEXT_PIXELS) + 2 * TAG_PADDING
            draw.rectangle((left, top, right - 1, top + TAG_TEXT_PIXELS + 2 * TAG_PADDING - 1), fill=color)
            at = (left + TAG_PADDING, top + TAG_PADDING + TAG_TEXT_PIXELS - 2)
            draw.text(at, text, fill=text_color(color), font=font(TAG_TEXT_PIXELS), anchor="ls")
        return tile

    def _width_for(self, at: Sequence[Point]) -> int:
        """Around something small a line is thinner, or it would hide it."""
        extent: float = min(max(each) - min(each) for each in zip(*at, strict=True))
        return min(self._line_width, max(LINE_WIDTH_MIN, round(extent / LINES_ACROSS)))

    def _disc(self, center: tuple[float, float], radius: float, color: Color) -> None:
        x, y = center
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def _stripes(self) -> NDArray[np.bool_]:
        """Slanted stripes over the fine tile, true on the bare ones."""
        period = max(8, round(max(self._fine.size) * HATCH_SHARE))
        across, down = np.arange(self._fine.width), np.arange(self._fine.height)
        return (across + down[:, None]) % period >= period // 2

    def _show(self, pixels: NDArray[np.uint8], edges: NDArray[np.bool_] | None) -> None:
        if edges is not None:
            pixels[edges] = WHITE
        self._fine = Image.fromarray(pixels)
        self._draw = ImageDraw.Draw(self._fine)


def clipped_segment(start: Point, end: Point, window: Window) -> tuple[Point, Point] | None:
    """The part of a segment inside a window (left, top, right, bottom), after Liang and Barsky; None where none is."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    low, high = 0.0, 1.0
    for along, room in ((-dx, ax - window[0]), (dx, window[2] - ax), (-dy, ay - window[1]), (dy, window[3] - ay)):
        if along == 0:
            if room < 0:
                return None
        elif along < 0:
            low = max(low, room / along)
        else:
            high = min(high, room / along)
    if low > high:
        return None
    return (ax + low * dx, ay + low * dy), (ax + high * dx, ay + high * dy)


def dashes(piece: tuple[Point, Point], dash: float) -> list[tuple[Point, Point]]:
    """A segment as dashes; the first begins, and the last ends, with the segment."""
    (ax, ay), (bx, by) = piece
    length = math.hypot(bx - ax, by - ay)
    count = max(1, round((length / dash + 1) / 2))
    parts = 2 * count - 1
    steps = [(ax + (bx - ax) * number / parts, ay + (by - ay) * number / parts) for number in range(parts + 1)]
    return list(zip(steps[::2], steps[1::2], strict=True))


def overlaps(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two rectangles share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _edges(labels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """The pixels at which another label begins, two wide."""
    edges = np.zeros(labels.shape, dtype=np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges
