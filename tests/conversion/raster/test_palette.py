"""Palettes: colours to numbers and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.conversion.raster.palette import (
    UNKNOWN_COLORS_MAX,
    KeyTable,
    Palette,
    Unknown,
    color_of_key,
    key_of_color,
    keys_of_pixels,
)

COLORS = st.tuples(*[st.sampled_from([0, 1, 2, 128, 255])] * 3)
PALETTES = st.lists(COLORS.filter(any), unique=True, max_size=6)
PICTURES = arrays.arrays(
    np.uint8,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=7).map(lambda shape: (*shape, 3)),
    elements=st.sampled_from([0, 1, 255]),
)


@given(colors=PALETTES, data=st.data())
@settings(deadline=None, max_examples=100)
def test_numbers_come_back_from_their_colours(colors: list[Any], data: st.DataObject) -> None:
    palette = Palette(colors)
    shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=7))
    numbers = data.draw(arrays.arrays(np.uint16, shape, elements=st.integers(0, len(colors))))
    rgb = palette.rgb(numbers)
    assert (rgb.dtype, rgb.shape) == (np.uint8, (*shape, 3))
    np.testing.assert_array_equal(rgb, np.array([(0, 0, 0), *colors], np.uint8)[numbers])
    back, unknown = palette.indices(rgb)
    np.testing.assert_array_equal(back, numbers)
    assert (back.dtype, unknown) == (np.uint16, ())


@given(colors=PALETTES, rgb=PICTURES)
@settings(deadline=None, max_examples=150)
def test_every_pixel_is_black_or_known_or_counted_as_unknown(colors: list[Any], rgb: Any) -> None:
    numbers, unknown = Palette(colors).indices(rgb)
    height, width, _ = rgb.shape
    strange: dict[Any, list[tuple[int, int]]] = {}
    for y in range(height):
        for x in range(width):
            color = tuple(rgb[y, x].tolist())
            known = color in colors
            assert numbers[y, x] == (colors.index(color) + 1 if known else 0)
            if not known and any(color):
                strange.setdefault(color, []).append((x, y))
    assert unknown == tuple(
        Unknown(color=color, pixels=len(places), x=places[0][0], y=places[0][1]) for color, places in strange.items()
    )


def test_pixels_that_do_not_lie_side_by_side_in_memory_are_read_the_same() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    wanted = rgb.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    np.testing.assert_array_equal(keys_of_pixels(rgb), wanted)
    for view in (rgb[::2], rgb[:, ::-1], rgb.transpose(1, 0, 2), np.dstack([rgb, rgb])[..., :3], rgb[:0]):
        np.testing.assert_array_equal(keys_of_pixels(view), keys_of_pixels(view.copy()))


@given(key=st.integers(0, 2**24 - 1))
def test_a_colour_comes_back_from_its_key(key: int) -> None:
    assert key_of_color(color_of_key(key)) == key
    assert keys_of_pixels(np.array([[color_of_key(key)]], np.uint8)).tolist() == [[key]]


def test_ids_of_24_bits_are_numbered_as_listed() -> None:
    keys = np.array([[0, 2**24 - 1, 7], [7, 8226, 0]], np.uint32)
    numbers, unknown = KeyTable([8226, 7, 2**24 - 1]).indices(keys)
    assert (numbers.tolist(), unknown) == ([[0, 3, 2], [2, 1, 0]], ())
    numbers, unknown = KeyTable([7]).indices(keys)
    assert numbers.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert [(each.key, each.pixels, each.x, each.y) for each in unknown] == [(2**24 - 1, 1, 1, 0), (8226, 1, 1, 1)]


def test_of_a_photo_in_place_of_a_map_only_the_first_colours_are_told() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    numbers, unknown = Palette([(1, 2, 3)]).indices(rgb)
    assert not numbers.any()
    assert len(unknown) == UNKNOWN_COLORS_MAX
    assert (unknown[0].x, unknown[0].y, unknown[-1].y) == (0, 0, (UNKNOWN_COLORS_MAX - 1) // 64)


def test_as_many_colours_as_numbers_are_told_apart() -> None:
    colors = [color_of_key(key) for key in range(1, 2**16)]
    numbers = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    palette = Palette(colors)
    back, _ = palette.indices(palette.rgb(numbers))
    np.testing.assert_array_equal(back, numbers)


@pytest.mark.parametrize("colors", [[(1, 1, 1), (1, 1, 1)], [(0, 0, 0)]])
def test_colours_that_cannot_be_told_apart_are_our_mistake(colors: list[Any]) -> None:
    with pytest.raises(AssertionError):
        Palette(colors)
