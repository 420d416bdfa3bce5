"""An edge of the graph of conversions: what it does, what it loses, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from services.conversion.finding import Place, Report
from services.conversion.index import ImageSize
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class KeypointToDetection:
    """Options of keypoint detection → object detection; sizes in pixels, the margin as a share of the box."""

    min_size: float | None = None
    margin: float | None = None
    category_name: str = "instance"


@dataclass(frozen=True, kw_only=True)
class SemanticToMultilabel:
    """Options of semantic segmentation → multilabel classification."""

    min_pixels: int = 1


StepOptions: TypeAlias = KeypointToDetection | SemanticToMultilabel


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What the report of a conversion says once of a step, however many images it takes. `rule` is a finding's."""

    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """An edge at work on one dataset. `convert` gets an annotation that is not null and gives one, or None (null)."""

    vocabulary: Any
    convert: Callable[[Any, ImageSize, Place, Report], Any]
    remarks: tuple[Remark, ...] = ()


StepFunction: TypeAlias = Callable[[Any, StepOptions | None], Step]
"""From the vocabulary of the source, and the step's options, the step: one such function is one edge."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A direct conversion. `losses` and `rule` are for people. `options` is what the step takes, if anything."""

    start: Task
    end: Task
    losses: tuple[str, ...] = ()
    rule: str
    options: type[StepOptions] | None = None
    step: StepFunction

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.start} → {self.end}"
