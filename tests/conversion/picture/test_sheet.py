"""Contact sheets: how a page is divided, what it says where there is no room, how large its file is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from services.conversion.picture.legend import Entry
from services.conversion.picture.sheet import (
    PAGE_WIDTH,
    Exhibit,
    Tile,
    compose,
    encode,
    layout_of,
)


def page(images: int = 4, tiles: int = 2, legend: tuple[Entry, ...] = (), remark: str = "") -> Image.Image:
    layout = layout_of(images, tiles)
    picture = Image.new("RGB", (layout.tile_side, layout.tile_side * 3 // 4), (200, 30, 30))
    exhibits = [
        Exhibit(name=f"{n}.jpg", tiles=[Tile(picture=picture, legend=legend)] * tiles, remark=remark)
        for n in range(images)
    ]
    headings = ["before: boxes", "after: labels"][: tiles if tiles > 1 else 0]
    return compose("boxes → labels", f"{images} images", headings, exhibits, layout)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 8, 24])
def test_a_page_is_never_wider_than_it_may_be(images: int, tiles: int) -> None:
    layout = layout_of(images, tiles)
    found = page(images, tiles)
    assert found.width <= PAGE_WIDTH
    assert layout.tile_side >= 350
    assert layout.images_across <= images


def test_few_images_are_shown_larger_than_many() -> None:
    assert layout_of(1, 2).tile_side > layout_of(8, 2).tile_side
    assert layout_of(2, 1).tile_side > layout_of(8, 1).tile_side


def test_every_tile_is_on_the_page_whole() -> None:
    found = np.asarray(page(3, 2))
    side = layout_of(3, 2).tile_side
    assert (found == (200, 30, 30)).all(axis=2).sum() == 3 * 2 * side * (side * 3 // 4)


def test_a_page_is_the_same_every_time() -> None:
    assert page().tobytes() == page().tobytes()


def test_a_legend_without_room_says_how_much_is_missing() -> None:
    some = page(1, 1, tuple(Entry(text=f"category {n}", color=(0, 90, 0)) for n in range(4)))
    many = page(1, 1, tuple(Entry(text=f"category {n}", color=(0, 90, 0)) for n in range(500)))
    more = page(1, 1, tuple(Entry(text=f"category {n}", color=(0, 90, 0)) for n in range(5_000)))
    assert some.height < many.height == more.height
    assert many.tobytes() != more.tobytes(), "the number of those left out differs"


def test_names_and_remarks_of_any_length_stay_on_the_page() -> None:
    plain, long = page(2, 1), page(2, 1, remark="left out: " + "no_area " * 500)
    assert plain.size == long.size
    legend = (Entry(text="x" * 5_000), Entry(text="y" * 5_000, color=(1, 2, 3)))
    assert page(2, 1, legend).width == plain.width


def test_flat_pages_are_png_and_photos_are_jpeg() -> None:
    flat = encode(page(), 2**20)
    assert (flat.media_type, flat.suffix) == ("image/png", ".png")
    photo = encode(noise(300, 200), 2**20)
    assert (photo.media_type, photo.suffix) == ("image/jpeg", ".jpg")
    for picture, kind in ((flat, "PNG"), (photo, "JPEG")):
        assert Image.open(io.BytesIO(picture.content)).format == kind


def test_a_file_keeps_to_its_limit_with_less_quality_or_size() -> None:
    whole = encode(noise(600, 400), 10 * 2**20)
    sizes = []
    for bytes_max in (len(whole.content) // 2, len(whole.content) // 10, len(whole.content) // 100):
        small = encode(noise(600, 400), bytes_max)
        assert len(small.content) <= bytes_max
        sizes.append(Image.open(io.BytesIO(small.content)).width)
    assert sizes[0] == 600 > sizes[-1]
