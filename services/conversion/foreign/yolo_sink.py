"""Writes YOLO: `data.yaml`, a text file an image in labels/, and `train.txt`, which lists the images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.foreign.foreign_format import WriteRequest
from services.conversion.foreign.fragment import Fragment, Losses
from services.conversion.formats import FORMATS
from services.conversion.index import ImageEntry

LABELS, IMAGES, LIST, DESCRIPTION = "labels", "images", "train.txt", "data.yaml"


class YoloSink:
    """One dataset. Each piece of a fragment is a line."""

    def __init__(self, request: WriteRequest, *, lost: Mapping[str, str]) -> None:
        self.losses = Losses(sentences=lost, file=f"{LABELS}/")
        self._names = FORMATS[request.task].names(request.vocabulary)
        self._folder = Path()
        self._stems: set[str] = set()
        self._written: set[str] = set()
        self._list: IO[str] | None = None

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Make the folder, and say what is in it."""
        self._folder = folder
        (folder / LABELS).mkdir()
        lines = [
            f"# Images lie in {IMAGES}/, labels in {LABELS}/. Name the images for validation here: `val: …`.",
            f"train: {LIST}",
            f"nc: {len(self._names)}",
            "names:",
            # JSON's texts are YAML's, whatever is in them: 007, no and 1.10 stay names.
            *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(self._names)),
        ]
        (folder / DESCRIPTION).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._list = (folder / LIST).open("w", encoding="utf-8")

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image's file; one without an annotation is not listed."""
        if written is None:
            self.losses.images_left_out += 1
            return
        assert self._list is not None, "begin comes first"
        fragment: Fragment = written
        stem = PurePosixPath(image.name).stem
        if stem in self._stems:
            message = f"two images have the stem {stem!r}, so that their labels would have one name: rename one"
            raise FailedPrecondition(Reason.DATASET_INVALID, message, {"stem": stem})
        self._stems.add(stem)
        self._written.add(image.name)
        self.losses.add(fragment.lost)
        (self._folder / LABELS / f"{stem}.txt").write_bytes(b"".join(fragment.pieces))
        self._list.write(f"./{IMAGES}/{image.name}\n")

    def end(self) -> None:
        """Close the list of images."""
        assert self._list is not None, "begin comes first"
        self._list.close()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs."""
        return f"{IMAGES}/{image.name}" if image.name in self._written else ""
