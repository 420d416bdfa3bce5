"""The images of a dataset with one file an image: a file lists them, and no two may share the name of theirs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import IO

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.conveyor.sink import Fragment
from services.conversion.foreign.losses import Losses
from services.conversion.index import ImageEntry


class WrittenImages:
    """What was written so far. `folder`: where copies of the images belong."""

    def __init__(self, losses: Losses, *, folder: str) -> None:
        self._losses = losses
        self._folder = folder
        self._names: set[str] = set()
        self._stems: set[str] = set()
        self._list: IO[str] | None = None

    def begin(self, path: Path) -> None:
        """Open the list."""
        self._list = path.open("w", encoding="utf-8")

    def add(self, image: ImageEntry, written: Fragment | None) -> str:
        """The stem that names the image's file; empty where nothing is known of it, so that it is left out.

        Raises FailedPrecondition where another image has that stem.
        """
        if written is None:
            self._losses.images_left_out += 1
            return ""
        stem = PurePosixPath(image.name).stem
        if stem in self._stems:
            message = f"two images have the stem {stem!r}, so that their files would have one name: rename one"
            raise FailedPrecondition(Reason.DATASET_INVALID, message, {"stem": stem})
        self._stems.add(stem)
        self._names.add(image.name)
        self._losses.add(written.lost)
        return stem

    def list(self, line: str) -> None:
        """One more line of the list."""
        assert self._list is not None, "begin comes first"
        self._list.write(f"{line}\n")

    def end(self) -> None:
        """Close the list."""
        assert self._list is not None, "begin comes first"
        self._list.close()

    def path(self, image: ImageEntry) -> str:
        """Where a copy belongs; empty where the image was left out."""
        return f"{self._folder}/{image.name}" if image.name in self._names else ""
