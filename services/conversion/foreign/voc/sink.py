"""Writes Pascal VOC: an XML file an image, the list of images, the categories in order.

A category's name that is used in no box would be lost without `labelmap.txt`, which others read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from services.conversion.foreign.format import WriteRequest
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.written_images import WrittenImages
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
        self._images = WrittenImages(self.losses, folder=IMAGES)
        self._folder = Path()
        self._names: Sequence[str] = ()

    def begin(self, folder: Path, vocabulary: Names) -> None:
        """Make the folders."""
        self._folder = folder
        (folder / ANNOTATIONS).mkdir()
        (folder / SETS).mkdir(parents=True)
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in vocabulary.names)]
        (folder / LABEL_MAP).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._images.begin(folder / SETS / SPLIT)

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image's file; one without an annotation has none."""
        stem = self._images.add(image, written)
        if not stem:
            return
        head = (
            f"<annotation>\n\t<folder>{IMAGES}</folder>\n\t<filename>{escape(image.name)}</filename>\n"
            f"\t<size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>\n"
            "\t<segmented>0</segmented>\n"
        )
        content = head.encode() + b"".join(written.pieces) + b"</annotation>\n"
        (self._folder / ANNOTATIONS / f"{stem}.xml").write_bytes(content)
        self._images.list(stem)

    def end(self) -> None:
        """Close the list of images."""
        self._images.end()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs."""
        return self._images.path(image)
