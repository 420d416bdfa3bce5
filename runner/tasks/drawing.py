"""What predictions draw with: words on a plate, colours of categories, a map over its image, a scale."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb: TypeAlias = tuple[int, int, int]

SIDE_MIN = 256
"""A smaller picture is enlarged, so that its words can be read."""
FONT_PIXELS = 13
MARGIN = 4
MAP_SHARE = 0.55
"""How much of a picture's colour is the map's."""
WHITE: Rgb = (255, 255, 255)
PLATE: Rgb = (20, 20, 24)
GOLDEN_TURN = 0.618034
SCALE_WIDTH = 12


def enlarged(image: Image.Image) -> Image.Image:
    """A copy that is large enough to write on; pixels stay squares."""
    factor = max(1, -(-SIDE_MIN // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def with_lines(image: Image.Image, lines: Sequence[str], colors: Sequence[Rgb | None] = ()) -> Image.Image:
    """The picture with a plate of words below it, each line with a square of its colour where it has one."""
    letters = font()
    line_height = FONT_PIXELS + MARGIN
    drawn = Image.new("RGB", (image.width, image.height + len(lines) * line_height + MARGIN), PLATE)
    drawn.paste(image, (0, 0))
    pen = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        top = image.height + MARGIN + number * line_height
        color = colors[number] if number < len(colors) else None
        left = MARGIN
        if color is not None:
            pen.rectangle((left, top + 1, left + FONT_PIXELS - 2, top + FONT_PIXELS - 1), fill=color)
            left += FONT_PIXELS + MARGIN
        pen.text((left, top), line, fill=WHITE, font=letters)
    return drawn


def distinct_colors(count: int) -> list[Rgb]:
    """Colours that differ, the same ones each time."""
    turns = ((index * GOLDEN_TURN) % 1.0 for index in range(count))
    found = (colorsys.hsv_to_rgb(turn, 0.75, 0.6 + 0.4 * ((index // 3) % 2)) for index, turn in enumerate(turns))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in found]


def with_map(image: Image.Image, colors: NDArray[np.uint8]) -> Image.Image:
    """The picture under a map of colours of its own size, (height, width, 3)."""
    return Image.blend(image.convert("RGB"), Image.fromarray(colors), MAP_SHARE)


def heat(values: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Numbers from 0 to 1 as colours, (…, 3), from dark blue by red to yellow."""
    stops = np.array([(13, 8, 70), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float64)
    place = values.clip(0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(np.int64), len(stops) - 2)
    share = (place - low)[..., None]
    colors: NDArray[np.uint8] = np.round(stops[low] * (1 - share) + stops[low + 1] * share).astype(np.uint8)
    return colors


def with_scale(image: Image.Image, low: str, high: str) -> Image.Image:
    """The picture with the colours of `heat` beside it, and what its ends mean."""
    letters = font()
    width = SCALE_WIDTH + 3 * MARGIN + max(round(letters.getlength(word)) for word in (low, high))
    drawn = Image.new("RGB", (image.width + width, image.height), PLATE)
    drawn.paste(image, (0, 0))
    column = heat(np.linspace(1, 0, image.height))
    drawn.paste(Image.fromarray(np.repeat(column[:, None], SCALE_WIDTH, axis=1)), (image.width + MARGIN, 0))
    pen = ImageDraw.Draw(drawn)
    left = image.width + SCALE_WIDTH + 2 * MARGIN
    pen.text((left, 0), high, fill=WHITE, font=letters)
    pen.text((left, image.height - FONT_PIXELS - MARGIN), low, fill=WHITE, font=letters)
    return drawn


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """What words are written with."""
    return ImageFont.load_default(FONT_PIXELS)
