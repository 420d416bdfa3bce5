"""Autoencoding: images alone; each is made again out of few numbers.

The coarsest features pass a bottleneck and are enlarged again, level by level, to the picture. What counts is the
squared error inside the picture; padding does not.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.drawing import enlarged, with_lines
from runner.tasks.pyramid_decoder import CHANNELS_MIN, join
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
from runner.trainer.backbone import DEVIATION, MEAN
from runner.trainer.image import CHANNELS
from runner.trainer.view import View

MSE, PSNR = "mse", "psnr"
PSNR_MAX = 100.0
"""Decibels; what is made again without any error would have infinitely many."""
BYTE_MAX = 255


class Autoencoding(Task):
    """The task."""

    name = "autoencoding"
    metrics: Mapping[str, bool] = {MSE: False, PSNR: True}
    images_alone = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return []

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], bool]:
        """There is nothing to read: every image counts."""
        return lambda annotation: True

    def place(self, target: bool, view: View) -> NDArray[np.bool_]:
        """Where the picture is."""
        return inside(view)

    def batch(self, placed: Sequence[NDArray[np.bool_]]) -> Batched:
        return {"inside": torch.from_numpy(np.stack(placed))}

    def crowded(self, vocabulary: Vocabulary, view: View) -> NDArray[np.bool_]:
        return np.ones((view.canvas_height, view.canvas_width), np.bool_)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        level = max(out_channels)
        return AutoencodingHead(
            level=level, in_channels=out_channels[level], channels=specification.autoencoding.channels
        )


def inside(view: View) -> NDArray[np.bool_]:
    """Which pixels of the canvas show the image, (height, width)."""
    return view.map(np.ones((1, 1), np.bool_), False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Prediction):
    """A picture made again. `canvas`: RGB where the model saw it, (height, width, 3); `mse`: of numbers from 0 to 1."""

    canvas: NDArray[np.uint8]
    mse: float
    view: View

    def to_json(self) -> dict[str, Any]:
        return {"mse": self.mse, "psnr": psnr(self.mse), "width": self.view.width, "height": self.view.height}

    def summary(self) -> str:
        return f"PSNR {psnr(self.mse):.1f} dB"

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture, and beside it what was made of it."""
        again = np.stack(
            [self.view.map_back(self.canvas[..., channel], image.width, image.height) for channel in range(3)]
        )
        both = Image.new("RGB", (2 * image.width, image.height))
        both.paste(image, (0, 0))
        both.paste(Image.fromarray(np.ascontiguousarray(again.transpose(1, 2, 0))), (image.width, 0))
        return with_lines(enlarged(both), [self.summary()])


class AutoencodingHead(Head):
    """A bottleneck at the coarsest level; each level on the way back has half of the channels, and no way around it."""

    _mean: torch.Tensor
    _deviation: torch.Tensor

    def __init__(self, *, level: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self._level = level
        self.bottleneck = nn.Conv2d(in_channels, channels, 1)
        widths = [max(CHANNELS_MIN, channels >> step) for step in range(level + 1)]
        self.joins = nn.ModuleList(join(before, after) for before, after in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], CHANNELS, 3, padding=1)
        self.register_buffer("_mean", torch.tensor(MEAN).view(1, CHANNELS, 1, 1), persistent=False)
        self.register_buffer("_deviation", torch.tensor(DEVIATION).view(1, CHANNELS, 1, 1), persistent=False)

    def forward(self, features: Features) -> Outputs:
        """The normalised picture as it is and as it was made again, batch x 3 x the canvas's height x its width."""
        found = self.bottleneck(features[self._level])
        for level, convolution in zip(reversed(range(self._level)), self.joins, strict=True):
            size = features[level].shape[2:] if level in features else _halved(features[0].shape[2:], level)
            found = convolution(functional.interpolate(found, size=size, mode="bilinear", align_corners=False))
        return {"again": self.last(found), "picture": features[0]}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Of each image the mean over its pixels."""
        known = targets["inside"][:, None]
        error = torch.where(known, outputs["again"] - outputs["picture"], 0)
        return {
            "picture": (error.square().sum(dim=(1, 2, 3)) / (CHANNELS * known.sum(dim=(1, 2, 3))).clamp(min=1)).mean()
        }

    def decode(self, outputs: Outputs) -> Decoded:
        """The picture that was made again, and squared errors of numbers from 0 to 1, on the canvas."""
        picture, again = (outputs[name] * self._deviation + self._mean for name in ("picture", "again"))
        again = again.clamp(0, 1)
        return {"again": again, "error": (again - picture).square().mean(dim=1)}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Reconstruction]:
        pictures = (decoded["again"] * BYTE_MAX).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        errors = decoded["error"].numpy()
        return [
            Reconstruction(canvas=canvas, mse=_mean_inside(error, view), view=view)
            for canvas, error, view in zip(pictures, errors, views, strict=True)
        ]

    def evaluation(self) -> Evaluation:
        return _Errors()


def psnr(mse: float) -> float:
    """The peak signal-to-noise ratio in decibels, of numbers from 0 to 1."""
    return min(PSNR_MAX, -10 * math.log10(mse)) if mse > 0 else PSNR_MAX


def _mean_inside(values: NDArray[np.float32], view: View) -> float:
    """Over the pixels that show the image; 0 where none does."""
    known = values[inside(view)]
    return float(known.mean(dtype=np.float64)) if known.size else 0.0


def _halved(size: Sequence[int], level: int) -> tuple[int, int]:
    height, width = size
    return -(-height >> level), -(-width >> level)


class _Errors:
    """The errors of images, each with the same weight."""

    def __init__(self) -> None:
        self._mse: list[float] = []

    def add(self, prediction: Reconstruction, target: bool, view: View) -> None:
        self._mse.append(prediction.mse)

    def values(self) -> list[MetricValue]:
        if not self._mse:
            return []
        mean = math.fsum(self._mse) / len(self._mse)
        ratio = math.fsum(map(psnr, self._mse)) / len(self._mse)
        return [MetricValue(name=MSE, value=mean), MetricValue(name=PSNR, value=ratio)]

    def text(self) -> list[str]:
        return []
