"""Writes COCO's JSON image by image, and the PNGs of panoptic maps beside it; nothing of it grows in memory.

The folder holds `annotations/<kind>.json`, the maps in `annotations/panoptic/`, and images/ where they are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.foreign.coco.annotation import json_bytes
from services.conversion.foreign.format import WriteRequest
from services.conversion.foreign.losses import Losses
from services.conversion.formats import FORMATS
from services.conversion.index import ImageEntry

HEAD = b'{"info":{"description":"written by sihlai"},"licenses":[],\n"categories":'
"""Without `info` pycocotools refuses its own results for a dataset."""
DIGITS_MAX = 15
"""A file's name of more digits is no number that every JSON reader can hold."""


def coco_category_ids(request: WriteRequest) -> dict[str, int]:
    """A number for each category: the one it came with, else the next; 1, 2, 3 where none has any."""
    names = FORMATS[request.task].names(request.vocabulary)
    after = max((request.category_ids[name] for name in names if name in request.category_ids), default=0)
    ids: dict[str, int] = {}
    for name in names:
        if name in request.category_ids:
            ids[name] = request.category_ids[name]
        else:
            after += 1
            ids[name] = after
    return ids


class CocoSink:
    """One document. Of a fragment each piece is an annotation; for panoptic, the segments and the map."""

    def __init__(
        self,
        request: WriteRequest,
        *,
        kind: str,
        categories: Sequence[Mapping[str, Any]],
        lost: Mapping[str, str],
        path: str = "",
        images: str = "images",
    ) -> None:
        """`path` of the document, if not that of COCO's own; copies of images belong into `images`."""
        self._path = path or f"annotations/{kind}.json"
        self._images_folder = images
        self.losses = Losses(sentences=lost, file=self._path)
        self._ids = _image_ids(request.images)
        self._kind = kind
        self._categories = categories
        self._copied: set[str] = set()
        self._folder = Path()
        self._annotations: IO[bytes] | None = None
        self._images: IO[bytes] | None = None
        self._count = 0

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Open the document."""
        document = folder / self._path
        self._folder = document.parent
        self._folder.mkdir()
        if self._kind == "panoptic":
            (self._folder / "panoptic").mkdir()
        self._annotations = document.open("wb")
        # Without `info` and `licenses` pycocotools refuses its own results for a dataset.
        self._annotations.write(
            b'{"info":{"description":"written by sihlai"},"licenses":[],\n"categories":'
            + json_bytes(self._categories)
            + b',\n"annotations":['
        )
        self._images = (self._folder / "images.part").open("w+b")

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One image; of one without an annotation nothing is said, not even that it is there."""
        if written is None:
            self.losses.images_left_out += 1
            return
        assert self._annotations is not None, "begin comes first"
        assert self._images is not None, "begin comes first"
        self.losses.add(written.lost)
        number = self._ids[image.name]
        about = {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
        self._images.write((b",\n" if self._copied else b"\n") + json_bytes(about))
        self._copied.add(image.name)
        if self._kind == "panoptic":
            segments, content = written.pieces
            name = f"{PurePosixPath(image.name).stem}.png"
            (self._folder / "panoptic" / name).write_bytes(content)
            about = {"image_id": number, "file_name": name}
            self._write(json_bytes(about)[:-1] + b',"segments_info":' + segments + b"}")
            return
        for piece in written.pieces:
            self._write(b'{"id":%d,"image_id":%d,' % (self._count + 1, number) + piece[1:])

    def end(self) -> None:
        """Put the images behind the annotations."""
        assert self._annotations is not None, "begin comes first"
        assert self._images is not None, "begin comes first"
        self._annotations.write(b'\n],\n"images":[')
        self._images.seek(0)
        shutil.copyfileobj(self._images, self._annotations)
        self._annotations.write(b"\n]}\n")
        self._annotations.close()
        self._images.close()
        (self._folder / "images.part").unlink()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs."""
        return f"{self._images_folder}/{image.name}" if image.name in self._copied else ""

    def _write(self, annotation: bytes) -> None:
        assert self._annotations is not None, "begin comes first"
        self._annotations.write((b",\n" if self._count else b"\n") + annotation)
        self._count += 1


def _image_ids(images: Sequence[ImageEntry]) -> dict[str, int]:
    """The number in each file's name, as COCO's own have, where every one has another; else 1, 2, 3."""
    stems = {image.name: PurePosixPath(image.name).stem for image in images}
    if all(stem.isascii() and stem.isdigit() and len(stem) <= DIGITS_MAX for stem in stems.values()):
        numbers = {name: int(stem) for name, stem in stems.items()}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    return {name: number for number, name in enumerate(stems, start=1)}
