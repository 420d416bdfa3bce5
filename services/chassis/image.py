"""The one decoder of users' images: a JPEG, PNG or TIFF in, RGB with 8 bits as it is shown out.

The trainer, prediction and the pictures of datasets all see an image through it. 16 bits are scaled and never cut;
gray, palette and alpha become RGB; EXIF orientation is applied, and no other. What cannot be decoded raises
UnreadableImage alone; what to do about it is the caller's. Needs Pillow and numpy: only who decodes images imports it.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

PIXELS_MAX = 100_000_000
"""Larger images are refused: a small file may hold one that fills the memory."""
FORMATS = ("JPEG", "PNG", "TIFF")
"""Pillow's other decoders are older, and nobody needs them: they never see a file."""
SIXTEEN_BITS_MAX = 65_535
BYTE_MAX = 255
ImageRange: TypeAlias = tuple[int, int]
FULL_RANGE: ImageRange = (0, SIXTEEN_BITS_MAX)
SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
)
"""Pillow's decoders raise what they like for a broken file: these are the kinds that its documentation, its tests of
damaged files, our own damaged files and fuzzing show. An assertion that python -O leaves out is an AttributeError."""
ORIENTATION_TAG = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From what is stored to what is shown, by EXIF orientation."""
SIDEWAYS = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}
)
"""Turns that make width of height."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image as it is shown. `width` and `height` are the whole image's, where it was decoded at a reduced scale."""

    image: Image.Image
    width: int
    height: int


class UnreadableImage(Exception):  # noqa: N818 — it names what is wrong with the image
    """The file is no image that can be used; the message says why, without the image's name."""


def read_image(file: Path | bytes, *, side_min: int | None = None, image_range: ImageRange = FULL_RANGE) -> Image.Image:
    """As `read_shown`, the image alone."""
    return read_shown(file, side_min=side_min, image_range=image_range).image


def read_shown(file: Path | bytes, *, side_min: int | None = None, image_range: ImageRange = FULL_RANGE) -> Shown:
    """Decode a file, or its content, as it is shown: RGB, 8 bits a channel. Raises UnreadableImage.

    `image_range`: of 16 bits the values that become black and white; what is beyond them is black or white too.

    With `side_min` a JPEG may come at a half, a quarter or an eighth of its size, as long as its longer side keeps so
    many pixels: that takes a fraction of the time.
    """
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.width * image.height > PIXELS_MAX:
                raise UnreadableImage(f"has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
            stored = image.size
            if side_min is not None:
                share = min(1.0, side_min / max(image.size))
                image.draft(None, (max(1, round(image.width * share)), max(1, round(image.height * share))))
            image.info.pop("xmp", None)  # Pillow would turn a TIFF by it
            image.load()
            # What is drawn has no transparency: Pillow would look for its colour in a palette that may be missing.
            image.info.pop("transparency", None)
            turn = _turn(image)
            # Pillow has turned a TIFF while it loaded it; a JPEG alone can have been reduced.
            width, height = stored if image.format == "JPEG" else image.size
            if turn in SIDEWAYS:
                width, height = height, width
            shown = image if turn is None else image.transpose(turn)
            return Shown(image=_to_rgb(shown, image_range), width=width, height=height)
    except FileNotFoundError as error:
        raise UnreadableImage("is missing") from error
    except DECODER_ERRORS as error:
        raise UnreadableImage(f"cannot be decoded: {str(error) or type(error).__name__}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage("is too large") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """From what was loaded to what is shown. A TIFF is turned already: Pillow does that while it loads one.

    Not Pillow's own function: it copies an image that needs no turn, and believes what else has an orientation.
    """
    content = image.info.get("exif")
    if not content:
        return None
    exif = Image.Exif()
    # Viewers show an image whose EXIF data are broken as it is.
    with contextlib.suppress(*DECODER_ERRORS):
        exif.load(content)
    return TURNS.get(exif.get(ORIENTATION_TAG, 1))


def _to_rgb(image: Image.Image, image_range: ImageRange) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in EIGHT_BIT_MODES:
        return image.convert("RGB")
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bits_to_rgb(image, image_range)
    raise UnreadableImage(f"has the pixel format {image.mode}, 8 or 16 bits were wanted")


def _sixteen_bits_to_rgb(image: Image.Image, image_range: ImageRange) -> Image.Image:
    """Scale the range to 0…255, rounded. Pillow's own conversion would cut everything above 255 to white."""
    values = np.asarray(image.convert("I"))
    if int(values.min()) < 0 or int(values.max()) > SIXTEEN_BITS_MAX:
        raise UnreadableImage("has values of more than 16 bits")
    low, high = image_range
    span = high - low
    scaled = ((values.clip(low, high) - low) * BYTE_MAX + span // 2) // span
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
