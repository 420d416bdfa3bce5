"""The vocabulary of maps: categories with a colour each, and what a picture of those colours says.

Colours are unique and never black, which stands for what is ignored, void, or not of the instance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.conversion.file.document import List, Mapping, Value, kind, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import RESERVED_NAMES, Names, check_declared, read_names
from services.conversion.formats.number import shown_numbers
from services.conversion.raster.palette import Palette, Unknown

Color: TypeAlias = tuple[int, int, int]

CATEGORIES_MAX = 65_535
"""A map in memory has 16 bits a pixel, and 0 is nobody's."""
UNKNOWN_COLORS_MAX = 16
"""Unknown colours of one map that are told one by one: a picture that was smoothed has thousands."""
PALETTES_KEPT_MAX = 4
"""Palettes that a process keeps: as many annotation sets may be in work at once without making one twice."""

PALETTE_MAX = 256
"""Colours that a picture with one byte a pixel can have."""

_CHANNEL = re.compile(r"[0-9]{1,3}")
_HEXADECIMAL = re.compile(r"#[0-9a-fA-F]{6}")
_BLACK: Color = (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Colors:
    """`colors` may lack a category: then no map uses it. Colours are unique and never black."""

    names: tuple[str, ...]
    colors: AnyMapping[str, Color]

    @cached_property
    def in_order(self) -> tuple[Color | None, ...]:
        """The colour of each name."""
        return tuple(self.colors.get(name) for name in self.names)


def read_colors(metadata: Mapping, place: Place, report: Report) -> Colors:
    """`categories`, and `colors`: a mapping from category to colour, or a list with a colour for each category.

    A colour is [red, green, blue], each from 0 to 255, or "#rrggbb".
    """
    names = read_names(metadata, "categories", place, report, reserved=RESERVED_NAMES)
    if len(names.names) > CATEGORIES_MAX:
        message = f"'categories' lists {len(names.names)} names, but maps can tell at most {CATEGORIES_MAX} apart"
        report.fail("too_many_names", message, replace(place, line=metadata.lines["categories"]))
        return Colors(names=(), colors={})
    return Colors(names=names.names, colors=_read_colors(metadata, names, place, report))


def write_colors(vocabulary: Colors) -> dict[str, Json]:
    """The pair of `read_colors`."""
    colors = {name: list(vocabulary.colors[name]) for name in vocabulary.names if name in vocabulary.colors}
    return {"categories": vocabulary.names, "colors": colors}


def classes_of_colors(pixels: NDArray[np.uint8], vocabulary: Colors) -> tuple[NDArray[np.uint16], tuple[Unknown, ...]]:
    """The classes of pixels (height, width, 3): 0 is black or unknown, n is `names[n-1]`; and what is unknown."""
    palette, numbers = _palette(vocabulary.in_order)
    classes, unknown = palette.indices(pixels)
    return classes if numbers is None else numbers[classes], unknown


def colors_of_classes(vocabulary: Colors) -> NDArray[np.uint8]:
    """A table (classes + 1, 3): 0 is black, and so is a category without a colour, which no map uses."""
    return _table(vocabulary.in_order)


def paint(labels: NDArray[np.uint16], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours (height, width, 3), to read, of labels (height, width), rows of the table (labels, 3)."""
    if len(table) <= PALETTE_MAX:  # nearly always: twice as fast as below
        height, width = labels.shape
        picture = Image.frombuffer("P", (width, height), labels.astype(np.uint8), "raw", "P", 0, 1)
        picture.putpalette(table.tobytes())
        return np.asarray(picture.convert("RGB"))
    # Three bytes as one item: taking them is three times as fast as taking rows of three.
    pixels = np.ascontiguousarray(table).view("V3")[:, 0].take(labels)
    return pixels.view(np.uint8).reshape(*labels.shape, 3)


def hexadecimal(color: Color) -> str:
    """A colour as people write it: #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


@lru_cache(maxsize=PALETTES_KEPT_MAX)
def _palette(colors: tuple[Color | None, ...]) -> tuple[Palette, NDArray[np.uint16] | None]:
    """The palette of the categories that have a colour, and the class of each of its indices where not all have one."""
    known = [number for number, color in enumerate(colors, start=1) if color is not None]
    palette = Palette([color for color in colors if color is not None])
    return palette, None if len(known) == len(colors) else np.array([0, *known], np.uint16)


@lru_cache(maxsize=PALETTES_KEPT_MAX)
def _table(colors: tuple[Color | None, ...]) -> NDArray[np.uint8]:
    table = np.array([_BLACK, *(color or _BLACK for color in colors)], np.uint8)
    table.flags.writeable = False
    return table


def _read_colors(metadata: Mapping, names: Names, place: Place, report: Report) -> dict[str, Color]:
    value = metadata.get("colors")
    place = replace(place, line=metadata.lines.get("colors", place.line))
    if value is None:
        message = "the key 'colors' is missing: give each category its colour, [red, green, blue] from 0 to 255"
        report.fail("missing_key", message, place)
        return {}
    found: dict[str, Color] = {}
    owners: dict[Color, str] = {}
    for name, item, line in _items(value, metadata.get("categories"), place, report):
        at = replace(place, line=line)
        if not check_declared(name, "category", at, -1, names, report, annotations=0):
            continue
        color = _read_color(item)
        if color is None:
            report.fail("bad_color", f"the colour of {name!r} {_problem(item)}", at, value=shown_numbers(item))
        elif color == _BLACK:
            message = f"the colour of {name!r} is black, which stands for what is ignored: choose another one"
            report.fail("black_color", message, at, value=hexadecimal(color))
        elif color in owners:
            message = f"{name!r} and {owners[color]!r} have the same colour: give each category its own"
            report.fail("repeated_color", message, at, value=hexadecimal(color))
        elif name not in found:  # a list's second colour for a category that is listed twice, which is told there
            owners[color] = name
            found[name] = color
    return {name: found[name] for name in names.names if name in found}


def _items(value: Value, categories: Value, place: Place, report: Report) -> list[tuple[str, Value, int]]:
    """Names with what stands for their colours, and the line."""
    if isinstance(value, Mapping):
        return [(name, item, value.lines[name]) for name, item in value.items()]
    wanted = "'colors' must be a mapping from category to colour, or a list of as many colours as there are categories"
    if not isinstance(value, List):
        report.fail("bad_value", f"{wanted}: it is {kind(value)}", place, value=shown(value))
        return []
    if not isinstance(categories, List):
        return []
    if len(value) != len(categories):
        found = f"there are {len(value)} colours for {len(categories)} categories"
        report.fail("wrong_color_count", f"{wanted}: {found}", place, value=str(len(value)))
        return []
    named = zip(categories, value, value.lines, strict=True)
    return [(name, item, line) for name, item, line in named if isinstance(name, str)]


def _read_color(value: Value) -> Color | None:
    if isinstance(value, str) and _HEXADECIMAL.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if not isinstance(value, List) or len(value) != 3:
        return None
    channels = [int(each) for each in value if isinstance(each, str) and _CHANNEL.fullmatch(each)]
    if len(channels) != 3 or max(channels) > 255:
        return None
    red, green, blue = channels
    return red, green, blue


def _problem(value: Value) -> str:
    wanted = "must be [red, green, blue] from 0 to 255, or '#rrggbb'"
    if value is None:
        return f"is null, but {wanted}, in quotes, as # begins a comment; leave out the category that has none"
    return wanted
