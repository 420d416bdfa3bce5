"""Anomaly detection: images alone, or `normal` and `anomalous` for validation."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence

from services.conversion.document import Mapping, Value, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import Names
from services.conversion.index import ImageSize
from services.conversion.task import Task

STATES = Names(names=("normal", "anomalous"))


class AnomalyDetection:
    """An annotation is `normal` or `anomalous`. Folders of masks come with the tasks that have maps."""

    task = Task.ANOMALY_DETECTION
    annotated = True
    optional = True
    keys: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        return STATES

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        return {}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> str | None:
        if isinstance(value, str) and value in vocabulary.known:
            return value
        message = f"the annotation must be {' or '.join(vocabulary.names)}, or null where it is not known"
        report.error("bad_value", message, place, value=shown(value))
        return None

    def write(self, annotation: str) -> Json:
        return annotation

    def count(self, annotation: str) -> int:
        return 1

    def categories(self, annotation: str) -> Sequence[str]:
        return (annotation,)
