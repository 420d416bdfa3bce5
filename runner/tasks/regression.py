"""Regression: one number an image, in a range."""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.drawing import enlarged, with_lines
from runner.tasks.interval import Interval, outside, read_interval
from runner.tasks.task import (
    Batched,
    Decoded,
    Evaluation,
    Features,
    Head,
    Losses,
    MetricValue,
    Outputs,
    Prediction,
    Task,
    Vocabulary,
)
from runner.tasks.task import WrongAnnotation as Wrong
from runner.trainer.view import View

SQUARED_BELOW = 0.05
"""Of smooth L1: errors below this share of the range count squared, larger ones as they are."""


class Regression(Task):
    """The task."""

    name = "regression"
    metrics: Mapping[str, bool] = {"mae": False, "rmse": False, "r2": True}

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"range": read_interval(metadata)}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """The ends of a wider range."""
        return outside(vocabulary["range"], other["range"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], float]:
        low, high = vocabulary["range"]

        def read(annotation: Any) -> float:
            if not isinstance(annotation, int | float) or isinstance(annotation, bool):
                raise Wrong(f"a number was wanted, {annotation!r:.100} was found")
            if not low <= annotation <= high:
                raise Wrong(f"a number from {low:g} to {high:g} was wanted, {annotation!r:.100} was found")
            return float(annotation)

        return read

    def shown(self, vocabulary: Vocabulary, target: float, view: View) -> Prediction:
        return Number(value=target)

    def place(self, target: float, view: View) -> float:
        return target

    def batch(self, placed: Sequence[float]) -> Batched:
        return {"value": torch.tensor(placed)}

    def crowded(self, vocabulary: Vocabulary, view: View) -> float:
        low: float = vocabulary["range"][0]
        return low

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        low, high = vocabulary["range"]
        return RegressionHead(
            interval=Interval(low=low, high=high),
            level=max(out_channels),
            channels=out_channels[max(out_channels)],
            dropout=specification.regression.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Number(Prediction):
    """A number in the range."""

    value: float

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value}

    def annotation(self) -> float:
        return self.value

    def summary(self) -> str:
        return f"{self.value:.4g}"

    def draw(self, image: Image.Image) -> Image.Image:
        return with_lines(enlarged(image), [self.summary()])


class RegressionHead(Head):
    """Global average pooling, dropout, linear, and a sigmoid to the range."""

    def __init__(self, *, interval: Interval, level: int, channels: int, dropout: float) -> None:
        super().__init__()
        self._interval = interval
        self._level = level
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: Features) -> Outputs:
        """What goes through the sigmoid, batch."""
        pooled = features[self._level].mean(dim=(2, 3))
        return {"output": self.linear(self.dropout(pooled))[:, 0]}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Smooth L1, as a share of the range."""
        found = self._interval.value(outputs["output"]) / self._interval.width
        wanted = targets["value"] / self._interval.width
        return {"value": functional.smooth_l1_loss(found, wanted, beta=SQUARED_BELOW)}

    def decode(self, outputs: Outputs) -> Decoded:
        """The numbers, batch."""
        return {"value": self._interval.cut(self._interval.value(outputs["output"]))}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Number]:
        return [Number(value=value) for value in decoded["value"].tolist()]

    def evaluation(self) -> Evaluation:
        return _Pairs()


class _Pairs:
    """The true and the predicted number of each image."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, prediction: Number, target: float, view: View) -> None:
        self._pairs.append((target, prediction.value))

    def values(self) -> list[MetricValue]:
        if not self._pairs:
            return []
        wanted, found = np.array(self._pairs).T
        errors = found - wanted
        values = [
            MetricValue(name="mae", value=float(np.abs(errors).mean())),
            MetricValue(name="rmse", value=math.sqrt(float((errors**2).mean()))),
        ]
        spread = float(((wanted - wanted.mean()) ** 2).sum())
        if spread > 0:  # else there is nothing to explain
            values.append(MetricValue(name="r2", value=1 - float((errors**2).sum()) / spread))
        return values

    def text(self) -> list[str]:
        return []
