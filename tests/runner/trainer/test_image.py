"""Decoding and letterboxing, to the pixel."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from runner.trainer.image import Canvas, Placement, UnreadableImage, letterbox, place, read_image


def canvas(
    width: int = 8, height: int = 8, *, centered: bool = True, fill: float = 0.0, enlarge: bool = True
) -> Canvas:
    return Canvas(height=height, width=width, centered=centered, fill=fill, enlarge=enlarge)


@pytest.mark.parametrize(
    ("size", "on", "expected"),
    [
        ((8, 8), canvas(), (0, 0, 8, 8)),
        ((16, 8), canvas(), (0, 2, 8, 4)),
        ((8, 16), canvas(), (2, 0, 4, 8)),
        ((8, 16), canvas(centered=False), (0, 0, 4, 8)),
        ((4, 2), canvas(), (0, 2, 8, 4)),
        ((4, 2), canvas(enlarge=False), (2, 3, 4, 2)),
        ((4, 2), canvas(enlarge=False, centered=False), (0, 0, 4, 2)),
        ((1000, 1), canvas(), (0, 3, 8, 1)),
        ((640, 480), canvas(width=64, height=32), (10, 0, 43, 32)),
    ],
)
def test_an_image_is_placed_whole_and_undistorted(
    size: tuple[int, int], on: Canvas, expected: tuple[int, int, int, int]
) -> None:
    left, top, width, height = expected
    assert place(*size, on) == Placement(left=left, top=top, width=width, height=height)


def test_an_image_that_fits_keeps_its_pixels() -> None:
    pixels = torch.arange(3 * 64, dtype=torch.uint8).view(8, 8, 3)
    image = Image.frombytes("RGB", (8, 8), pixels.numpy().tobytes())
    assert torch.equal(letterbox(image, canvas()), pixels.permute(2, 0, 1))


def test_padding_has_the_fill_and_touches_no_pixel_of_the_image() -> None:
    found = letterbox(Image.new("RGB", (8, 4), (255, 0, 10)), canvas(fill=0.5))
    assert found.shape == (3, 8, 8)
    assert (found[:, :2] == 128).all()
    assert (found[:, 6:] == 128).all()
    assert found[:, 2:6].unique(dim=1).flatten(1).unique(dim=1).flatten().tolist() == [255, 0, 10]


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    values = torch.tensor([[0, 257, 25_700, 65_535]], dtype=torch.int32).to(torch.uint16)
    for suffix in ("png", "tiff"):
        path = tmp_path / f"gray.{suffix}"
        Image.frombytes("I;16", (4, 1), values.numpy().tobytes()).save(path)
        image = read_image(path)
        assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 100, 255]


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
    assert shown.getpixel((2, 0))[0] > 250
    assert shown.getpixel((2, 5))[0] < 5


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:200])
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    reasons = {
        "missing.png": "is missing",
        "text.png": "cannot be decoded",
        "empty.png": "cannot be decoded",
        "torn.png": "cannot be decoded",
        "float.tiff": "has the pixel format F",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / name)
