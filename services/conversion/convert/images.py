"""The edges to the tasks that learn from images alone."""

from __future__ import annotations

from typing import Any

from services.conversion.convert.edge import Step, StepOptions
from services.conversion.finding import Place, Report
from services.conversion.index import ImageSize


def forget_annotations(vocabulary: Any, options: StepOptions | None) -> Step:
    """Every image file stays, annotated or not; no annotation does."""

    def convert(annotation: Any, size: ImageSize, place: Place, report: Report) -> None:
        return None

    return Step(vocabulary=None, convert=convert)
