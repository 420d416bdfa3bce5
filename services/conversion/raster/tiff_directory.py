"""What the directories of a TIFF say of its pages, checked: no page claims more than it may, or lies outside the file.

Nothing is decoded here. Source: TIFF 6.0, with BigTIFF.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.header import HeaderError, TiffEntry, TiffReader
from services.conversion.raster.error import RasterError, RasterLimits

PIECES_MAX = 10_000_000
"""Strips and tiles of all pages."""
TILE_PIXELS_MAX = 2**20
"""A tile may be larger than its page, but then no larger than this."""
TILED_RATIO_MAX = 4
"""All tiles of a page have at most this many times the pixels that it may have: that is all that can jut out of it."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_SIZES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, SAMPLE_FORMAT = 322, 323, 324, 325, 339
BLACK_IS_ZERO, RGB = 1, 2
UNCOMPRESSED, LZW, DEFLATE, DEFLATE_OLD, PACKBITS, ZSTD = 1, 5, 8, 32946, 32773, 50000
_COMPRESSIONS = (UNCOMPRESSED, LZW, DEFLATE, DEFLATE_OLD, PACKBITS, ZSTD)
_DEFAULTS = {
    BITS: 1,
    COMPRESSION: UNCOMPRESSED,
    FILL_ORDER: 1,
    SAMPLES: 1,
    STRIP_ROWS: 2**32 - 1,
    PLANAR: 1,
    PREDICTOR: 1,
    SAMPLE_FORMAT: 1,
}
_KINDS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_AT_LEAST_ONE = {WIDTH: "width", HEIGHT: "height", STRIP_ROWS: "rows", TILE_WIDTH: "tiles", TILE_HEIGHT: "tiles"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pieces, strips or tiles, of a page: their size, and how many there are of them each way.

    A tile has its full size also where it juts out of the page; a strip ends with the page.
    """

    width: int
    height: int
    across: int
    down: int
    planes: int
    samples: int
    """Of a piece."""
    tiled: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One page: its size, how its samples are written, and where its pieces lie, plane by plane and row by row."""

    width: int
    height: int
    samples: int
    """Of a pixel, alpha among them."""
    bits: int
    compression: int
    predictor: int
    dtype: np.dtype[Any]
    """Of a sample in the file."""
    grid: Grid
    offsets: NDArray[Any]
    sizes: NDArray[Any]


def read_layouts(content: bytes, limits: RasterLimits) -> list[Layout]:
    """The pages of a TIFF, at least one. Raises RasterError."""

    def take(start: int, length: int) -> bytes:
        if start + length > len(content):
            raise RasterError("truncated_map", f"ends after {len(content)} bytes, in the middle")
        return content[start : start + length]

    layouts: list[Layout] = []
    pieces = 0
    try:
        reader = TiffReader(take, content[:16])
        for offset in _directories(reader, limits.pages_max):
            layout = _Directory(reader, offset, content).layout(limits)
            pieces += len(layout.offsets)
            if pieces > PIECES_MAX:
                raise RasterError("decompression_bomb", f"has more than {PIECES_MAX} strips or tiles")
            layouts.append(layout)
    except HeaderError as error:
        raise RasterError("unreadable_map", f"cannot be read: {error}") from error
    if not layouts:
        raise RasterError("unreadable_map", "has no page")
    return layouts


def _directories(reader: TiffReader, pages_max: int) -> Iterator[int]:
    seen: set[int] = set()
    offset = reader.first
    while offset:
        if offset in seen:
            raise RasterError("unreadable_map", f"has pages that go round in a circle, at byte {offset}")
        if len(seen) == pages_max:
            raise RasterError("too_many_pages", f"has more than {pages_max} pages")
        seen.add(offset)
        yield offset
        offset = reader.following(offset)


class _Directory:
    def __init__(self, reader: TiffReader, offset: int, content: bytes) -> None:
        self._reader = reader
        self._entries = dict(reader.entries(offset))
        self._content = content

    def layout(self, limits: RasterLimits) -> Layout:
        """The page. Raises RasterError where it is none of ours, or claims too much."""
        width, height = self._number(WIDTH), self._number(HEIGHT)
        if width * height > limits.pixels_max:
            problem = f"claims {width} x {height} pixels in a page, where at most {limits.pixels_max} were wanted"
            raise RasterError("decompression_bomb", problem)
        samples = self._samples()
        bits, sample_format = self._alike(BITS), self._alike(SAMPLE_FORMAT)
        if bits not in (8, 16) or sample_format != 1:
            problem = (
                f"has a page of {bits} bits a sample and sample format {sample_format}, where 8 or 16 bits and "
                "format 1 (whole numbers from 0) were wanted"
            )
            raise RasterError("unsupported_map", problem)
        compression, predictor = self._compression()
        grid = self._grid(width, height, samples, limits)
        offsets, sizes = self._pieces(grid)
        return Layout(
            width=width,
            height=height,
            samples=samples,
            bits=bits,
            compression=compression,
            predictor=predictor,
            dtype=np.dtype(f"{self._reader.order}u{bits // 8}"),
            grid=grid,
            offsets=offsets,
            sizes=sizes,
        )

    def _samples(self) -> int:
        stored = self._number(SAMPLES)
        colors = stored - 1 if stored in (2, 4) else stored
        photometric = self._number(PHOTOMETRIC, default=BLACK_IS_ZERO if colors == 1 else RGB)
        if (colors, photometric) not in ((1, BLACK_IS_ZERO), (3, RGB)):
            problem = (
                f"has a page of {stored} samples a pixel and photometric interpretation {photometric}, where 1 and "
                f"{BLACK_IS_ZERO} (gray, 0 is black) or 3 and {RGB} (RGB) were wanted"
            )
            raise RasterError("unsupported_map", problem)
        return stored

    def _compression(self) -> tuple[int, int]:
        compression, predictor = self._number(COMPRESSION), self._number(PREDICTOR)
        if compression not in _COMPRESSIONS:
            wanted = "none, LZW, deflate, PackBits or Zstandard"
            raise RasterError("unsupported_map", f"has a page of compression {compression}, where {wanted} was wanted")
        if predictor not in (1, 2):
            raise RasterError("unsupported_map", f"has a page of predictor {predictor}, where 1 or 2 was wanted")
        if (order := self._number(FILL_ORDER)) != 1:
            raise RasterError("unsupported_map", f"has a page of fill order {order}, where 1 was wanted")
        return compression, predictor

    def _grid(self, width: int, height: int, samples: int, limits: RasterLimits) -> Grid:
        tiled = TILE_OFFSETS in self._entries
        piece_width = self._number(TILE_WIDTH) if tiled else width
        piece_height = self._number(TILE_HEIGHT) if tiled else min(self._number(STRIP_ROWS), height)
        across, down = -(-width // piece_width), -(-height // piece_height)
        pixels = across * piece_width * down * piece_height
        pixels_max = max(TILED_RATIO_MAX * limits.pixels_max, TILE_PIXELS_MAX)
        if tiled and pixels > pixels_max:
            problem = f"claims {pixels} pixels in the tiles of a page, where at most {pixels_max} were wanted"
            raise RasterError("decompression_bomb", problem)
        planes = samples if self._number(PLANAR) == 2 else 1
        return Grid(
            width=piece_width,
            height=piece_height,
            across=across,
            down=down,
            planes=planes,
            samples=samples // planes,
            tiled=tiled,
        )

    def _pieces(self, grid: Grid) -> tuple[NDArray[Any], NDArray[Any]]:
        """Offset and size of each piece, all of which lie in the file."""
        count = grid.across * grid.down * grid.planes
        tags = (TILE_OFFSETS, TILE_SIZES) if grid.tiled else (STRIP_OFFSETS, STRIP_SIZES)
        offsets, sizes = (self._numbers(tag)[:count] for tag in tags)
        if min(len(offsets), len(sizes)) < count:
            problem = f"has a page of {min(len(offsets), len(sizes))} strips or tiles, where {count} were wanted"
            raise RasterError("unreadable_map", problem)
        end = len(self._content)
        # Each alone first: the sum of two that are too large may be small.
        if offsets.max() > end or sizes.max() > end or (offsets.astype(np.uint64) + sizes).max() > end:
            raise RasterError("truncated_map", f"ends after {end} bytes, in the middle of a page")
        return offsets, sizes

    def _numbers(self, tag: int) -> NDArray[Any]:
        """All numbers of a tag, none where it is not there. They stay in the file, which pages may share them in."""
        entry = self._entries.get(tag)
        if entry is None:
            return np.zeros(0, np.uint8)
        dtype = self._dtype(tag, entry)
        if entry.count * dtype.itemsize <= len(entry.field):
            return np.frombuffer(entry.field, dtype, entry.count)
        start = self._reader.offset(entry)
        if start + entry.count * dtype.itemsize > len(self._content):
            raise RasterError("truncated_map", f"ends after {len(self._content)} bytes, in the middle of a directory")
        return np.frombuffer(self._content, dtype, entry.count, start)

    def _dtype(self, tag: int, entry: TiffEntry) -> np.dtype[Any]:
        kind = _KINDS.get(entry.kind)
        if kind is None:
            problem = f"has a tag {tag} of field type {entry.kind}, where whole numbers were wanted"
            raise RasterError("unreadable_map", problem)
        return np.dtype(self._reader.order + kind)

    def _number(self, tag: int, *, default: int | None = None) -> int:
        """The first number of a tag."""
        numbers = self._numbers(tag)
        found = int(numbers[0]) if numbers.size else _DEFAULTS.get(tag, default)
        if found is None or (found < 1 and tag in _AT_LEAST_ONE):
            raise RasterError("unreadable_map", f"has a page without {_AT_LEAST_ONE.get(tag, f'tag {tag}')}")
        return found

    def _alike(self, tag: int) -> int:
        """The number that a tag says of every sample."""
        numbers = self._numbers(tag)
        if numbers.size and (numbers != numbers[0]).any():
            raise RasterError("unsupported_map", f"has a page whose samples differ in tag {tag}")
        return self._number(tag)
