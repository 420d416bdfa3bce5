"""Metric learning: one identity an image."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import Names, read_names, read_one
from services.conversion.index import ImageSize
from services.conversion.task import Task


class MetricLearning:
    """An annotation is the identity's name."""

    task = Task.METRIC_LEARNING
    annotated = True
    optional = False
    keys = ("identities",)
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        return read_names(metadata, "identities", place, report)

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        return {"identities": vocabulary.names}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> str | None:
        return read_one(value, "identity", place, vocabulary, report)

    def write(self, annotation: str, size: ImageSize, vocabulary: Names) -> Json:
        return annotation

    def count(self, annotation: str) -> int:
        return 1

    def categories(self, annotation: str) -> Sequence[str]:
        return (annotation,)
