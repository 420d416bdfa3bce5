"""The index of a dataset's images: name, bytes, ETag, size and orientation of each. Pure; `survey` builds it.

Of a file on this machine the ETag is the sha256 of its content, so that copying or touching a dataset does not change
its fingerprint; of a bucket it is the bucket's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import msgspec

from services.conversion.file.header import FORMAT_BY_SUFFIX, TURNED
from services.conversion.finding import Place, Report

INDEX_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """The size of an image in pixels, as it is shown. `turned`: its file holds it with width and height swapped."""

    width: int
    height: int
    turned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEntry:
    """One image. `width` and `height` are as it is shown. A broken one has a `rule` and a `problem`, and no size."""

    name: str
    size_bytes: int
    etag: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    format: str = ""
    rule: str = ""
    problem: str = ""

    @property
    def size(self) -> ImageSize:
        """As it is shown."""
        return ImageSize(width=self.width, height=self.height, turned=self.orientation in TURNED)


@dataclass(frozen=True, kw_only=True)
class Index:
    """All images by name, the broken ones included."""

    entries: tuple[ImageEntry, ...]

    @cached_property
    def images(self) -> tuple[ImageEntry, ...]:
        """The images that can be used."""
        return tuple(entry for entry in self.entries if not entry.rule)

    @cached_property
    def broken(self) -> Mapping[str, str]:
        """The rule that each broken image broke."""
        return {entry.name: entry.rule for entry in self.entries if entry.rule}

    def report(self, report: Report) -> None:
        """What the headers say that is wrong, or that looks wrong."""
        for entry in self.entries:
            place = Place(file=f"images/{entry.name}", image=entry.name)
            if entry.rule:
                report.error(entry.rule, f"{entry.problem}: replace the image, or remove it", place, annotations=0)
                continue
            suffix = PurePosixPath(entry.name).suffix
            if FORMAT_BY_SUFFIX[suffix.lower()] != entry.format:
                message = f"the file's name ends in {suffix}, but its content is {entry.format}: rename it"
                report.warn("wrong_extension", message, place, value=entry.format)
            if entry.orientation != 1:
                message = (
                    f"EXIF says orientation {entry.orientation}: coordinates refer to the image as it is shown, "
                    f"{entry.width} x {entry.height}"
                )
                report.warn("exif_rotation", message, place, value=str(entry.orientation))


def index_to_json(index: Index) -> bytes:
    """For the store. Row by row, here and below: all rows at once would take more than the index."""
    rows = (msgspec.json.encode(tuple(getattr(entry, each) for each in _FIELDS)) for entry in index.entries)
    return b'{"version":%d,"images":[' % INDEX_VERSION + b",\n".join(rows) + b"]}\n"


def index_from_json(content: bytes) -> Index:
    """The pair of `index_to_json`."""
    rows = msgspec.json.decode(content, type=_Rows).images
    entries = (zip(_FIELDS, _read_row(row), strict=True) for row in rows)
    return Index(entries=tuple(ImageEntry(**dict[str, Any](each)) for each in entries))


class _Rows(msgspec.Struct):
    images: list[msgspec.Raw]


_FIELDS = tuple(each.name for each in fields(ImageEntry))
_read_row = msgspec.json.Decoder(tuple[str, int, str, int, int, int, str, str, str]).decode
