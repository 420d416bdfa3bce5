"""Multilabel classification: a set of labels an image, which may be empty."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import Names, read_names, read_set
from services.conversion.index import ImageSize
from services.conversion.task import Task


class MultilabelClassification:
    """An annotation is a tuple of labels, each once."""

    task = Task.MULTILABEL_CLASSIFICATION
    annotated = True
    optional = False
    keys = ("labels",)
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        return read_names(metadata, "labels", place, report)

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        return {"labels": vocabulary.names}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(
        self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report
    ) -> tuple[str, ...] | None:
        return read_set(value, "label", place, vocabulary, report)

    def write(self, annotation: tuple[str, ...], size: ImageSize, vocabulary: Names) -> Json:
        return annotation

    def count(self, annotation: tuple[str, ...]) -> int:
        return len(annotation)

    def categories(self, annotation: tuple[str, ...]) -> Sequence[str]:
        return annotation
