"""Writes a dataset that is one document: a head, a text for each image, a tail. Nothing of it grows in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.foreign.losses import Losses
from services.conversion.index import ImageEntry


class DocumentSink:
    """One document at `path`. `item` writes an image: its entry, its number from 0, its fragment.

    `others`: texts of files beside it, by path. Images without an annotation are left out; copies of those that are
    not belong into `images`.
    """

    def __init__(
        self,
        *,
        path: str,
        images: str,
        head: bytes,
        between: bytes,
        tail: bytes,
        item: Callable[[ImageEntry, int, Fragment], bytes],
        losses: Losses,
        others: Mapping[str, str] | None = None,
    ) -> None:
        self.losses = losses
        self._others = others or {}
        self._path = path
        self._images = images
        self._head, self._between, self._tail = head, between, tail
        self._item = item
        self._names: set[str] = set()
        self._file: IO[bytes] | None = None

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Open the document."""
        path = folder / self._path
        path.parent.mkdir(parents=True, exist_ok=True)
        for other, text in self._others.items():
            (folder / other).write_text(text, encoding="utf-8")
        self._file = path.open("wb")
        self._file.write(self._head)

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One image."""
        assert self._file is not None, "begin comes first"
        if written is None:
            self.losses.images_left_out += 1
            return
        self.losses.add(written.lost)
        if self._names:
            self._file.write(self._between)
        self._file.write(self._item(image, len(self._names), written))
        self._names.add(image.name)

    def end(self) -> None:
        """Close the document."""
        assert self._file is not None, "begin comes first"
        self._file.write(self._tail)
        self._file.close()

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy belongs; empty where the image was left out."""
        return f"{self._images}/{image.name}" if image.name in self._names else ""
