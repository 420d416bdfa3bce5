"""Writes YOLO: `data.yaml`, a text file an image in labels/, and `train.txt`, which lists the images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.conversion.foreign.format import WriteRequest
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.written_images import WrittenImages
from services.conversion.formats import FORMATS
from services.conversion.index import ImageEntry

LABELS, IMAGES, LIST, DESCRIPTION = "labels", "images", "train.txt", "data.yaml"


class YoloSink:
    """One dataset. Each piece of a fragment is a line."""

    def __init__(
        self, request: WriteRequest, *, lost: Mapping[str, str], names: Sequence[str] = (), more: Sequence[str] = ()
    ) -> None:
        """`names` of the classes, if they are not the vocabulary's; `more` lines of the description."""
        self.losses = Losses(sentences=lost, file=f"{LABELS}/")
        self._images = WrittenImages(self.losses, folder=IMAGES)
        self._names = names or FORMATS[request.task].names(request.vocabulary)
        self._more = more
        self._folder = Path()

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Make the folder, and say what is in it."""
        self._folder = folder
        (folder / LABELS).mkdir()
        lines = [
            f"# Images lie in {IMAGES}/, labels in {LABELS}/. `val` must be there for the tools that train: name other",
            "# images there, or nothing is said of images that were not trained with.",
            f"train: {LIST}",
            f"val: {LIST}",
            f"nc: {len(self._names)}",
            "names:",
            # JSON's texts are YAML's, whatever is in them: 007, no and 1.10 stay names.
            *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(self._names)),
            *self._more,
        ]
        (folder / DESCRIPTION).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._images.begin(folder / LIST)

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image's file; one without an annotation is not listed."""
        stem = self._images.add(image, written)
        if stem:
            (self._folder / LABELS / f"{stem}.txt").write_bytes(b"".join(written.pieces))
            self._images.list(f"./{IMAGES}/{image.name}")

    def end(self) -> None:
        """Close the list of images."""
        self._images.end()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs."""
        return self._images.path(image)
