"""Letterboxing, to the pixel."""

import pytest
import torch
from PIL import Image

from runner.trainer.image import Canvas, Placement, letterbox, place


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
