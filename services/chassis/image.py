"""The one decoder of users' images: a JPEG, PNG or TIFF in, RGB with 8 bits as it is shown out.

The trainer, prediction and the pictures of datasets all see an image through it. 16 bits are scaled and never cut;
gray, palette and alpha become RGB; EXIF orientation is applied, and no other. What cannot be decoded raises
UnreadableImage alone; what to do about it is the caller's. Needs Pillow and numpy: only who decodes images imports it.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

PIXELS_MAX = 100_000_000
"""Larger images are refused: a small file may hold one that fills the memory."""
FORMATS = ("JPEG", "PNG", "TIFF")
"""Pillow's other decoders are older, and nobody needs them: they never see a file."""
SIXTEEN_BITS_MAX = 65_535
SIXTEEN_BITS_PER_BYTE = 257
SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
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


class UnreadableImage(Exception):  # noqa: N818 — it names what is wrong with the image
    """The file is no image that can be used; the message says why, without the image's name."""


def read_image(file: Path | bytes, *, side_min: int | None = None) -> Image.Image:
    """Decode a file, or its content, as it is shown: RGB, 8 bits a channel. Raises UnreadableImage.

    With `side_min` a JPEG may come at a half, a quarter or an eighth of its size, as long as its longer side keeps so
    many pixels: that takes a fraction of the time.
    """
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.width * image.height > PIXELS_MAX:
                raise UnreadableImage(f"has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
            if side_min is not None:
                share = min(1.0, side_min / max(image.size))
                image.draft(None, (max(1, round(image.width * share)), max(1, round(image.height * share))))
            image.info.pop("xmp", None)  # Pillow would turn a TIFF by it
            image.load()
            return _to_rgb(_turned(image))
    except FileNotFoundError as error:
        raise UnreadableImage("is missing") from error
    # Pillow's decoders raise what they like for a broken file: these are the kinds that its documentation, its tests of
    # damaged files and our own damaged files show.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        struct.error,
        zlib.error,
    ) as error:
        raise UnreadableImage(f"cannot be decoded: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage("is too large") from error


def _turned(image: Image.Image) -> Image.Image:
    """As it is shown. A TIFF is turned already: Pillow does that while it loads one.

    Not Pillow's own function: it copies an image that needs no turn, and believes what else has an orientation.
    """
    content = image.info.get("exif")
    if not content:
        return image
    exif = Image.Exif()
    # Viewers show an image whose EXIF data are broken as it is.
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):
        exif.load(content)
    turn = TURNS.get(exif.get(ORIENTATION_TAG, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in EIGHT_BIT_MODES:
        return image.convert("RGB")
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bits_to_rgb(image)
    raise UnreadableImage(f"has the pixel format {image.mode}, 8 or 16 bits were wanted")


def _sixteen_bits_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0…65,535 to 0…255, rounded. Pillow's own conversion would cut everything above 255 to white."""
    values = np.asarray(image.convert("I"))
    if int(values.min()) < 0 or int(values.max()) > SIXTEEN_BITS_MAX:
        raise UnreadableImage("has values of more than 16 bits")
    scaled = (values + SIXTEEN_BITS_PER_BYTE // 2) // SIXTEEN_BITS_PER_BYTE
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
