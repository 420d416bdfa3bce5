"""PNG: every kind of it, written here by hand or by Pillow, is read exactly; everything else is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.png import decode_png, decode_png_numbers, encode_png, png_header

LIMITS = RasterLimits(pixels_max=100_000, pages_max=1)
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
KINDS = [(kind, bits) for kind in SAMPLES for bits in (1, 2, 4, 8, 16) if bits > 4 or kind in (GRAY, PALETTE)]
KINDS.remove((PALETTE, 16))
DATA = Path(__file__).parents[4] / "shared/data/coco_panoptic_sample/panoptic_examples"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows_of(samples: Any, bits: int) -> list[bytes]:
    """Each row's samples, packed."""
    height = len(samples)
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in samples]
    text = ["".join(f"{each:0{bits}b}" for each in samples[y].reshape(-1).tolist()) for y in range(height)]
    return [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in text]


def filtered(rows: list[bytes], kind: int, step: int) -> bytes:
    """PNG's filters as its specification words them; 5 is each of them by turns."""
    out = bytearray()
    above = bytes(len(rows[0])) if rows else b""
    for number, row in enumerate(rows):
        chosen = number % 5 if kind == 5 else kind
        out.append(chosen)
        for index, value in enumerate(row):
            left = row[index - step] if index >= step else 0
            up, corner = above[index], above[index - step] if index >= step else 0
            guess = left + up - corner
            paeth = min((abs(guess - each), order, each) for order, each in enumerate((left, up, corner)))[2]
            out.append((value - (0, left, up, (left + up) // 2, paeth)[chosen]) % 256)
        above = row
    return bytes(out)


def png(samples: Any, kind: int, bits: int, *, filter_kind: int = 0, interlaced: bool = False, **more: Any) -> bytes:
    """Samples (height, width, samples). `palette` and `transparency` are bytes; `data` replaces the picture."""
    height, width, count = samples.shape
    step = max(1, count * bits // 8)
    passes = [samples]
    if interlaced:
        grid = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        passes = [samples[y::down, x::across] for x, y, across, down in grid]
    raw = b"".join(filtered(rows_of(part, bits), filter_kind, step) for part in passes if part.size)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))]
    parts += [chunk(b"gAMA", struct.pack(">I", 20_000)), chunk(b"tEXt", b"Comment\0by hand")]
    if "palette" in more:
        parts.append(chunk(b"PLTE", more["palette"]))
    if "transparency" in more:
        parts.append(chunk(b"tRNS", more["transparency"]))
    data = more.get("data", zlib.compress(raw))
    cut = len(data) // 2
    return b"".join([*parts, chunk(b"IDAT", data[:cut]), chunk(b"IDAT", data[cut:]), chunk(b"IEND", b"")])


def made(kind: int, bits: int, *, height: int = 11, width: int = 13) -> Any:
    """Samples that are opaque where there is alpha."""
    samples = np.random.default_rng(bits * 8 + kind).integers(0, 2**bits, (height, width, SAMPLES[kind]))
    if kind in (GRAY_ALPHA, RGBA):
        samples[..., -1] = 2**bits - 1
    return samples


def shown(samples: Any, kind: int, bits: int, palette: bytes) -> Any:
    if kind == PALETTE:
        return np.frombuffer(palette, np.uint8).reshape(-1, 3)[samples[..., 0]]
    samples = samples[..., : 3 if kind in (RGB, RGBA) else 1]
    samples = samples * (255 // (2**bits - 1)) if bits < 8 else samples
    return samples[..., 0] if samples.shape[2] == 1 else samples


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("filter_kind", range(6))
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_every_kind_is_read_exactly(kind: int, bits: int, filter_kind: int, interlaced: bool) -> None:
    samples = made(kind, bits)
    palette = bytes(np.random.default_rng(0).integers(0, 256, 3 * 2 ** min(bits, 8)).astype(np.uint8))
    more = {"palette": palette} if kind == PALETTE else {}
    content = png(samples, kind, bits, filter_kind=filter_kind, interlaced=interlaced, **more)
    pixels = decode_png(content, LIMITS)
    assert pixels.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(pixels, shown(samples, kind, bits, palette))
    header = png_header(content, LIMITS)
    assert (header.width, header.height, header.bits) == (13, 11, bits)
    assert header.gray == (kind in (GRAY, GRAY_ALPHA))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("filter_kind", [0, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (3, 300)])
def test_every_size_is_read_exactly(size: tuple[int, int], filter_kind: int, interlaced: bool) -> None:
    for kind, bits in ((RGB, 8), (GRAY, 1), (GRAY, 16)):
        samples = made(kind, bits, height=size[0], width=size[1])
        content = png(samples, kind, bits, filter_kind=filter_kind, interlaced=interlaced)
        np.testing.assert_array_equal(decode_png(content, LIMITS), shown(samples, kind, bits, b""))


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB"])
@pytest.mark.parametrize("size", [(640, 48), (3, 5)])
def test_what_pillow_writes_is_read_as_pillow_reads_it(mode: str, size: tuple[int, int]) -> None:
    gradient = Image.radial_gradient("L").resize(size)
    image = gradient.convert("RGB").convert("P") if mode == "P" else gradient.convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(gradient, np.uint16) * 257)
    file = io.BytesIO()
    image.save(file, "PNG")
    wanted = np.asarray(image.convert("RGB") if mode == "P" else image)
    np.testing.assert_array_equal(
        decode_png(file.getvalue(), LIMITS), wanted * np.uint8(255) if mode == "1" else wanted
    )


@pytest.mark.parametrize("level", [0, 1, 3, 9])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 200), (1, 1, 3), (7, 5, 3), (30, 200, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_comes_back_here_and_in_pillow(dtype: Any, shape: tuple[int, ...], level: int) -> None:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    content = encode_png(pixels, level=level)
    back = decode_png(content, LIMITS)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels)
    if dtype == np.uint8 or len(shape) == 2:  # Pillow makes 8 bits of colours of 16
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_pixels_that_do_not_lie_side_by_side_in_memory_are_written_the_same() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    for view in (pixels[::2], pixels[:, ::-1], pixels.transpose(1, 0, 2), pixels[..., 1], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(decode_png(encode_png(view), LIMITS), view)


def test_real_maps_are_read_as_pillow_reads_them() -> None:
    if not DATA.is_dir():
        pytest.skip("the real data of coco_panoptic_sample are not beside the repository")
    for path in sorted(DATA.glob("*.png")):
        pixels = decode_png(path.read_bytes(), RasterLimits(pixels_max=640 * 640, pages_max=1))
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))
        assert len(encode_png(pixels)) < 1.1 * path.stat().st_size


@pytest.mark.parametrize(("kind", "bits"), [(GRAY_ALPHA, 8), (GRAY_ALPHA, 16), (RGBA, 8), (RGBA, 16)])
def test_alpha_that_hides_a_colour_is_refused_and_over_black_it_goes(kind: int, bits: int) -> None:
    samples = made(kind, bits)
    samples[3, 4] = 0
    samples[5, 6, :-1], samples[5, 6, -1] = 0, 7
    pixels = decode_png(png(samples, kind, bits), LIMITS)
    np.testing.assert_array_equal(pixels, shown(samples, kind, bits, b""))
    samples[5, 6, 0] = 1
    with pytest.raises(RasterError, match="transparent and not black") as caught:
        decode_png(png(samples, kind, bits), LIMITS)
    assert caught.value.rule == "transparent_map"


@pytest.mark.parametrize(("kind", "bits"), [(GRAY, 2), (GRAY, 8), (GRAY, 16), (RGB, 8), (RGB, 16), (PALETTE, 8)])
def test_a_transparent_colour_is_refused_where_it_is_used(kind: int, bits: int) -> None:
    samples = np.zeros((4, 4, SAMPLES[kind]), np.int64)
    samples[1, 2] = 3
    more = {"palette": bytes([0, 0, 0, 9, 9, 9, 8, 8, 8, 7, 7, 7])} if kind == PALETTE else {}
    color = struct.pack(">H", 3) * samples.shape[2]
    black = struct.pack(">H", 0) * samples.shape[2]
    unused = struct.pack(">H", 2) * samples.shape[2]
    if kind == PALETTE:
        color, black, unused = b"\xff\xff\xff\0", b"\0", b"\xff\0"
    for harmless in (black, unused):
        decode_png(png(samples, kind, bits, transparency=harmless, **more), LIMITS)
    with pytest.raises(RasterError, match="transparent and not black"):
        decode_png(png(samples, kind, bits, transparency=color, **more), LIMITS)


def header(width: int, height: int, bits: int = 8, kind: int = RGB, *tail: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, *(tail or (0, 0, 0))))


@pytest.mark.parametrize(
    ("rule", "problem", "parts"),
    [
        ("truncated_map", "ends after 8 bytes", []),
        ("unreadable_map", "does not begin with IHDR", [chunk(b"IDAT", b"")]),
        ("unreadable_map", "does not begin with IHDR", [chunk(b"IHDR", b"123")]),
        ("unreadable_map", "a size of 0 x 5", [header(0, 5)]),
        ("unreadable_map", "a size of 5 x 2147483648", [header(5, 2**31)]),
        ("unreadable_map", "4 bits of colour type 2", [header(5, 5, 4)]),
        ("unreadable_map", "8 bits of colour type 5", [header(5, 5, 8, 5)]),
        ("unreadable_map", "which no PNG has", [header(5, 5, 8, 2, 1, 0, 0)]),
        ("unreadable_map", "which no PNG has", [header(5, 5, 8, 2, 0, 0, 2)]),
        ("decompression_bomb", "claims 1000 x 101 pixels, where at most 100000", [header(1000, 101)]),
        ("truncated_map", "in the middle", [header(5, 5)]),
        ("truncated_map", "too few for the size", [header(5, 5), chunk(b"IEND", b"")]),
        ("truncated_map", "too few for the size", [header(300, 300), chunk(b"IDAT", b"123"), chunk(b"IEND", b"")]),
        ("unreadable_map", "a chunk b'ABCD'", [header(5, 5), chunk(b"ABCD", b""), chunk(b"IEND", b"")]),
        ("unreadable_map", "palette of 0 bytes", [header(5, 5, 8, 3), chunk(b"IEND", b"")]),
        ("unreadable_map", "palette of 4 bytes", [header(5, 5, 8, 3), chunk(b"PLTE", b"1234"), chunk(b"IEND", b"")]),
        ("unreadable_map", "palette of 771 bytes", [header(5, 5), chunk(b"PLTE", bytes(771)), chunk(b"IEND", b"")]),
        ("unreadable_map", "the checksum of b'IHDR'", [header(5, 5)[:-1] + b"!"]),
    ],
)
def test_what_is_no_png_is_refused(rule: str, problem: str, parts: list[bytes]) -> None:
    with pytest.raises(RasterError, match=problem) as caught:
        decode_png(b"\x89PNG\r\n\x1a\n" + b"".join(parts), LIMITS)
    assert caught.value.rule == rule


def test_what_follows_a_picture_is_not_read_as_no_tool_does() -> None:
    samples = made(RGB, 8, height=2, width=5)
    raw = filtered(rows_of(samples, 8), 0, 3)
    content = png(samples, RGB, 8, data=zlib.compress(raw + bytes(30_000)))
    np.testing.assert_array_equal(decode_png(content, LIMITS), samples)


@pytest.mark.parametrize(("kind", "bits"), [(PALETTE, b) for b in (1, 2, 4, 8)] + [(GRAY, b) for b in (1, 2, 4, 8, 16)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_the_numbers_of_a_palette_and_of_gray_are_those_that_are_written(
    kind: int, bits: int, interlaced: bool
) -> None:
    samples = made(kind, bits)
    content = png(samples, kind, bits, interlaced=interlaced, palette=bytes(3))
    np.testing.assert_array_equal(decode_png_numbers(content, LIMITS), samples[..., 0])


def test_a_picture_of_colours_has_no_numbers() -> None:
    with pytest.raises(RasterError, match="one number a pixel"):
        decode_png_numbers(png(made(RGB, 8), RGB, 8), LIMITS)


@pytest.mark.parametrize(
    ("rule", "problem", "raw"),
    [
        ("unreadable_map", "damaged, or too short: Not enough image data", bytes(31)),
        ("unreadable_map", "damaged, or too short: bad adaptive filter value", bytes(16) + b"\5" + bytes(15)),
    ],
)
def test_a_picture_that_is_not_what_the_header_claims_is_refused(rule: str, problem: str, raw: bytes) -> None:
    content = png(np.zeros((2, 5, 3), int), RGB, 8, data=zlib.compress(raw))
    with pytest.raises(RasterError, match=problem) as caught:
        decode_png(content, LIMITS)
    assert caught.value.rule == rule


def test_an_index_beyond_the_palette_and_a_transparency_of_another_kind_are_refused() -> None:
    samples = made(PALETTE, 8)
    with pytest.raises(RasterError, match="where its palette has 2 colours"):
        decode_png(png(samples, PALETTE, 8, palette=b"123456"), LIMITS)
    with pytest.raises(RasterError, match="a tRNS of 3 bytes"):
        decode_png(png(made(RGB, 8), RGB, 8, transparency=b"123"), LIMITS)


def peak_bytes(content: bytes, limits: RasterLimits) -> int:
    tracemalloc.start()
    try:
        decode_png(content, limits)
    except RasterError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_a_bomb_is_refused_before_it_takes_any_memory() -> None:
    large = RasterLimits(pixels_max=2**31, pages_max=1)
    claimed = (
        b"\x89PNG\r\n\x1a\n" + header(2**15, 2**15) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    assert peak_bytes(claimed, large) < 100_000
    grown = png(np.zeros((2, 5, 3), int), RGB, 8, data=zlib.compress(bytes(50_000_000)))
    assert peak_bytes(grown, LIMITS) < 500_000
    noted = png(made(RGB, 8), RGB, 8).replace(
        chunk(b"tEXt", b"Comment\0by hand"), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    )
    assert peak_bytes(noted, LIMITS) < 500_000


SAMPLE_FILES = [
    png(made(RGB, 8), RGB, 8, filter_kind=5),
    png(made(PALETTE, 4), PALETTE, 4, palette=bytes(range(48)), transparency=b"\0", interlaced=True),
    png(made(GRAY_ALPHA, 16), GRAY_ALPHA, 16, filter_kind=4),
]


@pytest.mark.parametrize("content", SAMPLE_FILES)
def test_a_file_that_was_cut_off_anywhere_is_refused(content: bytes) -> None:
    for length in range(len(content) - 1):
        with pytest.raises(RasterError):
            decode_png(content[:length], LIMITS)


@given(content=st.sampled_from(SAMPLE_FILES), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_is_read_or_refused(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with checksums that are right, so that what is behind them is reached
        position = 8
        while position + 12 <= len(damaged):
            end = position + 8 + int.from_bytes(damaged[position : position + 4], "big")
            if end + 4 <= len(damaged):
                damaged[end : end + 4] = zlib.crc32(damaged[position + 4 : end]).to_bytes(4, "big")
            position = end + 4
    try:
        pixels = decode_png(bytes(damaged), LIMITS)
    except RasterError:
        return
    assert pixels.shape[0] * pixels.shape[1] <= LIMITS.pixels_max


def test_any_number_of_damaged_pictures_leaves_the_interpreter_as_it_was() -> None:
    damaged = png(made(RGB, 8), RGB, 8, data=zlib.compress(b"too little"))
    before = sys.getrefcount(None)
    for _ in range(3_000):
        with contextlib.suppress(RasterError):
            decode_png(damaged, LIMITS)
    assert sys.getrefcount(None) > before - 1_000  # each had taken one away, and without any the interpreter aborts
