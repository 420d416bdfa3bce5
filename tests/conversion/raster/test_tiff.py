"""TIFF: every kind of it, written here by hand or by Pillow, is read exactly; everything else is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.runs import runs_of_mask
from services.conversion.raster.tiff import Page, read_pages, write_instances

LIMITS = RasterLimits(pixels_max=100_000, pages_max=20)
COMPRESSORS = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32946: zlib.compress,
    32773: imagecodecs.packbits_encode,
    50000: imagecodecs.zstd_encode,
}
KIND_BY_SIZE = {1: (1, "B"), 2: (3, "H"), 4: (4, "I"), 8: (16, "Q")}


class Builder:
    """A TIFF by hand: pages as mappings of tags to whole numbers, with their pieces."""

    def __init__(self, order: str = "<", *, big: bool = False) -> None:
        self.order, self.big = order, big
        mark = b"II" if order == "<" else b"MM"
        self.content = bytearray(
            mark + struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else mark + self.pack("HI", 42, 0)
        )
        self.link = 8 if big else 4

    def pack(self, layout: str, *values: int) -> bytes:
        return struct.pack(self.order + layout, *values)

    def add(self, tags: dict[int, Sequence[int]], *, wide: int = 4) -> int:
        """A directory, its offsets and sizes of `wide` bytes each; gives where it is."""
        table = b""
        slot = 8 if self.big else 4
        for tag, values in sorted(tags.items()):
            kind, code = KIND_BY_SIZE[wide if tag in (273, 279, 324, 325, 256) else 2 if max(values) < 2**16 else 4]
            field = self.pack(f"{len(values)}{code}", *values)
            if len(field) > slot:
                position = self.put(field)
                field = self.pack("Q" if self.big else "I", position)
            table += self.pack("HHQ" if self.big else "HHI", tag, kind, len(values)) + field.ljust(slot, b"\0")
        place = self.put(self.pack("Q" if self.big else "H", len(tags)) + table + bytes(slot))
        self.content[self.link : self.link + slot] = self.pack("Q" if self.big else "I", place)
        self.link = len(self.content) - slot
        return place

    def put(self, data: bytes) -> int:
        self.content += data
        return len(self.content) - len(data)


def pieces_of(pixels: Any, *, tile: tuple[int, int] | None, rows: int, planar: bool) -> list[Any]:
    """The strips or tiles (rows, width, samples) of a page (height, width, samples), planes first."""
    height, width, samples = pixels.shape
    planes = [pixels[..., plane : plane + 1] for plane in range(samples)] if planar else [pixels]
    if tile is None:
        return [plane[y : y + rows] for plane in planes for y in range(0, height, rows)]
    down, across = tile
    padded = [np.pad(plane, ((0, -height % down), (0, -width % across), (0, 0)), mode="edge") for plane in planes]
    return [
        plane[y : y + down, x : x + across]
        for plane in padded
        for y in range(0, height, down)
        for x in range(0, width, across)
    ]


def add_page(
    builder: Builder,
    pixels: Any,
    *,
    compression: int = 1,
    predictor: int = 1,
    tile: tuple[int, int] | None = None,
    rows: int = 4,
    planar: bool = False,
    wide: int = 4,
    **changes: Sequence[int],
) -> int:
    """Pixels (height, width, samples). `changes` are tags to set or, where empty, to leave out: `t259=[7]`."""
    height, width, samples = pixels.shape
    offsets, sizes = [], []
    for piece in pieces_of(pixels, tile=tile, rows=rows, planar=planar):
        values = piece
        if predictor == 2:
            values = piece.copy()
            values[:, 1:] -= piece[:, :-1]
        data = COMPRESSORS.get(compression, bytes)(values.astype(values.dtype.newbyteorder(builder.order)).tobytes())
        sizes.append(len(data))
        offsets.append(builder.put(data))
    tags: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * samples,
        259: [compression],
        262: [1 if samples < 3 else 2],
        277: [samples],
        284: [2 if planar else 1],
        317: [predictor],
        **({338: [2]} if samples in (2, 4) else {}),
        **({322: [tile[1]], 323: [tile[0]], 324: offsets, 325: sizes} if tile else {}),
        **({} if tile else {273: offsets, 278: [rows], 279: sizes}),
        **{int(tag[1:]): values for tag, values in changes.items()},
    }
    return builder.add({tag: values for tag, values in tags.items() if len(values)}, wide=wide)


def made(samples: int, dtype: Any = np.uint8, *, height: int = 11, width: int = 13, seed: int = 0) -> Any:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, samples)).astype(dtype)
    if samples in (2, 4):
        pixels[..., -1] = np.iinfo(dtype).max
    return pixels


def one(pixels: Any, **how: Any) -> bytes:
    builder = Builder()
    add_page(builder, pixels, **how)
    return bytes(builder.content)


def check(page: Page, pixels: Any) -> None:
    """That the page is these pixels (height, width, samples), of which alpha goes."""
    wanted = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    assert (page.height, page.width, page.samples) == wanted.shape
    assert page.bits == 8 * pixels.dtype.itemsize
    found = page.pixels()
    assert found.dtype == pixels.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found if found.ndim == 3 else found[..., None], wanted)
    top, rows = page.band()
    np.testing.assert_array_equal(rows, found[top : top + len(rows)])
    assert not found[:top].any()
    assert not found[top + len(rows) :].any()
    assert page.black == (not pixels.any())


@pytest.mark.parametrize("tile", [None, (16, 16), (8, 4), (32, 64)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("compression", COMPRESSORS)
def test_every_kind_is_read_exactly(compression: int, predictor: int, dtype: Any, planar: bool, tile: Any) -> None:
    for order, big in (("<", predictor == 2), (">", predictor == 1)):
        builder = Builder(order, big=big)
        pages = [made(samples, dtype) for samples in (1, 2, 3, 4)]
        pages += [np.zeros((11, 13, 3), dtype), made(3, dtype, height=1, width=1), made(1, dtype, height=40, width=2)]
        for pixels in pages:
            how = {"tile": tile, "planar": planar, "wide": 8 if big else 4}
            add_page(builder, pixels, compression=compression, predictor=predictor, **how)
        read = read_pages(bytes(builder.content), LIMITS)
        assert len(read) == len(pages)
        for page, pixels in zip(read, pages, strict=True):
            check(page, pixels)


@pytest.mark.parametrize("rows", [1, 3, 11, 2**32 - 1])
def test_strips_of_any_height_are_read(rows: int) -> None:
    pixels = made(3)
    for wide in (2, 4):
        check(read_pages(one(pixels, rows=rows, wide=wide), LIMITS)[0], pixels)
    check(read_pages(one(pixels, rows=2**32 - 1, t278=[]), LIMITS)[0], pixels)


def test_what_a_page_need_not_say_is_taken_as_the_format_has_it() -> None:
    gray, colors = made(1), made(3)
    check(read_pages(one(gray, t259=[], t262=[], t277=[], t284=[], t317=[], t339=[]), LIMITS)[0], gray)
    check(read_pages(one(colors, t259=[], t262=[], t284=[], t317=[]), LIMITS)[0], colors)


def test_a_last_strip_that_goes_on_beyond_the_page_is_cut() -> None:
    pixels = made(3, height=12)
    check(read_pages(one(pixels, compression=8, rows=4, t257=[10]), LIMITS)[0], pixels[:10])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
@pytest.mark.parametrize("big", [False, True])
def test_what_pillow_writes_is_read_as_pillow_reads_it(mode: str, compression: str, big: bool) -> None:
    random = np.random.default_rng(0)
    pages = []
    for _ in range(3):
        blocks = np.kron(random.integers(0, 256, (3, 4, 3)), np.ones((31, 50, 1)))
        pixels = blocks.astype(np.uint8) if mode == "RGB" else blocks[..., 0].astype(np.uint8)
        pages.append(Image.fromarray(pixels.astype(np.uint16) * 257 if mode == "I;16" else pixels))
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], compression=compression, big_tiff=big)
    read = read_pages(file.getvalue(), LIMITS)
    assert len(read) == 3
    for page, image in zip(read, pages, strict=True):
        wanted = np.asarray(image)
        check(page, wanted if wanted.ndim == 3 else wanted[..., None])


def test_alpha_that_hides_a_colour_is_refused_and_over_black_it_goes() -> None:
    pixels = made(4)
    pixels[2, 3] = 0
    check(read_pages(one(pixels), LIMITS)[0], pixels)
    pixels[2, 3, 1] = 5
    with pytest.raises(RasterError, match="transparent and not black") as caught:
        read_pages(one(pixels), LIMITS)[0].pixels()
    assert caught.value.rule == "transparent_map"


@pytest.mark.parametrize(
    ("rule", "problem", "changes"),
    [
        ("unreadable_map", "without width", {"t256": []}),
        ("unreadable_map", "without height", {"t257": [0]}),
        ("unreadable_map", "without rows", {"t278": [0]}),
        ("unreadable_map", "0 strips or tiles, where 3 were wanted", {"t273": []}),
        ("unreadable_map", "0 strips or tiles, where 3 were wanted", {"t279": []}),
        ("unreadable_map", "3 strips or tiles, where 4 were wanted", {"t257": [13]}),
        ("decompression_bomb", "claims 70000 x 60000 pixels", {"t256": [70_000], "t257": [60_000]}),
        ("unsupported_map", "5 samples a pixel", {"t277": [5]}),
        ("unsupported_map", "photometric interpretation 0", {"t262": [0]}),
        ("unsupported_map", "photometric interpretation 3", {"t262": [3]}),
        ("unsupported_map", "photometric interpretation 6", {"t262": [6], "t277": [3]}),
        ("unsupported_map", "1 bits a sample", {"t258": []}),
        ("unsupported_map", "32 bits a sample", {"t258": [32]}),
        ("unsupported_map", "sample format 3", {"t339": [3]}),
        ("unsupported_map", "samples differ in tag 258", {"t258": [8, 8, 16]}),
        ("unsupported_map", "compression 7", {"t259": [7]}),
        ("unsupported_map", "predictor 3", {"t317": [3]}),
        ("unsupported_map", "fill order 2", {"t266": [2]}),
        ("truncated_map", "in the middle of a page", {"t273": [8, 8, 9_999]}),
        ("truncated_map", "in the middle of a page", {"t279": [8, 8, 9_999]}),
        ("truncated_map", "in the middle of a page", {"t279": [8, 8, 2**32 - 1]}),
    ],
)
def test_a_page_that_is_none_of_ours_is_refused(rule: str, problem: str, changes: dict[str, Sequence[int]]) -> None:
    with pytest.raises(RasterError, match=problem) as caught:
        read_pages(one(made(1), **changes), LIMITS)
    assert caught.value.rule == rule


def test_offsets_whose_sum_overflows_lie_outside_of_the_file() -> None:
    builder = Builder(big=True)
    add_page(builder, made(1), wide=8, t273=[2**64 - 8] * 3, t279=[2**4] * 3)
    with pytest.raises(RasterError, match="in the middle of a page"):
        read_pages(bytes(builder.content), LIMITS)


@pytest.mark.parametrize("compression", [each for each in COMPRESSORS if each != 1])
def test_a_strip_of_another_size_than_claimed_is_refused_or_cut(compression: int) -> None:
    pixels = made(1, height=8)
    lzw = compression == 5
    problem = "damaged, or not as large as claimed" if lzw else "a piece of 104 bytes, where 208 were wanted"
    for height in (4, 8):
        page = read_pages(one(pixels, compression=compression, rows=8, t256=[26], t257=[height]), LIMITS)[0]
        if height == 8:
            assert not page.black
            with pytest.raises(RasterError, match=problem) as caught:
                page.pixels()
            assert caught.value.rule == ("unreadable_map" if lzw else "truncated_map")
            continue
        np.testing.assert_array_equal(page.pixels(), pixels.reshape(4, 26))


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_what_a_strip_has_beyond_its_page_is_refused_or_no_pixel(compression: int) -> None:
    pixels = made(1, height=8)
    page = read_pages(one(pixels, compression=compression, rows=8, t257=[4], t278=[4]), LIMITS)[0]
    if compression in (1, 5):  # these stop where they are told to
        check(page, pixels[:4])
        return
    with pytest.raises(RasterError, match="damaged, or not as large as claimed") as caught:
        page.pixels()
    assert caught.value.rule == "unreadable_map"


@pytest.mark.parametrize(
    "content", [b"", b"II", b"II*\0", b"II*\0\0\0\0\0", b"II+\0\x08\0\0\0", b"\x89PNG", b"II\0\0" * 4]
)
def test_what_is_no_tiff_is_refused(content: bytes) -> None:
    with pytest.raises(RasterError):
        read_pages(content, LIMITS)


def test_pages_that_go_round_in_a_circle_are_refused() -> None:
    for back in (0, 1, 2):
        builder = Builder()
        places = [add_page(builder, made(1)) for _ in range(3)]
        builder.content[builder.link : builder.link + 4] = builder.pack("I", places[back])
        with pytest.raises(RasterError, match="round in a circle") as caught:
            read_pages(bytes(builder.content), LIMITS)
        assert caught.value.rule == "unreadable_map"


def test_more_pages_than_allowed_are_refused() -> None:
    content = write_instances(5, 5, [(runs_of_mask(np.ones((5, 5), np.bool_)), (1, 2, 3))] * 20)
    assert len(read_pages(content, LIMITS)) == 20
    with pytest.raises(RasterError, match="more than 19 pages") as caught:
        read_pages(content, RasterLimits(pixels_max=100, pages_max=19))
    assert caught.value.rule == "too_many_pages"


def peak_bytes(content: bytes, limits: RasterLimits) -> int:
    tracemalloc.start()
    try:
        for page in read_pages(content, limits):
            page.pixels()
    except RasterError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_bomb_is_refused_before_it_takes_any_memory(compression: int) -> None:
    large = RasterLimits(pixels_max=2**32, pages_max=20)
    black = np.zeros((16, 16, 3), np.uint8)
    how: dict[str, Any] = {"compression": compression, "rows": 16}
    if compression != 50000:  # Zstandard says 128 KiB of one value in four bytes
        claimed = one(made(3, height=16, width=16), t256=[60_000], t257=[60_000], t278=[60_000], **how)
        assert peak_bytes(claimed, large) < 1_000_000
    grown = one(np.zeros((400, 400, 1), np.uint8), compression=compression, rows=400, t256=[10], t257=[10])
    assert peak_bytes(grown, LIMITS) < 100_000
    tiles = one(black, tile=(16, 16), compression=compression, t322=[2**20], t323=[2**12])
    assert peak_bytes(tiles, LIMITS) < 100_000
    slivers = one(black, tile=(16, 16), compression=compression, t256=[1], t257=[100_000], t322=[1024], t323=[1024])
    assert peak_bytes(slivers, LIMITS) < 100_000


def test_pages_that_share_a_long_list_of_strips_are_refused_as_a_bomb() -> None:
    builder = Builder()
    strips = 600_000
    data = builder.put(bytes(1))
    offsets = builder.put(struct.pack("<I", data) * strips)
    sizes = builder.put(struct.pack("<I", 1) * strips)
    for _ in range(18):
        entries = [(256, 1, 1), (257, 1, strips), (258, 1, 8), (262, 1, 1), (278, 1, 1)]
        entries += [(273, strips, offsets), (279, strips, sizes)]
        table = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(entries))
        place = builder.put(struct.pack("<H", len(entries)) + table + bytes(4))
        builder.content[builder.link : builder.link + 4] = struct.pack("<I", place)
        builder.link = len(builder.content) - 4
    with pytest.raises(RasterError, match="more than 10000000 strips or tiles") as caught:
        read_pages(bytes(builder.content), RasterLimits(pixels_max=strips, pages_max=20))
    assert caught.value.rule == "decompression_bomb"


def sample_file(*, big: bool, order: str) -> bytes:
    builder = Builder(order, big=big)
    wide = 8 if big else 4
    add_page(builder, made(3), compression=8, planar=True, wide=wide)
    add_page(builder, made(4, np.uint16), compression=5, predictor=2, tile=(8, 8), wide=wide)
    add_page(builder, np.zeros((11, 13, 1), np.uint8), compression=50000, wide=wide)
    add_page(builder, made(1), compression=32773, wide=wide)
    return bytes(builder.content)


SAMPLE_FILES = [
    sample_file(big=False, order="<"),
    sample_file(big=True, order=">"),
    write_instances(40, 30, [(runs_of_mask(np.eye(40, 30, k, dtype=np.bool_)), (1, 2, 3)) for k in (0, 20)]),
]


def read_all(content: bytes) -> None:
    for page in read_pages(content, LIMITS):
        black = page.black
        pixels = page.pixels()
        assert black == (not pixels.any())
        assert pixels.shape[:2] == (page.height, page.width)


@pytest.mark.parametrize("content", SAMPLE_FILES)
def test_a_file_that_was_cut_off_is_refused(content: bytes) -> None:
    for length in range(0, len(content) - 8, 3):
        with pytest.raises(RasterError):
            read_all(content[:length])


@given(content=st.sampled_from(SAMPLE_FILES), data=st.data())
@settings(deadline=None, max_examples=400)
def test_a_damaged_file_is_read_or_refused(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
    try:
        read_all(bytes(damaged))
    except RasterError:
        return
