"""Anomaly detection: images alone; for validation `normal` and `anomalous`, or masks of what is anomalous."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import Mapping, Value, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json, MapFile
from services.conversion.formats.raw_map import open_map
from services.conversion.index import ImageSize
from services.conversion.raster.png import encode_png
from services.conversion.task import Task

NORMAL, ANOMALOUS = "normal", "anomalous"
STATES = (NORMAL, ANOMALOUS)


@dataclass(frozen=True, kw_only=True, eq=False)
class AnomalyMask:
    """`pixels`: bool, (height, width) of the mask, which may be smaller than the image: True is anomalous.

    Without any such pixel the image is normal.
    """

    pixels: NDArray[np.bool_]

    @property
    def state(self) -> str:
        """The image's."""
        return ANOMALOUS if self.pixels.any() else NORMAL


Anomaly: TypeAlias = str | AnomalyMask
"""A state, or the mask that gives one."""


class AnomalyDetection:
    """An annotation is `normal` or `anomalous`, or a mask of what is anomalous."""

    task = Task.ANOMALY_DETECTION
    annotated = True
    optional = True
    keys: Sequence[str] = ()
    map_suffixes = (".png",)

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> None:
        return None

    def write_vocabulary(self, vocabulary: None) -> AnyMapping[str, Json]:
        return {}

    def names(self, vocabulary: None) -> Sequence[str]:
        return STATES

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: None, report: Report) -> Anomaly | None:
        if isinstance(value, MapFile):
            return _read_mask(value, size, place, report)
        return _read_state(value, place, report)

    def write(self, annotation: Anomaly, size: ImageSize, vocabulary: None) -> Json | MapFile:
        if isinstance(annotation, AnomalyMask):
            return MapFile(suffix=".png", content=encode_png(annotation.pixels * np.uint8(255)))
        return annotation

    def count(self, annotation: Anomaly) -> int:
        return 1

    def categories(self, annotation: Anomaly) -> Sequence[str]:
        return (annotation.state if isinstance(annotation, AnomalyMask) else annotation,)


def _read_mask(file: MapFile, size: ImageSize, place: Place, report: Report) -> AnomalyMask | None:
    raw = open_map(file, size, place, report)
    assert raw is not None, "a MapFile can be opened"
    raw.refuse_about()
    pixels = raw.picture()
    if pixels is None:
        return None
    return AnomalyMask(pixels=np.atleast_3d(pixels).astype(np.bool_).max(axis=2))


def _read_state(value: Value, place: Place, report: Report) -> str | None:
    if isinstance(value, str) and value in STATES:
        return value
    message = f"the annotation must be {' or '.join(STATES)}, or null where it is not known"
    report.error("bad_value", message, place, value=shown(value))
    return None
