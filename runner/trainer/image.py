"""An image becomes one tensor: in RGB, scaled and padded to the model's size. `services.chassis.image` decodes it.

Training and prediction place images alike, so that a model sees what it learned to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2

from runner.trainer.view import View
from services.chassis.image import FULL_RANGE, SIXTEEN_BITS_MAX, ImageRange, read_shown

CHANNELS = 3
BYTE_MAX = 255
DECODED_SIDES = 2
"""A large photo is decoded at a reduced scale, its longer side at least so many times that of the canvas."""

REDUCING_GAP = 1.5
"""What has to shrink by more is first halved, or more, in whole pixels; that takes a third of the time."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The size that the model sees, and how images are laid on it. `fill` is a gray value from 0 to 1.

    `image_range`: the values of 16-bit images that are black and white.
    """

    height: int
    width: int
    centered: bool
    fill: float
    enlarge: bool
    image_range: ImageRange = FULL_RANGE

    @property
    def fill_byte(self) -> int:
        """The gray value of the padding in an 8-bit image."""
        return round(self.fill * BYTE_MAX)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a scaled image lies on its canvas, in pixels of the canvas."""

    left: int
    top: int
    width: int
    height: int


def canvas_from_data(data: job_spec_pb2.Data) -> Canvas:
    """The canvas that a complete specification asks for."""
    black = data.image_range.black
    return Canvas(
        height=data.height,
        width=data.width,
        centered=data.scaling.centered,
        fill=data.scaling.fill,
        enlarge=data.scaling.enlarge,
        image_range=(black, max(black + 1, data.image_range.white or SIXTEEN_BITS_MAX)),
    )


def place(width: int, height: int, canvas: Canvas) -> Placement:
    """Where an image of this size lies: scaled to fit with its aspect ratio kept to the nearest pixel."""
    scale = min(canvas.width / width, canvas.height / height)
    if not canvas.enlarge:
        scale = min(scale, 1.0)
    scaled_width = min(canvas.width, max(1, round(width * scale)))
    scaled_height = min(canvas.height, max(1, round(height * scale)))
    left = (canvas.width - scaled_width) // 2 if canvas.centered else 0
    top = (canvas.height - scaled_height) // 2 if canvas.centered else 0
    return Placement(left=left, top=top, width=scaled_width, height=scaled_height)


def view_of(width: int, height: int, canvas: Canvas) -> View:
    """How an image of this size lies on the canvas; exactly where `letterbox` puts its pixels."""
    placement = place(width, height, canvas)
    along, down = placement.width / width, placement.height / height
    return View(
        width=width,
        height=height,
        canvas_width=canvas.width,
        canvas_height=canvas.height,
        matrix=(along, 0.0, float(placement.left), 0.0, down, float(placement.top)),
    )


def read_on_canvas(path: Path, canvas: Canvas) -> tuple[torch.Tensor, View]:
    """Decode a file and lay it on the canvas; uint8, 3 x height x width. Raises UnreadableImage."""
    side_min = DECODED_SIDES * max(canvas.width, canvas.height)
    shown = read_shown(path, side_min=side_min, image_range=canvas.image_range)
    pixels = letterbox(shown.image, canvas, place(shown.width, shown.height, canvas))
    return pixels, view_of(shown.width, shown.height, canvas)


def letterbox(image: Image.Image, canvas: Canvas, placement: Placement | None = None) -> torch.Tensor:
    """Lay an RGB image on the canvas; uint8, 3 x height x width. An image that fits as it is keeps its pixels.

    `placement`: that of the whole image, where this one was decoded at a reduced scale.
    """
    placement = placement or place(image.width, image.height, canvas)
    if (placement.width, placement.height) != image.size:
        image = image.resize((placement.width, placement.height), Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
    if placement.width != canvas.width or placement.height != canvas.height:
        padded = Image.new("RGB", (canvas.width, canvas.height), (canvas.fill_byte,) * CHANNELS)
        padded.paste(image, (placement.left, placement.top))
        image = padded
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(canvas.height, canvas.width, CHANNELS).permute(2, 0, 1)
