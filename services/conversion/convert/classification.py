"""The edges between the classification tasks."""

from __future__ import annotations

from dataclasses import replace

from services.conversion.convert.edge import Step, StepOptions
from services.conversion.finding import Place, Report
from services.conversion.formats.names import Names
from services.conversion.index import ImageSize


def multiclass_to_multilabel(vocabulary: Names, options: StepOptions | None) -> Step:
    """The one category becomes the only label."""

    def convert(category: str, size: ImageSize, place: Place, report: Report) -> tuple[str, ...]:
        return (category,)

    return Step(vocabulary=replace(vocabulary, ordered=False), convert=convert)


def rename(vocabulary: Names, options: StepOptions | None) -> Step:
    """Categories are identities and identities are categories: a renaming, its own inverse but for the order."""

    def convert(name: str, size: ImageSize, place: Place, report: Report) -> str:
        return name

    return Step(vocabulary=replace(vocabulary, ordered=False), convert=convert)
