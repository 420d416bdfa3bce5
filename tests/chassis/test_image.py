"""Decoding users' images, to the pixel, and what a damaged file may do: say why, and nothing else."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.chassis.image import UnreadableImage, read_image, read_shown


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def gray_ramp() -> Image.Image:
    return Image.fromarray(np.array([[0, 257, 25_700, 65_535]], np.uint16))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gray.{suffix}"
    gray_ramp().save(path)
    assert [read_image(path).getpixel((x, 0)) for x in range(4)] == [(level,) * 3 for level in (0, 1, 100, 255)]


def test_sixteen_bits_are_seen_by_the_range_that_is_given() -> None:
    values = np.array([[0, 100, 150, 200, 201, 65_535]], np.uint16)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    seen = np.asarray(read_image(content.getvalue(), image_range=(100, 200)))[0, :, 0]
    assert seen.tolist() == [0, 0, 128, 255, 255, 255]
    eight = Image.new("L", (1, 1), 100)
    content = io.BytesIO()
    eight.save(content, "PNG")
    assert read_image(content.getvalue(), image_range=(100, 200)).getpixel((0, 0)) == (100, 100, 100)


def test_sixteen_bits_a_channel_are_scaled_too() -> None:
    row = b"\0" + struct.pack(">6H", 0, 257, 25_700, 65_535, 128 * 257, 1)
    chunks = [(b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    image = read_image(png(*chunks))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 1, 100), (255, 128, 0)]


def test_gray_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for mode in ("P", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}"
        red.convert(mode).save(path)
        assert read_image(path).getpixel((0, 0)) == (255, 0, 0)
    for mode, gray in (("L", 200), ("LA", 200), ("1", 255)):
        path = tmp_path / f"{mode}.png"
        Image.new("L", (2, 2), gray).convert(mode).save(path)
        assert read_image(path).getpixel((0, 0)) == (gray,) * 3


@pytest.mark.parametrize("transparency", [b"\xff", b"\x80", b"\xff\x00\xff", b"\x00" * 256])
@pytest.mark.parametrize("colors", [b"", b"\x00" * 6])
def test_the_transparency_of_a_palette_is_nothing_to_us(transparency: bytes, colors: bytes) -> None:
    """Also where the palette is missing: Pillow asserts that there is one when it looks for a transparent colour."""
    palette = [(b"PLTE", colors)] if colors else []
    header, row = (b"IHDR", struct.pack(">2I5B", 2, 1, 8, 3, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0\1"))
    image = read_image(png(header, *palette, (b"tRNS", transparency), row, (b"IEND", b"")))
    assert (image.mode, image.size) == ("RGB", (2, 1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_an_image_is_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (6, 4))
    image.paste((255, 255, 255), (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the row 0 of what is stored is the right side of what is shown
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif)
    shown = read_image(path)
    assert shown.size == (4, 6)
    assert shown.getpixel((2, 0))[0] > 250  # type: ignore[index]
    assert shown.getpixel((2, 5))[0] < 5  # type: ignore[index]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_an_orientation_that_is_not_exif_turns_nothing(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, Any] = {"xmp": xmp} if kind == "JPEG" else {"tiffinfo": {700: xmp}}
    content = encoded(Image.new("RGB", (6, 4)), kind, **options)
    assert b"tiff:Orientation" in content
    assert read_image(content).size == (6, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0no directory at all"])
def test_broken_exif_data_leave_the_image_as_it_is(exif: bytes) -> None:
    assert read_image(encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif)).size == (6, 4)


def test_a_jpeg_may_come_smaller_but_never_smaller_than_was_asked() -> None:
    content = encoded(Image.new("RGB", (1_600, 1_200), (90, 120, 200)), "JPEG")
    assert read_image(content, side_min=300).size == (400, 300)
    assert read_image(content, side_min=401).size == (800, 600)
    assert read_image(content, side_min=5_000).size == (1_600, 1_200)
    assert read_image(encoded(Image.new("L", (64, 48)), "PNG"), side_min=8).size == (64, 48)


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:200])
    Image.new("L", (2, 2)).save(tmp_path / "bitmap.png", "BMP")
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    reasons = {
        "missing.png": "is missing",
        "text.png": "cannot be decoded",
        "empty.png": "cannot be decoded",
        "torn.png": "cannot be decoded",
        "bitmap.png": "cannot be decoded",
        "float.tiff": "has the pixel format F",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "reason"), [(12_000, "has 12000 x 12000 pixels, at most"), (60_000, "is too large")])
def test_an_image_that_would_fill_the_memory_is_not_decoded(side: int, reason: str) -> None:
    bomb = bytearray(encoded(Image.new("L", (10, 10)), "PNG"))
    bomb[16:24] = struct.pack(">2I", side, side)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(UnreadableImage, match=reason):
        read_image(bytes(bomb))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_is_decoded_or_says_why() -> None:
    chance = random.Random(0)
    noise = Image.effect_noise((24, 16), 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    wholes = [
        encoded(noise.convert("RGB"), "JPEG", exif=exif),
        encoded(noise, "JPEG", progressive=True),
        encoded(noise.convert("P"), "PNG", exif=exif),
        encoded(gray_ramp(), "PNG"),
        encoded(noise.convert("RGB"), "TIFF"),
        encoded(noise, "TIFF", compression="tiff_deflate", exif=exif),
    ]
    unreadable = 0
    for number in range(3_000):
        content = bytearray(wholes[number % len(wholes)])
        for _ in range(chance.choice((1, 3, 9))):
            content[chance.randrange(min(len(content), 300))] = chance.choice((0, 1, 255, chance.randrange(256)))
        try:
            assert read_image(bytes(content), side_min=chance.choice((None, 8))).mode == "RGB"
        except UnreadableImage:
            unreadable += 1
    assert 300 < unreadable < 2_900


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_at_a_reduced_scale_tells_the_size_of_the_whole(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    shown = read_shown(encoded(Image.new("RGB", (801, 602)), "JPEG", exif=exif), side_min=200)
    assert (shown.width, shown.height) == ((801, 602) if orientation == 1 else (602, 801))
    assert 200 <= max(shown.image.size) < 402
    assert (shown.image.width > shown.image.height) == (orientation == 1)
