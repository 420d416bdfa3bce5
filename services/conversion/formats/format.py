"""What a task's format must do: read a vocabulary and annotations, and write them in the normalised form.

A format is pure: it sees values of documents, and reports what is wrong with them. `null` never reaches it: an image
without a value is unlabelled in every task.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

from services.conversion.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.index import ImageSize
from services.conversion.task import Task

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | AnyMapping[str, Json] | None"

Vocabulary = TypeVar("Vocabulary")
Annotation = TypeVar("Annotation")


class Format(Protocol[Vocabulary, Annotation]):
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
        self, value: Value, size: ImageSize, place: Place, vocabulary: Vocabulary, report: Report
    ) -> Annotation | None:
        """The annotation of an image of that size; None where it had to be dropped, which is in the report."""
        ...

    def write(self, annotation: Annotation) -> Json:
        """The annotation in the normalised form; reading it gives the annotation again."""
        ...

    def count(self, annotation: Annotation) -> int:
        """How many annotations the image has; 0 where nothing is there."""
        ...

    def categories(self, annotation: Annotation) -> Sequence[str]:
        """The names that the image's annotations use, each as often as they do; none in a task without names."""
        ...
