"""What a task's format must do: read a vocabulary and annotations, and write them in the normalised form.

A format is pure: it sees values of documents, or whole files where annotations are maps, and reports what is wrong with
them. `null` never reaches it: an image without a value is unlabelled in every task.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from services.conversion.file.document import Mapping
from services.conversion.finding import Place, Report
from services.conversion.index import ImageSize
from services.conversion.task import Task

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | AnyMapping[str, Json] | None"

Vocabulary = TypeVar("Vocabulary")
Read = TypeVar("Read", contravariant=True)
"""A vocabulary that is read and never made."""
Annotation = TypeVar("Annotation")


@dataclass(frozen=True, kw_only=True)
class MapFile:
    """An annotation that is a file of its own.

    `about` is what is said of it beside it: the value of the sidecar `<stem>.yaml` where it was read, its Json where it
    is to be written; None where there is none.
    """

    suffix: str
    """In lower case, with its point."""
    content: bytes
    about: Any = None
    about_file: str = ""
    """Where `about` stands, for findings; empty where that is the map's own place."""
    categories: tuple[str, ...] | None = None
    """The names that the annotation uses, each once and sorted: who splits a dataset must not have to open its maps.
    None where the task has no names, and for a map that was read."""


Written: TypeAlias = "Json | MapFile"
"""What a format writes."""


class Codec(Protocol[Read, Annotation]):
    """Annotations of one task in one way of writing: the native one, which is a Format, or another tool's.

    Both methods run in worker processes: a codec and its vocabulary can be pickled, and keep no state between images.
    """

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Read, report: Report) -> Annotation | None:
        """The annotation of an image of that size; None where it had to be dropped, which is in the report."""
        ...

    def write(self, annotation: Annotation, size: ImageSize, vocabulary: Read) -> Any:
        """The annotation as it is written for an image of that size; reading it gives the annotation again."""
        ...


class Format(Codec[Vocabulary, Annotation], Protocol[Vocabulary, Annotation]):
    """One task's annotations. An annotation that says that nothing is there is a value like any other."""

    @property
    def task(self) -> Task:
        """The task."""
        ...

    @property
    def annotated(self) -> bool:
        """Whether the task has annotations at all; then metadata must say where, unless `optional`."""
        ...

    @property
    def optional(self) -> bool:
        """Whether images alone are enough."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """The metadata keys of the vocabulary."""
        ...

    @property
    def map_suffixes(self) -> Sequence[str]:
        """The suffixes of the task's maps, in lower case; none where annotations are values in a document.

        Where annotations may be either (masks of anomalies), a folder holds maps and a file holds values.
        """
        ...

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Vocabulary:
        """The vocabulary of one annotation set. What is missing or wrong is a failure in the report."""
        ...

    def write_vocabulary(self, vocabulary: Vocabulary) -> AnyMapping[str, Json]:
        """The vocabulary's metadata keys; reading them gives the vocabulary again."""
        ...

    def names(self, vocabulary: Vocabulary) -> Sequence[str]:
        """The categories, labels, identities, keypoints or tokens, in order."""
        ...

    def read(
        self, value: Any, size: ImageSize, place: Place, vocabulary: Vocabulary, report: Report
    ) -> Annotation | None:
        """The annotation of an image of that size; None where it had to be dropped, which is in the report.

        `value` is a document's Value, or a MapFile where annotations are maps (`map_suffixes`). None without a finding:
        a map that is all black, so that nothing is known.
        """
        ...

    def write(self, annotation: Annotation, size: ImageSize, vocabulary: Vocabulary) -> Written:
        """The annotation in the normalised form; reading it gives the annotation again."""
        ...

    def count(self, annotation: Annotation) -> int:
        """How many annotations the image has; 0 where nothing is there."""
        ...

    def categories(self, annotation: Annotation) -> Sequence[str]:
        """The names that the image's annotations use, each as often as they do; none in a task without names."""
        ...
