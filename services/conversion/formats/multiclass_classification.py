"""Multiclass classification: one category an image; `ordered` where the categories' order has a meaning."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import replace

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import Names, read_flag, read_names, read_one
from services.conversion.index import ImageSize
from services.conversion.task import Task


class MulticlassClassification:
    """An annotation is the category's name."""

    task = Task.MULTICLASS_CLASSIFICATION
    annotated = True
    optional = False
    keys = ("categories", "ordered")
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        names = read_names(metadata, "categories", place, report)
        return replace(names, ordered=read_flag(metadata, "ordered", place, report))

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        ordered: AnyMapping[str, Json] = {"ordered": True} if vocabulary.ordered else {}
        return {"categories": vocabulary.names, **ordered}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> str | None:
        return read_one(value, "category", place, vocabulary, report)

    def write(self, annotation: str, size: ImageSize, vocabulary: Names) -> Json:
        return annotation

    def count(self, annotation: str) -> int:
        return 1

    def categories(self, annotation: str) -> Sequence[str]:
        return (annotation,)
