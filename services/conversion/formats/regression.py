"""Regression: one number an image."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence

from services.conversion.file.document import List, Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.interval import KEY, Interval, read_interval, write_interval
from services.conversion.formats.number import NumberError, read_number, shown_numbers, written
from services.conversion.index import ImageSize
from services.conversion.task import Task


class Regression:
    """An annotation is the number, a float within the range."""

    task = Task.REGRESSION
    annotated = True
    optional = False
    keys = (KEY,)
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Interval:
        return read_interval(metadata, place, report)

    def write_vocabulary(self, vocabulary: Interval) -> AnyMapping[str, Json]:
        return {KEY: write_interval(vocabulary)}

    def names(self, vocabulary: Interval) -> Sequence[str]:
        return ()

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Interval, report: Report) -> float | None:
        if isinstance(value, List) and not value:
            message = "[] says that nothing is there, but an image has one number: give it, or null where it is unknown"
            report.error("empty_annotation", message, place, value="[]", annotations=0)
            return None
        try:
            number = read_number(value)
        except NumberError as error:
            report.error(error.rule, f"the annotation must be one number: {error}", place, value=shown_numbers(value))
            return None
        if not vocabulary.low <= number <= vocabulary.high:
            message = (
                f"the number must lie in the range from {written(vocabulary.low)} to {written(vocabulary.high)}: mend "
                f"it, or widen {KEY!r}"
            )
            report.error("out_of_range", message, place, value=shown_numbers(value))
            return None
        return number

    def write(self, annotation: float, size: ImageSize, vocabulary: Interval) -> Json:
        return written(annotation)

    def count(self, annotation: float) -> int:
        return 1

    def categories(self, annotation: float) -> Sequence[str]:
        return ()
