"""One image file becomes one tensor: decoded, turned as EXIF says, in RGB, scaled and padded to the model's size.

The one decoder of the trainer and of prediction. 16-bit images are scaled and never cut. An image that cannot be read
raises UnreadableImage; what to do about it is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from sihlai.scheduler.v1 import job_spec_pb2

PIXELS_MAX = 100_000_000
"""Larger images are refused: a small file may hold one that fills the memory."""
CHANNELS = 3
BYTE_MAX = 255
SIXTEEN_BITS_MAX = 65_535
SIXTEEN_BITS_PER_BYTE = SIXTEEN_BITS_MAX // BYTE_MAX
SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)


class UnreadableImage(Exception):  # noqa: N818 — it names what is wrong with the image
    """The file is no image that can be learned from; the message says why, without the image's name."""


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


def read_image(path: Path) -> Image.Image:
    """Decode a file as it is shown, in RGB with 8 bits. Raises UnreadableImage."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXELS_MAX:
                raise UnreadableImage(f"has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise UnreadableImage("is missing") from error
    # Pillow's decoders raise what they like for a broken file: these are the kinds that its documentation and its
    # tests of damaged files show.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UnreadableImage(f"cannot be decoded: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage("is too large") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in EIGHT_BIT_MODES:
        return image.convert("RGB")
    if image.mode in SIXTEEN_BIT_MODES or image.mode == "I":
        return _sixteen_bits_to_rgb(image)
    raise UnreadableImage(f"has the pixel format {image.mode}, 8 or 16 bits were wanted")


def _sixteen_bits_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0…65,535 to 0…255, rounded. Pillow's own conversion would cut everything above 255 to white."""
    values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    if int(values.min()) < 0 or int(values.max()) > SIXTEEN_BITS_MAX:
        raise UnreadableImage("has values of more than 16 bits")
    scaled = ((values + SIXTEEN_BITS_PER_BYTE // 2) // SIXTEEN_BITS_PER_BYTE).to(torch.uint8)
    return Image.frombytes("L", image.size, scaled.numpy().tobytes()).convert("RGB")
