"""A colour for each category that has none: bright, far from its neighbours, never black, always the same."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

from services.conversion.formats.colors import Color

GOLDEN_RATIO = 0.618_033_988_749_895
BLACK = (0, 0, 0)


def category_colors(names: Sequence[str], given: Mapping[str, Color] | None = None) -> dict[str, Color]:
    """Different colours in the order of the names; those that are `given` stay where they are unique and not black."""
    colors: dict[str, Color] = {}
    taken = {BLACK}
    for name, color in (given or {}).items():
        if color not in taken:
            taken.add(color)
            colors[name] = color
    number = 0
    for name in names:
        while name not in colors:
            color = _color(number)
            number += 1
            if color not in taken:
                taken.add(color)
                colors[name] = color
    return {name: colors[name] for name in names}


def _color(number: int) -> Color:
    """Hues that never come close to the ones just before; after some rounds also paler and darker ones."""
    hue = number * GOLDEN_RATIO % 1
    saturation = 1 - 0.25 * (number // 16 % 3)
    value = 1 - 0.2 * (number // 48 % 3) - 0.001 * (number // 144 % 500)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
