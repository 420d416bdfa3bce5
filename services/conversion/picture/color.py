"""Colours of what is drawn: categories that are told apart, and distances from near to far."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from services.conversion.formats.colors import Color

WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
IGNORED: Color = (158, 158, 158)
"""Of what is not to be cared for."""

FIRST_COLORS: tuple[Color, ...] = (
    (230, 57, 70),
    (38, 132, 255),
    (46, 184, 92),
    (255, 171, 0),
    (151, 71, 255),
    (0, 196, 204),
    (255, 105, 180),
    (140, 110, 60),
    (190, 214, 47),
    (255, 112, 41),
    (84, 100, 190),
    (0, 128, 110),
)
"""The first so many categories: far apart from each other and, as far as can be, from what photos show."""
GOLDEN_SHARE = 0.618034
"""Hues that are this share of the circle apart never come close to each other soon."""
LATER_SHADES = ((0.75, 0.95), (0.95, 0.70), (0.50, 0.90))
"""Saturation and value of later colours, in turn."""

DEPTH_STOPS: tuple[Color, ...] = ((255, 246, 170), (250, 168, 70), (214, 66, 88), (112, 32, 124), (24, 20, 74))
"""From near to far: light and warm to dark and cold, so that it reads in gray too."""


def category_color(index: int) -> Color:
    """The colour of the category at this position of its vocabulary, or of any other list of names."""
    if index < len(FIRST_COLORS):
        return FIRST_COLORS[index]
    later = index - len(FIRST_COLORS)
    saturation, value = LATER_SHADES[later % len(LATER_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(later * GOLDEN_SHARE % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def lighter(color: Color, share: float) -> Color:
    """The colour, mixed with white by this share."""
    red, green, blue = (round(each + (255 - each) * share) for each in color)
    return red, green, blue


def text_color(background: Color) -> Color:
    """Black or white, whichever can be read on the background."""
    red, green, blue = background
    return BLACK if 299 * red + 587 * green + 114 * blue > 150_000 else WHITE


def depth_colors(levels: int) -> NDArray[np.uint8]:
    """`levels` colours from far (position 0) to near, levels x 3."""
    stops = np.asarray(DEPTH_STOPS[::-1], dtype=np.float64)
    along = np.linspace(0, len(stops) - 1, levels)
    channels = [np.interp(along, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)
