"""LZW as TIFF has it, decoded by libtiff (through Pillow).

imagecodecs' own decoder ends the process with a segmentation fault on some damaged pieces: fuzzing found one.
"""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image, TiffImagePlugin

_HEADER = struct.Struct("<2sHI")
_ENTRY = struct.Struct("<HHII")
_SHORT, _LONG = 3, 4
_VERSION, _LZW, _BLACK_IS_ZERO, _BITS = 42, 5, 1, 8


class LzwError(Exception):
    """The piece is damaged, is shorter than wanted, or is more than is decoded at once."""


def decode_lzw(content: bytes, size: int) -> bytes:
    """The first `size` bytes that a piece decodes to. Raises LzwError, also where there are fewer."""
    try:
        image = TiffImagePlugin.TiffImageFile(BytesIO(_gray_row(content, size)))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LzwError(str(error)) from error
    return image.tobytes()


def _gray_row(content: bytes, width: int) -> bytes:
    """A TIFF of one row of gray bytes, whose only strip is the piece."""
    padding = bytes(len(content) % 2)
    strip = _HEADER.size
    tags = [
        (256, _LONG, width),
        (257, _LONG, 1),
        (258, _SHORT, _BITS),
        (259, _SHORT, _LZW),
        (262, _SHORT, _BLACK_IS_ZERO),
        (273, _LONG, strip),
        (277, _SHORT, 1),
        (278, _LONG, 1),
        (279, _LONG, len(content)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(_ENTRY.pack(name, kind, 1, value) for name, kind, value in tags)
    header = _HEADER.pack(b"II", _VERSION, strip + len(content) + len(padding))
    return header + content + padding + directory + bytes(4)
