"""What the first bytes of a JPEG, PNG or TIFF say: size, EXIF orientation, and whether the file is whole.

Nothing is decoded, so no image, however made, costs more than its header. Sources: ITU-T T.81 annex B (JPEG), W3C
PNG third edition, TIFF 6.0 with the BigTIFF extension, CIPA DC-008 (EXIF: a TIFF directory in a JPEG's APP1).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

ORIENTATION_TAG = 274
SAMPLE_FORMAT_TAG = 339
NOT_WHOLE = frozenset({3, 5, 6})
"""Sample formats of numbers with fractions: one, and complex ones."""
TURNED = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""
DIRECTORY_ENTRIES_MAX = 4_096
STRIPS_MAX = 10_000_000


class ImageFormat(enum.StrEnum):
    """The formats that a dataset's images may have."""

    JPEG = "JPEG"
    PNG = "PNG"
    TIFF = "TIFF"


FORMAT_BY_SUFFIX = {
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".png": ImageFormat.PNG,
    ".tif": ImageFormat.TIFF,
    ".tiff": ImageFormat.TIFF,
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """`width` and `height` are those of the image as it is shown: `orientation` (1 to 8) is applied to them."""

    format: ImageFormat
    width: int
    height: int
    orientation: int


class HeaderError(Exception):
    """The file cannot be an image that is whole. `truncated`: its beginning is fine, its end is missing."""

    def __init__(self, problem: str, *, truncated: bool = False) -> None:
        super().__init__(problem)
        self.truncated = truncated


class MoreNeededError(Exception):
    """The header cannot be judged from these pieces: give the whole file."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A file of `size_bytes`, or its first and its last bytes where it is large."""

    head: bytes
    tail: bytes
    size_bytes: int

    @property
    def whole(self) -> bool:
        """Whether `head` is the whole file."""
        return len(self.head) == self.size_bytes

    def take(self, start: int, length: int) -> bytes:
        """These bytes. HeaderError where the file ends before them, MoreNeededError where the head does."""
        end = start + length
        if end > self.size_bytes:
            raise HeaderError(f"it ends after {self.size_bytes} bytes, in the middle", truncated=True)
        if end > len(self.head):
            raise MoreNeededError
        return self.head[start:end]


def read_header(pieces: Pieces) -> Header:
    """The header of an image; its format is told by its content. Raises HeaderError, MoreNeededError."""
    if not pieces.size_bytes:
        raise HeaderError("it is empty")
    for signature, read in _READERS:
        if pieces.head.startswith(signature):
            header = read(pieces)
            if header.width < 1 or header.height < 1:
                raise HeaderError(f"its size is {header.width} x {header.height}")
            return header
    raise HeaderError("it is no JPEG, PNG or TIFF")


def _header(kind: ImageFormat, width: int, height: int, orientation: int) -> Header:
    if orientation in TURNED:
        width, height = height, width
    return Header(format=kind, width=width, height=height, orientation=orientation)


def _read_jpeg(pieces: Pieces) -> Header:
    position = 2
    size: tuple[int, int] | None = None
    orientation = 1
    while True:
        marker = pieces.take(position, 2)
        if marker[0] != 0xFF:
            raise HeaderError(f"a marker was wanted at byte {position}")
        if marker[1] == 0xFF:  # a fill byte
            position += 1
            continue
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD7:  # stand alone
            position += 2
            continue
        if marker[1] == 0xD9:
            raise HeaderError("it ends before any picture")
        (length,) = struct.unpack(">H", pieces.take(position + 2, 2))
        if marker[1] == 0xDA:
            break
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", pieces.take(position + 5, 4))
            size = width, height
        if marker[1] == 0xE1 and orientation == 1 and pieces.take(position + 4, min(length, 8) - 2) == b"Exif\0\0":
            orientation = _exif_orientation(pieces.take(position + 10, length - 8))
        position += 2 + length
    if size is None:
        raise HeaderError("it has no frame before its picture")
    # Only after the start of the scan: an EXIF thumbnail has an end of its own.
    if b"\xff\xd9" not in (memoryview(pieces.head)[position:].tobytes() if pieces.whole else pieces.tail):
        if pieces.whole:
            raise HeaderError("it has no end", truncated=True)
        raise MoreNeededError
    return _header(ImageFormat.JPEG, *size, orientation)


def _read_png(pieces: Pieces) -> Header:
    if pieces.take(8, 8) != b"\0\0\0\rIHDR":
        raise HeaderError("it does not begin with IHDR")
    width, height = struct.unpack(">II", pieces.take(16, 8))
    orientation = 1
    position = 8
    while True:
        if not pieces.whole and position + 8 > len(pieces.head):
            _check_png_tail(pieces.tail)
            break
        length, kind = struct.unpack(">I4s", pieces.take(position, 8))
        if kind == b"IEND":
            pieces.take(position, 12)
            break
        if kind == b"eXIf":
            orientation = _exif_orientation(pieces.take(position + 8, length))
        position += 12 + length
    return _header(ImageFormat.PNG, width, height, orientation)


def _check_png_tail(tail: bytes) -> None:
    """The chunks after the picture lie in the tail; where that is not sure, the whole file tells."""
    if b"IEND\xaeB`\x82" not in tail or b"eXIf" in tail:
        raise MoreNeededError


def _read_tiff(pieces: Pieces) -> Header:
    reader = TiffReader(pieces.take, pieces.take(0, 16))
    tags = dict(reader.entries(reader.first))
    missing = [name for tag, name in ((256, "width"), (257, "height")) if tag not in tags]
    if missing:
        raise HeaderError(f"its first page has no {missing[0]}")
    kinds = set(reader.values(tags[SAMPLE_FORMAT_TAG])) if SAMPLE_FORMAT_TAG in tags else set[int]()
    if kinds & NOT_WHOLE:
        raise HeaderError("its pixels are numbers with fractions, which no picture has here: save it with 8 or 16 bits")
    width, height = (next(reader.values(tags[tag]), 0) for tag in (256, 257))
    orientation = next(reader.values(tags[ORIENTATION_TAG]), 1) if ORIENTATION_TAG in tags else 1
    for offsets, counts in ((273, 279), (324, 325)):
        if offsets in tags and counts in tags:
            ends = (sum(pair) for pair in zip(reader.values(tags[offsets]), reader.values(tags[counts]), strict=False))
            if max(ends, default=0) > pieces.size_bytes:
                raise HeaderError(f"it ends after {pieces.size_bytes} bytes, in the middle", truncated=True)
            return _header(ImageFormat.TIFF, width, height, _legal(orientation))
    raise HeaderError("its first page has no picture")


def _exif_orientation(exif: bytes) -> int:
    """The orientation, 1 where the EXIF data do not say or cannot be read: viewers show such an image as it is."""

    def take(start: int, length: int) -> bytes:
        if start + length > len(exif):
            raise HeaderError("the EXIF data end in the middle")
        return exif[start : start + length]

    try:
        reader = TiffReader(take, exif[:16])
        for tag, entry in reader.entries(reader.first):
            if tag == ORIENTATION_TAG:
                return _legal(next(reader.values(entry), 1))
    except HeaderError:
        return 1
    return 1


def _legal(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


class _Take(Protocol):
    def __call__(self, start: int, length: int) -> bytes: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TiffEntry:
    """A tag's value: `count` of a TIFF's field type `kind`."""

    kind: int
    count: int
    field: bytes
    """The value where it fits, else its offset."""


class TiffReader:
    """The directories of a TIFF structure, classic or BigTIFF. Raises HeaderError, and what `take` raises."""

    def __init__(self, take: _Take, start: bytes) -> None:
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None or len(start) < 8:
            raise HeaderError("it is no TIFF")
        self._take = take
        self.order = order
        (version,) = struct.unpack_from(order + "H", start, 2)
        if version not in (42, 43):
            raise HeaderError(f"it is a TIFF of version {version}, where 42 or 43 was wanted")
        self._big = version == 43
        if self._big and len(start) < 16:
            raise HeaderError("it is no TIFF")
        self._offset = struct.Struct(order + ("Q" if self._big else "I"))
        self._count = struct.Struct(order + ("Q" if self._big else "H"))
        self._layout = struct.Struct(order + ("HHQ8s" if self._big else "HHI4s"))
        (self.first,) = self._offset.unpack_from(start, 8 if self._big else 4)

    def entries(self, directory: int) -> Iterator[tuple[int, TiffEntry]]:
        """Tags with what stands beside them, of the directory at that offset."""
        table = self._take(directory + self._count.size, self._entries(directory) * self._layout.size)
        for tag, kind, values, field in self._layout.iter_unpack(table):
            yield tag, TiffEntry(kind=kind, count=values, field=field)

    def following(self, directory: int) -> int:
        """The offset of the directory after that one, 0 where it is the last."""
        end = directory + self._count.size + self._entries(directory) * self._layout.size
        (offset,) = self._offset.unpack(self._take(end, self._offset.size))
        return int(offset)

    def _entries(self, directory: int) -> int:
        (count,) = self._count.unpack(self._take(directory, self._count.size))
        if count > DIRECTORY_ENTRIES_MAX:
            raise HeaderError(f"its directory has {count} entries, where at most {DIRECTORY_ENTRIES_MAX} were wanted")
        return int(count)

    def offset(self, entry: TiffEntry) -> int:
        """Where the values of an entry lie that are too long to stand in it."""
        (offset,) = self._offset.unpack(entry.field)
        return int(offset)

    def values(self, entry: TiffEntry) -> Iterator[int]:
        """The whole numbers of an entry; none where it holds something else."""
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(entry.kind)
        if code is None or not 0 < entry.count <= STRIPS_MAX:
            return
        layout = struct.Struct(self.order + code)
        length = layout.size * entry.count
        content = entry.field[:length]
        if length > len(entry.field):
            content = self._take(self.offset(entry), length)
        for (value,) in layout.iter_unpack(content):
            yield value


_READERS = (
    (b"\xff\xd8\xff", _read_jpeg),
    (b"\x89PNG\r\n\x1a\n", _read_png),
    (b"II*\0", _read_tiff),
    (b"MM\0*", _read_tiff),
    (b"II+\0", _read_tiff),
    (b"MM\0+", _read_tiff),
)
