"""Writes a dataset of one file an image, named by the image's stem, with what else the format wants beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.written_images import WrittenImages
from services.conversion.index import ImageEntry


class FileSink:
    """Files `<labels>/<prefix><stem><suffix>`, copies of the images in `images`, a list of them where there is one.

    `content` writes a file: the image, its fragment. `others`: texts of files that are written first, by path.
    """

    def __init__(
        self,
        *,
        labels: str,
        images: str,
        suffix: str,
        content: Callable[[ImageEntry, Fragment], bytes],
        losses: Losses,
        prefix: str = "",
        others: Mapping[str, str] | None = None,
    ) -> None:
        self.losses = losses
        self._labels = labels
        self._prefix, self._suffix = prefix, suffix
        self._content = content
        self._others = others or {}
        self._folder = Path()
        self._images = WrittenImages(losses, folder=images)

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Make the folders, and write what stands beside the files."""
        self._folder = folder / self._labels
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, text in self._others.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One image's file; one without an annotation has none."""
        stem = self._images.add(image, written)
        if stem and written is not None:
            path = self._folder / f"{self._prefix}{stem}{self._suffix}"
            path.write_bytes(self._content(image, written))

    def end(self) -> None:
        """Every file is closed already."""

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs; empty where the image was left out."""
        return self._images.path(image)
