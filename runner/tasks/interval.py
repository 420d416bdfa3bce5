"""`range: [lo, hi]` in metadata.json: which numbers there are, and how a head says one of them.

A head's output goes through a sigmoid that reaches a little beyond both ends, so that the ends themselves are learned
in finite steps; what is decoded is cut to the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from runner.tasks.task import WrongAnnotation

BEYOND = 0.05
"""How far the sigmoid reaches beyond each end, as a share of the range."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, both inside."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """How wide it is."""
        return self.high - self.low

    def value(self, outputs: torch.Tensor) -> torch.Tensor:
        """What a head's outputs mean; may lie a little outside, where gradients still flow."""
        return self.low + self.width * (outputs.sigmoid() * (1 + 2 * BEYOND) - BEYOND)

    def cut(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest ones inside."""
        return values.clamp(self.low, self.high)


def read_interval(metadata: Mapping[str, Any]) -> list[float]:
    """The two ends, rising. Raises WrongAnnotation."""
    found = metadata.get("range")
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(isinstance(each, int | float) and math.isfinite(each) for each in found)
        or not found[0] < found[1]
    ):
        raise WrongAnnotation(f"`range` must be a lower and a higher number, {found!r:.100} was found")
    return [float(each) for each in found]


def outside(interval: list[float], other: list[float]) -> list[str]:
    """The ends of another range that lie outside this one, as words."""
    return [f"{end:g}" for end in other if not interval[0] <= end <= interval[1]]
