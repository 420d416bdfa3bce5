"""The canvas, to the pixel: where lines lie, what they cost, how maps are laid over an image."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.conversion.index import ImageSize
from services.conversion.picture.canvas import (
    TAG_TEXT_PIXELS,
    Canvas,
    Paint,
    Stroke,
    clipped_segment,
    dashes,
    overlaps,
    scaled,
)

RED, GREEN = (255, 0, 0), (0, 255, 0)
GRAY = (128, 128, 128)


def canvas(width: int = 200, height: int = 100, *, side: int = 200) -> Canvas:
    size = ImageSize(width=width, height=height)
    return Canvas(scaled(Image.new("RGB", (width, height), GRAY), size, side), size)


def pixels(of: Canvas) -> NDArray[np.uint8]:
    return np.asarray(of.finished())


def reddish(found: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (found[..., 0].astype(int) - found[..., 1] > 100) & (found[..., 2] < 100)


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


@pytest.mark.parametrize(
    ("width", "height", "side", "expected"),
    [(640, 480, 320, (320, 240)), (10, 10, 200, (200, 200)), (1, 1_000, 100, (1, 100)), (3_000, 2, 100, (100, 1))],
)
def test_a_tile_keeps_the_shape_of_its_image(width: int, height: int, side: int, expected: tuple[int, int]) -> None:
    assert canvas(width, height, side=side).finished().size == expected


def test_the_scaled_image_serves_several_canvases() -> None:
    size = ImageSize(width=50, height=50)
    background = scaled(Image.new("RGB", (50, 50), GRAY), size, 100)
    first = Canvas(background, size)
    first.outline(square(10, 40), RED)
    assert reddish(pixels(first)).any()
    assert (pixels(Canvas(background, size)) == 128).all()


def test_a_small_image_is_enlarged_pixel_by_pixel() -> None:
    size = ImageSize(width=2, height=1)
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 255, 255))
    found = pixels(Canvas(scaled(image, size, 100), size))
    assert (found[:, :50] == 0).all()
    assert (found[:, 50:] == 255).all()


def test_a_smaller_version_of_the_image_takes_the_same_coordinates() -> None:
    size = ImageSize(width=200, height=100)
    found = []
    for image in (Image.new("RGB", (200, 100), GRAY), Image.new("RGB", (25, 13), GRAY)):
        each = Canvas(scaled(image, size, 200), size)
        each.outline(square(20, 80), RED)
        found.append(pixels(each))
    assert (found[0] == found[1]).all()


def test_an_outline_lies_where_its_coordinates_say() -> None:
    on = canvas()
    on.outline([(40, 20), (160, 20), (160, 80), (40, 80)], RED)
    rows, columns = np.nonzero(reddish(pixels(on)))
    assert abs(rows.min() - 20) <= 2
    assert abs(rows.max() - 80) <= 2
    assert abs(columns.min() - 40) <= 2
    assert abs(columns.max() - 160) <= 2
    assert not reddish(pixels(on))[30:70, 50:150].any()


def test_a_dashed_outline_has_gaps_and_its_corners() -> None:
    solid, dashed = canvas(), canvas()
    solid.outline(square(10, 90), RED)
    dashed.outline(square(10, 90), RED, stroke=Stroke.DASHED)
    share = reddish(pixels(dashed)).sum() / reddish(pixels(solid)).sum()
    assert 0.35 < share < 0.75
    assert reddish(pixels(dashed))[8:13, 8:13].any()


def test_a_box_without_room_is_still_seen() -> None:
    on = canvas(4_000, 2_000)
    on.outline(square(1_000, 1_001), RED)
    assert reddish(pixels(on)).any()


@settings(deadline=None, max_examples=60)
@given(
    corners=st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)), min_size=4, max_size=4),
    stroke=st.sampled_from(Stroke),
)
def test_coordinates_far_outside_cost_no_more_than_others(corners: list[tuple[float, float]], stroke: Stroke) -> None:
    on = canvas(60, 40, side=60)
    began = time.thread_time()
    on.outline(corners, RED, stroke=stroke)
    on.dot(corners[0], RED)
    on.arrow(corners[0], corners[1], RED, size_max=10)
    on.tag(corners[0], "far", RED, 10)
    on.finished()
    assert time.thread_time() - began < 5.0, "with a collection of all garbage, should it fall into this"


def test_a_line_through_the_image_is_seen_though_its_ends_are_far_away() -> None:
    on = canvas()
    on.outline([(-1e9, 50), (1e9, 50), (1e9, 1e9), (-1e9, 1e9)], RED)
    assert reddish(pixels(on))[48:53].any(axis=0).all()


def test_points_outside_the_image_are_not_drawn() -> None:
    on = canvas()
    on.dot((-5, 20), RED)
    on.dot((300, 20), RED)
    assert not reddish(pixels(on)).any()


def test_words_do_not_cover_each_other() -> None:
    on = canvas()
    for offset in range(6):
        on.tag((50 + offset, 50), "category", RED, 100)
    one = canvas()
    one.tag((50, 50), "category", RED, 100)
    assert (pixels(on) == pixels(one)).all()


def test_a_word_at_the_edge_is_whole() -> None:
    on = canvas()
    on.tag((195, 2), "category", RED, 100)
    rows, columns = np.nonzero(reddish(pixels(on)))
    assert columns.max() == 199
    assert rows.min() == 2  # there is no room above the point
    assert columns.max() - columns.min() > 3 * TAG_TEXT_PIXELS


def test_a_map_is_laid_over_its_image_label_by_label() -> None:
    on = canvas()
    labels = np.zeros((10, 20), np.uint16)
    labels[:, 10:] = 1
    on.paint(labels, [Paint(color=RED)], hatched=False)
    found = pixels(on)
    assert (found[:, :95] == 128).all()
    assert (found[:, 105:, 0] > 180).all()
    assert (found[:, 105:, 1] < 80).all()
    assert (found[:, 98:102] > 200).any(), "the edge is drawn"


def test_what_a_map_leaves_open_is_hatched_where_that_is_asked_for() -> None:
    on = canvas()
    on.paint(np.zeros((10, 20), np.uint16), [], hatched=True)
    found = pixels(on)
    assert (found == 128).any()
    assert (found < 100).any()


def test_a_striped_label_leaves_half_of_the_image_bare() -> None:
    on = canvas()
    on.paint(np.ones((10, 20), np.uint16), [Paint(color=RED, striped=True)], hatched=False)
    assert 0.3 < reddish(pixels(on)).mean() < 0.7


def test_a_picture_takes_the_place_of_the_image() -> None:
    on = canvas()
    colors = np.zeros((5, 10, 3), np.uint8)
    colors[..., 1] = 255
    bare = np.zeros((5, 10), np.bool_)
    bare[:, 5:] = True
    on.replace(colors, bare)
    found = pixels(on)
    assert (found[:, :98] == GREEN).all()
    assert (found[:, 102:, 0] == found[:, 102:, 1]).all()


@given(
    start=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    end=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
@settings(deadline=None, max_examples=200)
def test_a_clipped_segment_is_the_part_inside(start: tuple[float, float], end: tuple[float, float]) -> None:
    window = (-10.0, -5.0, 10.0, 5.0)
    steps = [(start[0] + (end[0] - start[0]) * n / 200, start[1] + (end[1] - start[1]) * n / 200) for n in range(201)]
    inside = [(x, y) for x, y in steps if -10 <= x <= 10 and -5 <= y <= 5]
    found = clipped_segment(start, end, window)
    if found is None:
        assert not inside
        return
    for x, y in found:
        assert -10 - 1e-6 <= x <= 10 + 1e-6
        assert -5 - 1e-6 <= y <= 5 + 1e-6
    if inside:
        assert math.dist(*found) >= math.dist(inside[0], inside[-1]) - 1e-6


def test_dashes_begin_and_end_with_their_segment() -> None:
    found = dashes(((0, 0), (100, 0)), 10)
    assert found[0][0] == (0, 0)
    assert found[-1][1] == (100, 0)
    assert all(5 < end[0] - start[0] < 15 for start, end in found)
    assert dashes(((0, 0), (1, 0)), 10) == [((0, 0), (1, 0))]


def test_rectangles_that_touch_do_not_overlap() -> None:
    assert overlaps((0, 0, 10, 10), (9, 9, 20, 20))
    assert not overlaps((0, 0, 10, 10), (10, 0, 20, 10))
