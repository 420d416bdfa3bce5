"""TIFF in and out, as numbers.

Read are classic and BigTIFF, strips and tiles, planar and interleaved, gray and RGB of 8 or 16 bits. Nothing is decoded
before a page is asked for, no more is made of a strip than its page has room for, and black that pages share is decoded
once. What is compressed with loss is no map. Written are pages that share what is equal in them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from services.conversion.raster import tiff_directory as tag
from services.conversion.raster.alpha import without_alpha
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.lzw import LzwError, decode_lzw
from services.conversion.raster.palette import Color
from services.conversion.raster.runs import Runs, bounds_of_many, window_of_runs
from services.conversion.raster.tiff_directory import Layout, read_layouts

Pixels: TypeAlias = NDArray[Any]

LEVEL = 2
"""Of zlib-ng, which takes a tenth of libdeflate's time for a short strip."""
STRIP_BYTES = 2**15
"""A strip has as many rows as fit, and at least one: small enough that most of a page is black strips."""
_DECODERS = {
    tag.DEFLATE: imagecodecs.deflate_decode,
    tag.DEFLATE_OLD: imagecodecs.deflate_decode,
    tag.PACKBITS: imagecodecs.packbits_decode,
    tag.ZSTD: imagecodecs.zstd_decode,
}
_RATIOS = {tag.LZW: 4_096, tag.DEFLATE: 1_040, tag.DEFLATE_OLD: 1_040, tag.PACKBITS: 128, tag.ZSTD: 2**17}
"""With how many bytes one becomes at most."""
_ERRORS = (imagecodecs.DeflateError, imagecodecs.ZstdError, LzwError, imagecodecs.PackbitsError, ValueError)

_Piece: TypeAlias = tuple[int, int, int, int]
"""Offset, bytes, compression, bytes decoded: equal ones decode to the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """One page. `samples` of a pixel are 1 or 3: alpha is not among them."""

    height: int
    width: int
    samples: int
    bits: int
    _layout: Layout = field(repr=False)
    _content: bytes = field(repr=False)
    _black: set[_Piece] = field(repr=False)
    """Pieces of the whole file that are known to be 0."""

    @property
    def black(self) -> bool:
        """Whether all of it can be decoded and is 0; cheap, where black is shared and where a page is not black."""
        layout = self._layout
        pieces = zip(layout.offsets.tolist(), layout.sizes.tolist(), strict=True)
        try:
            return all(self._decode(index, *piece) is None for index, piece in enumerate(pieces))
        except RasterError:
            return False

    def pixels(self) -> Pixels:
        """(height, width) where `samples` is 1, else (height, width, 3); uint16 where `bits` is 16, else uint8.

        Raises RasterError, also where pixels are transparent and not black.
        """
        top, rows = self.band()
        if len(rows) == self.height:
            return rows
        pixels = np.zeros((self.height, *rows.shape[1:]), rows.dtype)
        pixels[top : top + len(rows)] = rows
        return pixels

    def band(self) -> tuple[int, Pixels]:
        """The number of a row, and the rows from there, perhaps none: all others are 0. Otherwise as `pixels`."""
        layout, grid = self._layout, self._layout.grid
        found: list[tuple[int, int, int, Pixels]] = []
        for index, piece in enumerate(zip(layout.offsets.tolist(), layout.sizes.tolist(), strict=True)):
            decoded = self._decode(index, *piece)
            if decoded is not None:
                plane, place = divmod(index, grid.across * grid.down)
                row, column = divmod(place, grid.across)
                found.append((plane, row * grid.height, column * grid.width, decoded))
        top = min((y for _, y, _, _ in found), default=0)
        bottom = min(max((y + grid.height for _, y, _, _ in found), default=0), self.height)
        pixels = np.zeros((bottom - top, self.width, layout.samples), layout.dtype.newbyteorder("="))
        for plane, y, x, decoded in found:
            part = pixels[y - top :, x:, plane : plane + grid.samples]
            part = part[: grid.height, : grid.width]
            part[...] = decoded[: part.shape[0], : part.shape[1]]
        if layout.samples > self.samples:
            pixels = without_alpha(pixels)
        return top, pixels[..., 0] if self.samples == 1 else pixels

    def _decode(self, index: int, offset: int, size: int) -> Pixels | None:
        """The pixels (rows, width, samples) of a piece; None where they are all 0."""
        layout, grid = self._layout, self._layout.grid
        rows = grid.height if grid.tiled else min(grid.height, self.height - index % grid.down * grid.height)
        row_bytes = grid.width * grid.samples * layout.dtype.itemsize
        wanted = rows * row_bytes
        piece = (offset, size, layout.compression, wanted)
        if piece in self._black:
            return None
        if layout.compression == tag.UNCOMPRESSED:
            content = self._content[offset : offset + min(size, wanted)]
        else:  # some write the last strip as if the page went on
            content = self._content[offset : offset + size]
            content = _decompress(content, layout.compression, wanted, grid.height * row_bytes)
        if len(content) < wanted:
            raise RasterError("truncated_map", f"has a piece of {len(content)} bytes, where {wanted} were wanted")
        pixels = np.frombuffer(content, layout.dtype, wanted // layout.dtype.itemsize)
        if not pixels.any():
            self._black.add(piece)
            return None
        pixels = pixels.reshape(rows, grid.width, grid.samples)
        if layout.predictor == 2:
            return np.add.accumulate(pixels, axis=1, dtype=layout.dtype.newbyteorder("="))
        return pixels


def read_pages(content: bytes, limits: RasterLimits) -> Sequence[Page]:
    """The pages of a TIFF, at least one, none of them decoded. Raises RasterError."""
    black: set[_Piece] = set()
    return tuple(
        Page(
            height=layout.height,
            width=layout.width,
            samples=3 if layout.samples > 2 else 1,
            bits=8 * layout.dtype.itemsize,
            _layout=layout,
            _content=content,
            _black=black,
        )
        for layout in read_layouts(content, limits)
    )


def _decompress(content: bytes, compression: int, size: int, size_max: int) -> bytes:
    """`size` bytes at least, or fewer where the content has no more, and `size_max` at most."""
    ratio = _RATIOS[compression]
    if size > len(content) * ratio:
        raise RasterError("truncated_map", f"has a piece of {len(content)} bytes, too few for the size that it claims")
    try:
        if compression == tag.LZW:
            return decode_lzw(content, size)
        return bytes(_DECODERS[compression](content, out=min(size_max, len(content) * ratio)))
    except _ERRORS as error:
        raise RasterError(
            "unreadable_map", f"has a piece that is damaged, or not as large as claimed: {error}"
        ) from error


def write_instances(height: int, width: int, masks: Sequence[tuple[Runs, Color]]) -> bytes:
    """A page for each mask, in its colour on black; one page that is all black where there is none."""
    writer = _Writer(height, width)
    places = iter(bounds_of_many([runs for runs, _ in masks], height=height))
    for runs, color in masks:
        bounds = next(places)
        left, top, right, bottom = bounds
        rows = writer.strip_rows(3)
        first = top - top % rows
        band = np.zeros((min(-(-bottom // rows) * rows, height) - first, width, 3), np.uint8)
        colors = np.array([(0, 0, 0), color], np.uint8)
        inside = window_of_runs(runs, bounds, height=height).view(np.uint8)
        band[top - first : bottom - first, left:right] = colors.take(inside, axis=0)
        writer.add_page(band, first)
    if not masks:
        writer.add_page(np.zeros((0, width, 3), np.uint8), 0)
    return writer.finish()


def write_panoptic(colors: NDArray[np.uint8], ids: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Two pages: the colours (height, width, 3), and the ids (height, width)."""
    writer = _Writer(*ids.shape)
    assert colors.shape == (*ids.shape, 3), (colors.shape, ids.shape)
    writer.add_page(colors, 0)
    writer.add_page(ids[..., None], 0)
    return writer.finish()


class _Writer:
    """A classic TIFF, little-endian, of pages of one size, in strips. Equal strips are written once."""

    def __init__(self, height: int, width: int) -> None:
        self._height = height
        self._width = width
        self._content = bytearray(b"II*\0\0\0\0\0")
        self._link = 4
        """Where the offset of the next page's directory is to be written."""
        self._strips: dict[bytes, int] = {}
        self._black: dict[int, bytes] = {}

    def strip_rows(self, pixel_bytes: int) -> int:
        """Rows of a strip."""
        return max(1, min(STRIP_BYTES // (self._width * pixel_bytes), self._height))

    def add_page(self, band: Pixels, top: int) -> None:
        """A page that is black but for these rows (rows, width, samples), which begin and end with a strip."""
        samples, size = band.shape[2], band.dtype.itemsize
        rows = self.strip_rows(samples * size)
        band = np.ascontiguousarray(band, band.dtype.newbyteorder("<"))
        strips: list[bytes] = []
        for y in range(0, self._height, rows):
            height = min(rows, self._height - y)
            if top <= y < top + len(band):
                strips.append(_compress(band[y - top : y - top + height].tobytes()))
            else:
                length = height * self._width * samples * size
                if length not in self._black:
                    self._black[length] = _compress(bytes(length))
                strips.append(self._black[length])
        self._add_directory([self._place(strip) for strip in strips], [len(strip) for strip in strips], samples, size)

    def finish(self) -> bytes:
        """The file."""
        return bytes(self._content)

    def _place(self, strip: bytes) -> int:
        found = self._strips.get(strip)
        if found is None:
            found = self._strips[strip] = len(self._content)
            self._content += strip
        return found

    def _add_directory(self, offsets: list[int], sizes: list[int], samples: int, size: int) -> None:
        color = samples == 3
        tags = [
            (tag.WIDTH, [self._width]),
            (tag.HEIGHT, [self._height]),
            (tag.BITS, [8 * size] * samples),
            (tag.COMPRESSION, [tag.DEFLATE]),
            (tag.PHOTOMETRIC, [tag.RGB if color else tag.BLACK_IS_ZERO]),
            (tag.STRIP_OFFSETS, offsets),
            (tag.SAMPLES, [samples]),
            (tag.STRIP_ROWS, [self.strip_rows(samples * size)]),
            (tag.STRIP_SIZES, sizes),
            (tag.PLANAR, [1]),
        ]
        table = bytearray(struct.pack("<H", len(tags)))
        for number, values in tags:
            short = number in _SHORT
            layout = f"<{len(values)}{'H' if short else 'I'}"
            value = struct.pack(layout, *values)
            if len(value) > 4:
                self._align()
                start = len(self._content)
                self._content += value
                value = struct.pack("<I", start)
            table += struct.pack("<HHI4s", number, 3 if short else 4, len(values), value)
        self._align()
        struct.pack_into("<I", self._content, self._link, len(self._content))
        self._link = len(self._content) + len(table)
        self._content += table + bytes(4)

    def _align(self) -> None:
        """Directories and values begin at even bytes."""
        self._content += bytes(len(self._content) % 2)


_SHORT = frozenset({tag.BITS, tag.COMPRESSION, tag.PHOTOMETRIC, tag.SAMPLES, tag.PLANAR})


def _compress(content: bytes) -> bytes:
    return bytes(imagecodecs.zlibng_encode(content, LEVEL))
