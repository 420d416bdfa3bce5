"""PNG in and out, as numbers: what is decoded is exactly what the file says, whatever gamma or profile it carries.

Chunks are read here, so that a size is known before anything is made, and only what says pixels reaches libpng, which
decodes them. Source: W3C PNG, third edition.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from services.conversion.raster.alpha import refuse_transparent, without_alpha
from services.conversion.raster.error import RasterError, RasterLimits

Pixels: TypeAlias = NDArray[Any]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 3
"""Of zlib-ng. With each row as what it differs from the one above, maps are as small as libdeflate makes them at 6,
in a fifth of the time."""
DEFLATE_RATIO_MAX = 1_040
"""No deflated data grow by more than this."""
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}
_BITS = {_GRAY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GRAY_ALPHA: (8, 16), _RGBA: (8, 16)}
_UP = 2
"""A row as what it differs from the one above."""
_HEADER = ">IIBBBBB"
_keep_one_more = ctypes.PyDLL(None).Py_IncRef
_keep_one_more.argtypes, _keep_one_more.restype = (ctypes.py_object,), None


@dataclass(frozen=True, kw_only=True)
class PngHeader:
    """What a PNG says of itself. `bits` are those of a sample, or of an index into the palette."""

    width: int
    height: int
    bits: int
    kind: int
    interlaced: bool

    @property
    def gray(self) -> bool:
        """Whether it is gray, with or without alpha."""
        return self.kind in (_GRAY, _GRAY_ALPHA)


@dataclass(frozen=True, kw_only=True)
class _Png:
    header: PngHeader
    palette: bytes
    transparency: bytes
    data: bytes


def png_header(content: bytes, limits: RasterLimits) -> PngHeader:
    """What a PNG claims, within limits. Raises RasterError."""
    if not content.startswith(SIGNATURE):
        raise RasterError("unreadable_map", "is no PNG")
    kind, data = next(_chunks(content))
    if kind != b"IHDR" or len(data) != 13:
        raise RasterError("unreadable_map", "does not begin with IHDR")
    width, height, bits, color, compression, filtering, interlace = struct.unpack(_HEADER, data)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise RasterError("unreadable_map", f"has a size of {width} x {height}")
    if bits not in _BITS.get(color, ()) or compression or filtering or interlace > 1:
        raise RasterError("unreadable_map", f"has {bits} bits of colour type {color}, which no PNG has")
    if width * height > limits.pixels_max:
        problem = f"claims {width} x {height} pixels, where at most {limits.pixels_max} were wanted"
        raise RasterError("decompression_bomb", problem)
    return PngHeader(width=width, height=height, bits=bits, kind=color, interlaced=bool(interlace))


def decode_png(content: bytes, limits: RasterLimits) -> Pixels:
    """(height, width) where it is gray, else (height, width, 3); uint16 where it has 16 bits, else uint8.

    A palette becomes its colours, and gray of fewer than 8 bits is spread over 0 to 255, as PNG says. Alpha goes where
    that loses nothing: all is opaque, or black. Raises RasterError.
    """
    png = _read(content, limits)
    header = png.header
    pixels = _decode(png)
    if header.kind == _PALETTE:
        return _expand(_unspread(pixels, header), png.palette, png.transparency)
    if header.kind in (_GRAY_ALPHA, _RGBA):
        pixels = without_alpha(pixels)
    elif png.transparency:
        _refuse_color(np.atleast_3d(pixels), png)
    return pixels.reshape(header.height, header.width) if header.gray else pixels


def decode_png_numbers(content: bytes, limits: RasterLimits) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """(height, width): the numbers that the pixels of a palette or of a gray picture are written as, whatever colours
    they stand for. Raises RasterError, also for a picture that has more than one number a pixel.
    """
    png = _read(content, limits)
    if _SAMPLES[png.header.kind] != 1:
        raise RasterError("unreadable_map", "has colours, where one number a pixel was wanted: a palette, or gray")
    return _unspread(_decode(png), png.header)


def encode_png(pixels: Pixels, *, level: int = LEVEL) -> bytes:
    """A PNG of gray (height, width) or colour (height, width, 3), uint8 or uint16, without alpha."""
    height, width = pixels.shape[:2]
    assert pixels.dtype in (np.uint8, np.uint16), pixels.dtype
    assert pixels.ndim == 2 or pixels.shape[2:] == (3,), pixels.shape
    stored = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    buffer = bytearray(height * (1 + stored.shape[1]))
    raw = np.frombuffer(buffer, np.uint8).reshape(height, -1)
    raw[:, 0] = _UP
    raw[0, 1:] = stored[0]
    np.subtract(stored[1:], stored[:-1], out=raw[1:, 1:])
    header = struct.pack(
        _HEADER, width, height, 8 * pixels.dtype.itemsize, _GRAY if pixels.ndim == 2 else _RGB, 0, 0, 0
    )
    return _file(header, imagecodecs.zlibng_encode(buffer, level))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each chunk, up to the end of the file."""
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        kind = content[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(content):
            break
        if not kind[0] & 0x20:  # what need not be understood need not be whole either
            (wanted,) = struct.unpack_from(">I", content, end - 4)
            if imagecodecs.deflate_crc32(content[position + 4 : end - 4]) != wanted:
                raise RasterError("unreadable_map", f"is damaged: the checksum of {kind!r} at byte {position} is wrong")
        yield kind, content[position + 8 : end - 4]
        position = end
    raise RasterError("truncated_map", f"ends after {len(content)} bytes, in the middle")


def _read(content: bytes, limits: RasterLimits) -> _Png:
    header = png_header(content, limits)
    palette = transparency = b""
    data: list[bytes] = []
    for kind, chunk in itertools.islice(_chunks(content), 1, None):
        if kind == b"IDAT":
            data.append(chunk)
        elif kind == b"PLTE":
            palette = chunk
        elif kind == b"tRNS":
            transparency = chunk
        elif kind == b"IEND":
            break
        elif not kind[0] & 0x20:
            raise RasterError("unreadable_map", f"has a chunk {kind!r}, which no PNG has")
    if len(palette) % 3 or len(palette) > 768 or (header.kind == _PALETTE and not palette):
        raise RasterError("unreadable_map", f"has a palette of {len(palette)} bytes, where 3 a colour were wanted")
    return _Png(header=header, palette=palette, transparency=transparency, data=b"".join(data))


def _decode(png: _Png) -> Pixels:
    """The samples (height, width) or (height, width, samples); those of a palette as if they were gray."""
    header = png.header
    rows = header.height * (1 + (header.width * _SAMPLES[header.kind] * header.bits + 7) // 8)
    if rows > len(png.data) * DEFLATE_RATIO_MAX:
        raise RasterError("truncated_map", f"has {len(png.data)} bytes of picture, too few for the size that it claims")
    kind = _GRAY if header.kind == _PALETTE else header.kind
    fields = (header.width, header.height, header.bits, kind, 0, 0, int(header.interlaced))
    data = png.data if header.interlaced else _inflated(png.data, rows)
    try:
        return imagecodecs.png_decode(_file(struct.pack(_HEADER, *fields), data))
    except (imagecodecs.PngError, ValueError) as error:
        # imagecodecs 2026.3.6 lets go of a None that it never held whenever libpng jumps out of it: some ten thousand
        # damaged pictures would end the process. Once that is mended, a None too many costs nothing.
        _keep_one_more(None)
        raise RasterError("unreadable_map", f"has a picture that is damaged, or too short: {error}") from error


def _inflated(data: bytes, size: int) -> bytes:
    """The same stream in stored blocks: libpng's own zlib takes ten times as long to inflate as zlib-ng. A stream that
    is no whole one of this size stays as it is, for libpng to judge.
    """
    try:
        raw = imagecodecs.zlibng_decode(data, out=size)
    except imagecodecs.ZlibngError:
        return data
    return bytes(imagecodecs.zlibng_encode(raw, 0)) if len(raw) == size else data


def _unspread(pixels: Pixels, header: PngHeader) -> Pixels:
    """Numbers of fewer than 8 bits as they were before they were spread over 0 to 255."""
    pixels = pixels.reshape(header.height, header.width)
    return pixels // np.uint8(255 // ((1 << header.bits) - 1)) if header.bits < 8 else pixels


def _file(header: bytes, data: bytes | bytearray) -> bytes:
    parts = [SIGNATURE]
    for kind, chunk in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        body = kind + chunk
        parts += (struct.pack(">I", len(chunk)), body, struct.pack(">I", imagecodecs.deflate_crc32(body)))
    return b"".join(parts)


def _expand(indices: NDArray[np.uint8], palette: bytes, transparency: bytes) -> Pixels:
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if indices.max() >= len(colors):
        problem = f"has a pixel with index {indices.max()}, where its palette has {len(colors)} colours"
        raise RasterError("unreadable_map", problem)
    alpha = np.full(256, 255, np.uint8)
    alpha[: len(transparency[:256])] = np.frombuffer(transparency[:256], np.uint8)
    hidden = (alpha[: len(colors)] != 255) & colors.any(axis=1)
    if hidden.any() and hidden[indices].any():
        refuse_transparent(colors[indices], hidden[indices])
    table = np.zeros((len(colors), 4), np.uint8)
    table[:, :3] = colors
    pixels = table.view(np.uint32)[:, 0][indices]  # one number a pixel: three times as fast as three
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(*indices.shape, 4)[..., :3]


def _refuse_color(pixels: Pixels, png: _Png) -> None:
    """Refuse a picture that uses the one colour that its tRNS makes transparent."""
    if len(png.transparency) != 2 * pixels.shape[2]:
        raise RasterError("unreadable_map", f"has a tRNS of {len(png.transparency)} bytes")
    color = np.frombuffer(png.transparency, ">u2").astype(np.int64)
    if png.header.bits < 8:
        color *= 255 // ((1 << png.header.bits) - 1)
    refuse_transparent(pixels, (pixels == color).all(axis=2))
