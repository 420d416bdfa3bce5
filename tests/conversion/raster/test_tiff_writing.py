"""TIFF as it is written here: what comes back from it here, in Pillow and in libtiff, and how small it is."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from services.conversion.file.header import Pieces, read_header
from services.conversion.raster.error import RasterLimits
from services.conversion.raster.runs import runs_of_mask, runs_of_window
from services.conversion.raster.tiff import Page, read_pages, write_instances, write_panoptic

LIMITS = RasterLimits(pixels_max=480 * 640, pages_max=200)


def check(page: Page, pixels: Any) -> None:
    assert (page.height, page.width, page.bits) == (*pixels.shape[:2], 8 * pixels.dtype.itemsize)
    assert page.black == (not pixels.any())
    np.testing.assert_array_equal(page.pixels(), pixels)


def masks_of(height: int, width: int, count: int) -> list[Any]:
    random = np.random.default_rng(height)
    masks = []
    for _ in range(count):
        mask = np.zeros((height, width), np.bool_)
        (top, bottom), (left, right) = (sorted(random.integers(0, side, 2)) for side in (height, width))
        mask[top : bottom + 1, left : right + 1] = random.random((bottom + 1 - top, right + 1 - left)) < 0.9
        mask[top, left] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (97, 640), (480, 64), (3, 20_000)])
def test_instances_come_back_here_in_pillow_and_in_libtiff(height: int, width: int) -> None:
    masks = masks_of(height, width, 6)
    colors = [(255, 0, 0), (0, 0, 1), (3, 2, 1), (255, 255, 255), (0, 128, 0), (3, 2, 1)]
    content = write_instances(height, width, [(runs_of_mask(m), c) for m, c in zip(masks, colors, strict=True)])
    image = Image.open(io.BytesIO(content))
    pages = read_pages(content, LIMITS)
    assert len(pages) == 6
    for index, (page, mask, color) in enumerate(zip(pages, masks, colors, strict=True)):
        wanted = mask[..., None] * np.array(color, np.uint8)
        check(page, wanted)
        image.seek(index)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), wanted)
        np.testing.assert_array_equal(imagecodecs.tiff_decode(content, index=index), wanted)
        top, rows = page.band()
        assert runs_of_window(rows.any(axis=2), left=0, top=top, height=height) == runs_of_mask(mask)


def test_no_instance_is_one_black_page() -> None:
    (page,) = read_pages(write_instances(30, 40, []), LIMITS)
    assert page.black
    check(page, np.zeros((30, 40, 3), np.uint8))


def test_black_is_shared_between_pages() -> None:
    mask = np.zeros((480, 640), np.bool_)
    mask[100:120, 300:340] = True
    few, many = (len(write_instances(480, 640, [(runs_of_mask(mask), (9, 9, 9))] * pages)) for pages in (10, 110))
    # A page costs its directory: the offset and the size of each of its 29 strips, and the entries that point there.
    assert (many - few) / 100 < 2 * 4 * 29 + 150
    everything = read_pages(
        write_instances(480, 640, [(runs_of_mask(mask), (9, 9, 9))] * 3),
        RasterLimits(pixels_max=480 * 640, pages_max=3),
    )
    assert [page.band()[1].shape[0] < 60 for page in everything] == [True] * 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_panoptic_map_comes_back_here_and_in_libtiff(dtype: Any) -> None:
    random = np.random.default_rng(0)
    colors = np.kron(random.integers(0, 256, (9, 7, 3)).astype(np.uint8), np.ones((9, 11, 1), np.uint8))
    ids = np.kron(random.integers(0, np.iinfo(dtype).max + 1, (9, 7)).astype(dtype), np.ones((9, 11), dtype))
    content = write_panoptic(colors, ids)
    first, second = read_pages(content, LIMITS)
    check(first, colors)
    check(second, ids)
    np.testing.assert_array_equal(imagecodecs.tiff_decode(content, index=0), colors)
    np.testing.assert_array_equal(imagecodecs.tiff_decode(content, index=1), ids)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), colors)
    header = read_header(Pieces(head=content, tail=b"", size_bytes=len(content)))
    assert (header.width, header.height) == (77, 81)
