"""Polygons against a plain reading of COCO's rule and real masks, and outlines against the masks that they enclose."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools.coco import COCO

from services.conversion.raster.error import RasterError
from services.conversion.raster.polygon import (
    MERGED_MAX,
    OUTLINE_PIXELS_MAX,
    polygons_of_runs,
    rle_of_polygons,
    runs_of_polygons,
)
from services.conversion.raster.rle import decode_rles
from services.conversion.raster.runs import Runs, mask_of_runs, runs_of_mask

DATA = Path(__file__).parents[4] / "shared/data/tiny_coco_train"
SIDES = st.integers(1, 40)
NUMBERS = st.one_of(
    st.integers(-8, 48).map(float),
    st.integers(-80, 480).map(lambda tenths: tenths / 10),
    st.floats(-8, 48, width=32),
)
POLYGONS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=8).map(lambda points: [*sum(points, ())])


def plain_mask(polygon: list[float], height: int, width: int) -> Any:
    """COCO's rule, point by point: crossings of a column's middle on a grid five times as fine switch what follows."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    outline: list[tuple[int, int]] = []
    for (x, y), (to_x, to_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
        across, down = abs(to_x - x), abs(to_y - y)
        backward = (across >= down and x > to_x) or (across < down and y > to_y)
        if backward:
            x, y, to_x, to_y = to_x, to_y, x, y
        length = max(across, down)
        slope = ((to_y - y) if across >= down else (to_x - x)) / max(length, 1)
        points = [
            (x + step, int(y + slope * step + 0.5)) if across >= down else (int(x + slope * step + 0.5), y + step)
            for step in range(length + 1)
        ]
        outline += reversed(points) if backward else points
    turns = np.zeros(height * width + 1, np.int64)
    for (x, y), (to_x, to_y) in itertools.pairwise(outline):
        column = (min(x, to_x) + 0.5) / 5 - 0.5
        if x != to_x and column == int(column) and 0 <= column <= width - 1:
            row = math.ceil(min(max((min(y, to_y) + 0.5) / 5 - 0.5, 0), height))
            turns[int(column) * height + row] += 1
    return (np.cumsum(turns[:-1]) % 2 == 1).reshape(width, height).T


def plain_union(polygons: list[list[float]], height: int, width: int) -> Any:
    return np.logical_or.reduce([plain_mask(polygon, height, width) for polygon in polygons])


def our_mask(polygons: list[list[float]], height: int, width: int) -> Any:
    runs = runs_of_polygons(polygons, height=height, width=width)
    return mask_of_runs(runs, height=height, width=width)


@given(polygons=st.lists(POLYGONS, min_size=1, max_size=3), height=SIDES, width=SIDES)
@settings(deadline=None, max_examples=200)
def test_polygons_are_the_pixels_of_the_plain_rule(polygons: list[list[float]], height: int, width: int) -> None:
    np.testing.assert_array_equal(our_mask(polygons, height, width), plain_union(polygons, height, width))


@pytest.mark.parametrize("seed", range(6))
def test_large_polygons_are_the_pixels_of_the_plain_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(50, 500, 2))
    polygons = [
        (random.uniform(-0.1, 1.1, (int(random.integers(3, 40)), 2)) * [width, height]).round(2).reshape(-1).tolist()
        for _ in range(int(random.integers(1, 4)))
    ]
    np.testing.assert_array_equal(our_mask(polygons, height, width), plain_union(polygons, height, width))


def test_the_union_of_any_number_of_polygons_is_all_of_them() -> None:
    polygons = [[x, y, x + 1.0, y, x + 1.0, y + 1.0, x, y + 1.0] for x in range(0, 80, 2) for y in range(0, 60, 2)]
    assert len(polygons) > MERGED_MAX**2
    np.testing.assert_array_equal(our_mask(polygons, 60, 80), plain_union(polygons, 60, 80))


def test_corners_that_repeat_change_nothing() -> None:
    polygon = [2.0, 3.0, 17.5, 4.25, 9.0, 18.0]
    twice = [2.0, 3.0, 2.0, 3.0, 17.5, 4.25, 17.5, 4.25, 9.0, 18.0, 2.0, 3.0]
    np.testing.assert_array_equal(our_mask([twice], 20, 20), our_mask([polygon], 20, 20))


def test_every_real_mask_of_coco_is_that_of_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    if not DATA.is_dir():
        pytest.skip("the real data of tiny_coco_train are not beside the repository")
    theirs = COCO(str(DATA / "instances_train2017.json"))
    parts = 0
    for image in theirs.loadImgs(theirs.getImgIds()):
        height, width = image["height"], image["width"]
        annotations = theirs.loadAnns(theirs.getAnnIds(imgIds=[image["id"]], iscrowd=False))
        parts += sum(len(each["segmentation"]) for each in annotations)
        texts = [rle_of_polygons(each["segmentation"], height=height, width=width) for each in annotations]
        for annotation, runs in zip(annotations, decode_rles(texts, height=height, width=width), strict=True):
            mask = mask_of_runs(runs, height=height, width=width)
            np.testing.assert_array_equal(mask, theirs.annToMask(annotation) == 1)
    assert parts > len(theirs.getAnnIds(iscrowd=False)) > 400  # some have several
    capsys.readouterr()


def test_a_polygon_outside_of_its_map_is_an_empty_mask_whatever_its_place() -> None:
    for offset in (1e3, -1e3, 1e8, -1e8):
        polygon = [offset, offset, offset + 9, offset, offset, offset + 9]
        assert runs_of_polygons([polygon], height=10, width=10).area == 0


def test_no_polygon_at_all_is_refused() -> None:
    with pytest.raises(RasterError, match="has no polygon"):
        runs_of_polygons([], height=10, width=10)


@pytest.mark.parametrize(
    ("polygon", "problem"),
    [
        ([], "0 numbers, where x and y of at least 3 corners"),
        ([1, 1, 5, 5], "4 numbers"),
        ([1, 1, 5, 5, 9, 1, 3], "7 numbers"),
        ([1, 1, 5, 5, 9, float("nan")], "a coordinate that no map has"),
        ([1, 1, 5, 5, 9, float("inf")], "a coordinate that no map has"),
        ([1, 1, 5, 5, 9, 10**400], "no list of numbers"),
        ([1, 1, 5, 5, 9, "a"], "no list of numbers"),
        ([1, 1, 5, 5, 9, None], "no list of numbers|a coordinate"),
        ([[1, 1], [5, 5], [9, 1]], "6 numbers"),
        ([1, 1, 5, 5, 1e9, 1], "a coordinate that no map has"),
        ([0, 0, 1e8, 0, 0, 1e8], f"an outline of more than {OUTLINE_PIXELS_MAX} pixels"),
        ([0, 0, 9, 0, 9, 9] * (OUTLINE_PIXELS_MAX // 30), "an outline of more than"),
    ],
)
def test_what_is_no_polygon_is_refused(polygon: Any, problem: str) -> None:
    with pytest.raises(RasterError, match=problem) as caught:
        runs_of_polygons([[0, 0, 9, 0, 9, 9], polygon], height=10, width=10)
    assert caught.value.rule == "bad_polygon"


def filled(rings: list[list[int]], height: int, width: int) -> Any:
    """What lies within an odd number of rings: a pixel is inside where an odd number of edges is to its left."""
    turns = np.zeros((height, width + 1), np.int64)
    for ring in rings:
        corners = list(zip(ring[::2], ring[1::2], strict=True))
        for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
            assert (x == next_x) != (y == next_y)
            if x == next_x:
                turns[min(y, next_y) : max(y, next_y), x] += 1
    return np.cumsum(turns, axis=1)[:, :width] % 2 == 1


def turned_area(ring: list[int]) -> int:
    """Positive where the ring goes clockwise on the screen."""
    x, y = np.array(ring).reshape(-1, 2).T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() // 2)


@given(mask=arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(deadline=None, max_examples=200)
def test_the_outlines_of_a_mask_enclose_exactly_it(mask: Any) -> None:
    height, width = mask.shape
    rings = polygons_of_runs(runs_of_mask(mask), height=height, width=width)
    np.testing.assert_array_equal(filled(rings, height, width), mask)
    assert sum(turned_area(ring) for ring in rings) == mask.sum()
    assert all(type(number) is int for ring in rings for number in ring)


def test_areas_go_clockwise_and_holes_the_other_way() -> None:
    mask = np.zeros((7, 9), np.bool_)
    mask[1:6, 2:8] = True
    mask[3, 4:6] = False
    outer, hole = polygons_of_runs(runs_of_mask(mask), height=7, width=9)
    assert outer == [2, 1, 8, 1, 8, 6, 2, 6]
    assert hole == [4, 3, 4, 4, 6, 4, 6, 3]


@pytest.mark.parametrize("mirrored", [False, True])
def test_pixels_that_touch_at_a_corner_are_areas_of_their_own_and_so_holes_are_one(mirrored: bool) -> None:
    mask = np.eye(2, dtype=np.bool_)[:, :: -1 if mirrored else 1]
    assert [turned_area(ring) for ring in polygons_of_runs(runs_of_mask(mask), height=2, width=2)] == [1, 1]
    frame = np.pad(~mask, 1, constant_values=True)
    assert [turned_area(ring) for ring in polygons_of_runs(runs_of_mask(frame), height=4, width=4)] == [16, -2]


def test_the_outline_of_a_large_mask_is_exact() -> None:
    random = np.random.default_rng(3)
    mask = np.kron(random.random((12, 16)) < 0.5, np.ones((17, 13))).astype(np.bool_)
    mask[random.random(mask.shape) < 0.01] ^= True
    height, width = mask.shape
    rings = polygons_of_runs(runs_of_mask(mask), height=height, width=width)
    np.testing.assert_array_equal(filled(rings, height, width), mask)


def test_nothing_has_no_outline() -> None:
    nothing = Runs(starts=np.zeros(0, np.int64), lengths=np.zeros(0, np.int64))
    assert polygons_of_runs(nothing, height=3, width=3) == []
    assert not mask_of_runs(nothing, height=3, width=3).any()
