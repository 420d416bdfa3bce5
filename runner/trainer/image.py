"""An image becomes one tensor: in RGB, scaled and padded to the model's size. `services.chassis.image` decodes it.

Training and prediction place images alike, so that a model sees what it learned to see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2

CHANNELS = 3
BYTE_MAX = 255


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The size that the model sees, and how images are laid on it. `fill` is a gray value from 0 to 1."""

    height: int
    width: int
    centered: bool
    fill: float
    enlarge: bool

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
    return Canvas(
        height=data.height,
        width=data.width,
        centered=data.scaling.centered,
        fill=data.scaling.fill,
        enlarge=data.scaling.enlarge,
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


def letterbox(image: Image.Image, canvas: Canvas) -> torch.Tensor:
    """Lay an RGB image on the canvas; uint8, 3 x height x width. An image that fits as it is keeps its pixels."""
    placement = place(image.width, image.height, canvas)
    if (placement.width, placement.height) != image.size:
        image = image.resize((placement.width, placement.height), Image.Resampling.BILINEAR)
    if placement.width != canvas.width or placement.height != canvas.height:
        padded = Image.new("RGB", (canvas.width, canvas.height), (canvas.fill_byte,) * CHANNELS)
        padded.paste(image, (placement.left, placement.top))
        image = padded
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(canvas.height, canvas.width, CHANNELS).permute(2, 0, 1)
