"""Runs of pixels against plain numpy, and their RLE against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from services.conversion.raster.error import RasterError
from services.conversion.raster.rle import (
    counts_of_runs,
    decode_rle,
    decode_rles,
    encode_rle,
    encode_rles,
    runs_of_counts,
)
from services.conversion.raster.runs import (
    Runs,
    bounds_of_many,
    bounds_of_runs,
    mask_of_runs,
    runs_of_labels,
    runs_of_mask,
    runs_of_window,
    window_of_runs,
)

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)
MASKS = arrays.arrays(np.bool_, SHAPES)
LARGE = 40
"""Examples with runs long enough for several characters come from a seed: hypothesis would take long to make them."""


def large_mask(seed: int) -> Any:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 400, 2)
    mask = np.zeros((height, width), np.bool_)
    for _ in range(random.integers(0, 6)):
        (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in (height, width))
        mask[top:bottom, left:right] ^= True
    return mask


def counts_of_coco(mask: Any) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def size_of(mask: Any) -> dict[str, int]:
    return {"height": mask.shape[0], "width": mask.shape[1]}


def boxed(mask: Any) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@given(mask=MASKS)
@settings(deadline=None, max_examples=200)
def test_a_mask_comes_back_from_its_runs(mask: Any) -> None:
    runs = runs_of_mask(mask)
    assert (runs.starts.dtype, runs.lengths.dtype, runs.area) == (np.int64, np.int64, mask.sum())
    assert (runs.lengths > 0).all()
    assert (runs.starts[1:] > (runs.starts + runs.lengths)[:-1]).all()
    back = mask_of_runs(runs, **size_of(mask))
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, mask)


@given(labels=arrays.arrays(np.uint16, SHAPES, elements=st.integers(0, 4)))
@settings(deadline=None, max_examples=200)
def test_the_runs_of_each_label_are_those_of_its_mask(labels: Any) -> None:
    found = runs_of_labels(labels, 5)
    assert list(found) == [runs_of_mask(labels == label) for label in range(1, 6)]
    assert found == runs_of_labels(np.asfortranarray(labels), 5)


def test_runs_of_labels_that_lie_otherwise_in_memory_are_the_same() -> None:
    labels = np.arange(24, dtype=np.uint16).reshape(4, 6) % 5
    for view in (labels[::-1], labels[:, ::-1], labels.T, labels[::2, ::3]):
        assert runs_of_labels(view, 4) == runs_of_labels(view.copy(), 4)
        assert runs_of_mask(view > 2) == runs_of_mask(view.copy() > 2)


@given(masks=st.lists(MASKS, min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_bounds_are_tight_and_half_open(masks: list[Any]) -> None:
    shown = [np.resize(mask, masks[0].shape) for mask in masks]
    shown = [mask for mask in shown if mask.any()]
    runs = [runs_of_mask(mask) for mask in shown]
    height = masks[0].shape[0]
    wanted = [boxed(mask) for mask in shown]
    assert bounds_of_many(runs, height=height) == wanted
    assert [bounds_of_runs(each, height=height) for each in runs] == wanted


@given(mask=MASKS, around=st.tuples(*[st.integers(0, 3)] * 4))
@settings(deadline=None, max_examples=100)
def test_a_window_is_a_part_of_its_map(mask: Any, around: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = around
    whole = np.pad(mask, ((top, bottom), (left, right)))
    runs = runs_of_window(mask, left=left, top=top, height=whole.shape[0])
    assert runs == runs_of_mask(whole)
    bounds = (left, top, left + mask.shape[1], top + mask.shape[0])
    np.testing.assert_array_equal(window_of_runs(runs, bounds, height=whole.shape[0]), mask)


@given(mask=MASKS)
@settings(deadline=None, max_examples=200)
def test_an_rle_has_the_bytes_of_pycocotools(mask: Any) -> None:
    text = encode_rle(runs_of_mask(mask), **size_of(mask))
    assert text == counts_of_coco(mask)
    assert decode_rle(text, **size_of(mask)) == runs_of_mask(mask)


@pytest.mark.parametrize("seed", range(LARGE))
def test_an_rle_of_long_runs_has_the_bytes_of_pycocotools(seed: int) -> None:
    mask = large_mask(seed)
    runs = runs_of_mask(mask)
    text = encode_rle(runs, **size_of(mask))
    assert text == counts_of_coco(mask)
    assert decode_rle(text, **size_of(mask)) == runs
    np.testing.assert_array_equal(mask_of_runs(runs, **size_of(mask)), mask)


def test_many_rles_at_once_are_those_of_each() -> None:
    masks = [np.resize(large_mask(seed), (97, 101)) for seed in range(9)] + [np.zeros((97, 101), np.bool_)]
    runs = [runs_of_mask(mask) for mask in masks]
    assert encode_rles(runs, height=97, width=101) == [counts_of_coco(mask) for mask in masks]
    assert encode_rles([], height=97, width=101) == []
    assert decode_rles(encode_rles(runs, height=97, width=101), height=97, width=101) == runs
    assert decode_rles([], height=97, width=101) == []


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_masks_that_are_decoded_at_once_do_not_run_into_each_other(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    masks = data.draw(st.lists(arrays.arrays(np.bool_, shape), min_size=1, max_size=6))
    texts = [counts_of_coco(mask) for mask in masks]
    assert decode_rles(texts, height=shape[0], width=shape[1]) == [runs_of_mask(mask) for mask in masks]


@pytest.mark.parametrize("text", [b"", b"7", b"3/", b"3P", b"31", b"ooooooo0", b"O"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_rle_that_does_not_fit_is_refused_wherever_it_stands(text: bytes, place: int) -> None:
    texts = [b"6", b"15"]
    assert [runs.area for runs in decode_rles(texts, height=2, width=3)] == [0, 5]
    texts.insert(place, text)
    with pytest.raises(RasterError):
        decode_rles(texts, height=2, width=3)


@given(mask=MASKS)
@settings(deadline=None, max_examples=100)
def test_a_mask_comes_back_from_its_list_of_counts(mask: Any) -> None:
    runs = runs_of_mask(mask)
    counts = counts_of_runs(runs, **size_of(mask))
    assert all(type(count) is int for count in counts)
    assert runs_of_counts(counts, **size_of(mask)) == runs
    height, width = mask.shape
    assert coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"] == counts_of_coco(
        mask
    )


def test_counts_of_nothing_in_between_join_what_is_around_them() -> None:
    assert runs_of_counts([1, 2, 0, 3, 0, 0, 4], height=2, width=5) == runs_of_counts([1, 5, 4], height=2, width=5)
    assert runs_of_counts([0, 0, 6], height=2, width=3) == Runs(starts=np.zeros(0, int), lengths=np.zeros(0, int))


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ([], "no list of counts"),
        ([2.0, 4], "no list of counts"),
        (["2", "4"], "no list of counts"),
        ([True, True], "no list of counts"),
        ([[6]], "no list of counts"),
        ([[1], [2, 3]], "no list of counts"),
        ([None], "no list of counts"),
        ([2**70], "no list of counts"),
        ([2**63], "a count of 9223372036854775808, where 3 x 2 were wanted"),
        ([7, -1], "a count below 0"),
        ([3, 2], "an RLE of 5 pixels, where 3 x 2 were wanted"),
        ([3, 4], "an RLE of 7 pixels, where 3 x 2 were wanted"),
    ],
)
def test_a_list_of_counts_that_does_not_fit_is_refused(counts: list[Any], problem: str) -> None:
    with pytest.raises(RasterError, match=problem) as caught:
        runs_of_counts(counts, height=2, width=3)
    assert caught.value.rule == "bad_rle"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "without any count"),
        (b"7", "a count of 7, where 3 x 2 were wanted"),
        (b"3/", "characters that none has"),
        (b"3\xff", "characters that none has"),
        (b"3p", "characters that none has"),
        (b"3P", "ends in the middle"),
        (b"31", "an RLE of 4 pixels, where 3 x 2 were wanted"),
        (b"ooooooo0", "larger than any map"),
        (b"O", "a count below 0"),
    ],
)
def test_an_rle_that_does_not_fit_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(RasterError, match=problem) as caught:
        decode_rle(text, height=2, width=3)
    assert caught.value.rule == "bad_rle"


@given(text=st.one_of(st.binary(max_size=12), st.text("0123456789:;<=>?@OPQRSTno", max_size=12).map(str.encode)))
@settings(deadline=None, max_examples=300)
def test_any_text_is_an_rle_or_refused(text: bytes) -> None:
    try:
        runs = decode_rle(text, height=4, width=5)
    except RasterError:
        return
    assert runs == runs_of_mask(mask_of_runs(runs, height=4, width=5))
