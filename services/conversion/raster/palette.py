"""Colours of a map as numbers, and back.

A colour is one number, and a map is looked up by its runs of one colour, which are few: no table of all colours, which
would be shared state, and no sorting of whole maps, which takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Color: TypeAlias = tuple[int, int, int]
UNKNOWN_COLORS_MAX = 256
"""Of one map: a photo in place of a map has more colours than anyone wants to be told of."""
Keys: TypeAlias = NDArray[np.uint32]
"""Colours as red + 256 * green + 65536 * blue, which is also how COCO writes a segment's id."""


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """A colour that was not to be expected: on how many pixels, and the first of them by rows."""

    color: Color
    pixels: int
    x: int
    y: int

    @property
    def key(self) -> int:
        """The colour as one number."""
        return key_of_color(self.color)


class Palette:
    """Colours that have numbers from 1; black is 0. They are different, none is black, and at most 65,535."""

    def __init__(self, colors: Sequence[Color]) -> None:
        self._keys = KeyTable([key_of_color(color) for color in colors])
        self._colors = np.array([(0, 0, 0), *colors], np.uint8)

    def indices(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], tuple[Unknown, ...]]:
        """The number of each pixel's colour, (height, width) of (height, width, 3); 0 where it is black or unknown.

        The first UNKNOWN_COLORS_MAX unknown colours are told, in the order in which they stand, row by row.
        """
        return self._keys.indices(keys_of_pixels(rgb))

    def rgb(self, indices: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """The colours (height, width, 3) of numbers (height, width), none of which may be above the last colour's."""
        colors: NDArray[np.uint8] = self._colors.take(indices, axis=0)
        return colors


class KeyTable:
    """Keys that have numbers from 1; the key 0 is 0. They are different, none is 0, and at most 65,535."""

    def __init__(self, keys: Sequence[int]) -> None:
        assert len(keys) < 2**16, len(keys)
        self._known = np.array(sorted([0, *keys]), np.uint32)
        assert (self._known[1:] > self._known[:-1]).all(), "a colour is there twice, or black"
        number = {key: index for index, key in enumerate(keys, start=1)}
        self._numbers = np.array([number.get(key, 0) for key in self._known.tolist()], np.uint16)

    def indices(self, keys: Keys) -> tuple[NDArray[np.uint16], tuple[Unknown, ...]]:
        """As Palette's, of a map of keys (height, width)."""
        values, lengths = stretches(keys)
        places = np.searchsorted(self._known[1:], values, side="right")
        numbers = self._numbers[places]
        strange = self._known[places] != values
        numbers[strange] = 0
        unknown: tuple[Unknown, ...] = ()
        if strange.any():
            starts = np.cumsum(lengths) - lengths
            unknown = _unknown(values[strange], starts[strange], lengths[strange], keys.shape[1])
        return np.repeat(numbers, lengths).reshape(keys.shape), unknown


def stretches(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pixels (height, width) row by row as stretches of equal ones: their values, and how long each is. Maps have far
    fewer of them than pixels.
    """
    flat = pixels.reshape(-1)
    first = np.ones(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    return flat[starts], np.diff(starts, append=flat.size)


def keys_of_pixels(rgb: NDArray[np.uint8]) -> Keys:
    """The keys (height, width) of colours (height, width, 3)."""
    padded = np.empty(rgb.size + 1, np.uint8)
    padded[:-1].reshape(rgb.shape)[...] = rgb
    # Four bytes from every third on: each pixel as a number, with the next one's red on top. `<`: the lowest is red.
    numbers = np.ndarray(rgb.shape[:2], "<u4", padded, strides=(3 * rgb.shape[1], 3))
    return numbers & np.uint32(0xFFFFFF)


def key_of_color(color: Color) -> int:
    """The key of one colour."""
    red, green, blue = color
    return red | green << 8 | blue << 16


def color_of_key(key: int) -> Color:
    """The colour of one key."""
    return key & 255, key >> 8 & 255, key >> 16


def _unknown(values: Keys, starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int) -> tuple[Unknown, ...]:
    keys, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    pixels = np.bincount(inverse, weights=lengths).astype(np.int64)
    order = np.argsort(firsts)[:UNKNOWN_COLORS_MAX]
    found = zip(keys[order].tolist(), pixels[order].tolist(), starts[firsts[order]].tolist(), strict=True)
    return tuple(
        Unknown(color=color_of_key(key), pixels=count, x=start % width, y=start // width) for key, count, start in found
    )
