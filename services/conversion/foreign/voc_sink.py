"""Writes Pascal VOC: an XML file an image, the list of images, the categories in order.

A category's name that is used in no box would be lost without `labelmap.txt`, which others read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any
from xml.sax.saxutils import escape

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.foreign.foreign_format import WriteRequest
from services.conversion.foreign.fragment import Fragment, Losses
from services.conversion.formats.names import Names
from services.conversion.index import ImageEntry

LABEL_MAP = "labelmap.txt"
ANNOTATIONS, IMAGES, SETS = "Annotations", "JPEGImages", "ImageSets/Main"
SPLIT = "train.txt"
LOST = {
    "crowd": "crowds are written as single objects: Pascal VOC has none",
    "fraction": "boxes have fractions of pixels, which Pascal VOC allows and some tools do not read",
}


class VocSink:
    """One dataset."""

    def __init__(self, request: WriteRequest) -> None:
        self.losses = Losses(sentences=LOST, file=f"{ANNOTATIONS}/")
        self._folder = Path()
        self._stems: set[str] = set()
        self._written: set[str] = set()
        self._names: Sequence[str] = ()
        self._list: IO[str] | None = None

    def begin(self, folder: Path, vocabulary: Names) -> None:
        """Make the folders."""
        self._folder = folder
        (folder / ANNOTATIONS).mkdir()
        (folder / SETS).mkdir(parents=True)
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in vocabulary.names)]
        (folder / LABEL_MAP).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._list = (folder / SETS / SPLIT).open("w", encoding="utf-8")

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image's file; one without an annotation has none."""
        if written is None:
            self.losses.images_left_out += 1
            return
        assert self._list is not None, "begin comes first"
        fragment: Fragment = written
        stem = PurePosixPath(image.name).stem
        if stem in self._stems:
            message = f"two images have the stem {stem!r}, so that their files would have one name: rename one"
            raise FailedPrecondition(Reason.DATASET_INVALID, message, {"stem": stem})
        self._stems.add(stem)
        self._written.add(image.name)
        self.losses.add(fragment.lost)
        head = (
            f"<annotation>\n\t<folder>{IMAGES}</folder>\n\t<filename>{escape(image.name)}</filename>\n"
            f"\t<size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>\n"
            "\t<segmented>0</segmented>\n"
        )
        content = head.encode() + b"".join(fragment.pieces) + b"</annotation>\n"
        (self._folder / ANNOTATIONS / f"{stem}.xml").write_bytes(content)
        self._list.write(f"{stem}\n")

    def end(self) -> None:
        """Close the list of images."""
        assert self._list is not None, "begin comes first"
        self._list.close()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs."""
        return f"{IMAGES}/{image.name}" if image.name in self._written else ""
