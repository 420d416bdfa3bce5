"""A page of images: what is said of each, and how much of it fits into an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.conversion.finding import Finding
from services.conversion.index import ImageEntry
from services.conversion.task import Task

FINDINGS_SHOWN_MAX = 100
"""Of one image; there are about as many as annotations."""
NUMBERS_BYTES = 64
"""What an image, or a finding, takes in an answer beside its texts and its picture, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One image. `text`: its annotation in the normalised form; of a map what is said beside it. None is null."""

    entry: ImageEntry
    text: str | None
    categories: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of an image, or the `problem` for which there is none."""

    content: bytes = b""
    media_type: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


NOTHING_SHOWN = Shown()


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image as an answer tells of it. `annotation_problem`: why neither annotation nor categories are told."""

    row: Row
    shown: Shown = NOTHING_SHOWN
    findings: Sequence[Finding] = ()
    annotation_problem: str = ""

    @property
    def size_bytes(self) -> int:
        """In an answer, about."""
        return self._annotation_bytes + len(self.shown.content) + self._rest_bytes

    def fitted(self, bytes_max: int) -> ListedImage:
        """Without what is too large for an answer of this size, which is said in its place."""
        image = replace(self, findings=self.findings[:FINDINGS_SHOWN_MAX])
        if (size := image._annotation_bytes) > bytes_max - image._rest_bytes:
            problem = f"it has {size} bytes, and an answer has {bytes_max} at most: read it from the dataset"
            image = replace(image, annotation_problem=problem)
        if image.size_bytes > bytes_max:
            size = len(image.shown.content)
            problem = f"it has {size} bytes, and an answer has {bytes_max} at most: ask for a smaller one"
            image = replace(image, shown=Shown(problem=problem))
        return image

    @property
    def _annotation_bytes(self) -> int:
        if self.annotation_problem:
            return 0
        return len((self.row.text or "").encode()) + sum(len(each.encode()) for each in self.row.categories)

    @property
    def _rest_bytes(self) -> int:
        texts = [self.row.entry.name, self.shown.problem, self.annotation_problem]
        for finding in self.findings:
            texts += [finding.message, finding.value, finding.place.file, finding.place.image]
        return sum(len(text.encode()) for text in texts) + NUMBERS_BYTES * (1 + len(self.findings))


@dataclass(frozen=True, kw_only=True)
class ImagesPage:
    """Some images in the order of their names, of `total` that were asked for."""

    images: tuple[ListedImage, ...]
    task: Task
    fingerprint: str
    total: int
    next_begin: int | None
