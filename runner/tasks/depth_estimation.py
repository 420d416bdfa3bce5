"""Depth estimation: a distance for each pixel, in a range.

Three losses over the pixels that the map says something of: how far off (L1, as a share of the range), how far off in
proportion whatever the scale (Eigen et al. 2014; where the range begins above 0), and how far off from one pixel to the
next. Metrics are over all pixels of the maps whose distance is above 0.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks.drawing import enlarged, heat, with_lines, with_map, with_scale
from runner.tasks.interval import Interval, outside, read_interval
from runner.tasks.map_file import map_path, png, read_levels
from runner.tasks.pyramid_decoder import PyramidDecoder
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
from runner.trainer.view import View, whole

SCALE_SHARE = 0.5
"""How much of an error that is the same in all pixels, in proportion, is forgiven."""
NEAR_SHARE = 0.5
"""A predicted distance counts at least so much of the lowest one, so that its logarithm is finite."""
GRADIENT_STEPS = (1, 2, 4)
"""Pixels between those whose difference is compared."""
RATIO_MAX = 1.25
LEVEL_MAX = 65_535


@dataclass(frozen=True, kw_only=True)
class DepthMap:
    """A map in its file."""

    path: Path
    interval: Interval

    def depths(self) -> NDArray[np.float32]:
        """Distances, (height, width); NaN is ignored. Raises WrongAnnotation."""
        levels, highest = read_levels(self.path)
        share = (levels.astype(np.float64) - 1) / (highest - 1)
        depths: NDArray[np.float32] = (self.interval.high - share * self.interval.width).astype(np.float32)
        depths[levels == 0] = np.nan
        return depths


class DepthEstimation(Task):
    """The task."""

    name = "depth estimation"
    metrics: Mapping[str, bool] = {"rmse": False, "mae": False, "delta_125": True}
    opens_files = True

    def unfit_augmentations(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        return {
            "zoom": "what is larger looks nearer, but keeps its depth",
            "crop": "what is enlarged looks nearer, but keeps its depth",
        }

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"range": read_interval(metadata)}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """The ends of a wider range."""
        return outside(vocabulary["range"], other["range"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], DepthMap]:
        low, high = vocabulary["range"]
        interval = Interval(low=low, high=high)
        return lambda annotation: DepthMap(path=map_path(annotation, folder), interval=interval)

    def shown(self, vocabulary: Vocabulary, target: DepthMap, view: View) -> Prediction:
        """What is ignored is farthest away."""
        depths = target.depths()
        known = np.where(np.isnan(depths), np.float32(target.interval.high), depths)
        return Depths(interval=target.interval, canvas=known, view=whole(view, depths.shape))

    def place(self, target: DepthMap, view: View) -> NDArray[np.float32]:
        return view.map(target.depths(), np.nan)

    def batch(self, placed: Sequence[NDArray[np.float32]]) -> Batched:
        return {"depth": torch.from_numpy(np.stack(placed))}

    def crowded(self, vocabulary: Vocabulary, view: View) -> NDArray[np.float32]:
        return np.full((view.canvas_height, view.canvas_width), vocabulary["range"][0], np.float32)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.depth_estimation
        low, high = vocabulary["range"]
        decoder = PyramidDecoder(out_channels, parameters.level_min, parameters.channels, 1)
        return DepthHead(decoder, Interval(low=low, high=high))


@dataclass(frozen=True, kw_only=True, eq=False)
class Depths(Prediction):
    """A distance for each pixel. `canvas`: where the model saw them; `view` leads back to the image."""

    interval: Interval
    canvas: NDArray[np.float32]
    view: View

    def depths(self, width: int = 0, height: int = 0) -> NDArray[np.float32]:
        """In the pixels of the image, or of a map of another size."""
        return self.view.map_back(self.canvas, width, height)

    def to_json(self) -> dict[str, Any]:
        found = self.depths()
        return {
            "nearest": float(found.min()),
            "farthest": float(found.max()),
            "mean": float(found.mean(dtype=np.float64)),
            "width": self.view.width,
            "height": self.view.height,
        }

    def summary(self) -> str:
        found = self.depths()
        return f"{found.min():.3g} to {found.max():.3g}, {found.mean(dtype=np.float64):.3g} in the mean"

    def draw(self, image: Image.Image) -> Image.Image:
        """The nearest is the brightest, the scale that of the range."""
        shares = (self.interval.high - self.depths(image.width, image.height)) / self.interval.width
        drawn = enlarged(with_map(image, heat(shares)))
        scaled = with_scale(drawn, f"{self.interval.high:g}", f"{self.interval.low:g}")
        return with_lines(scaled, [f"depth {self.summary()}"])

    def map_file(self) -> bytes:
        shares = (self.interval.high - self.depths()) / self.interval.width
        levels = np.round(shares.clip(0, 1) * (LEVEL_MAX - 1)).astype(np.uint16) + np.uint16(1)
        return png(Image.fromarray(levels))


class DepthHead(Head):
    """A pyramid decoder with one output, and a sigmoid to the range."""

    def __init__(self, decoder: PyramidDecoder, interval: Interval) -> None:
        super().__init__()
        self._interval = interval
        self.decoder = decoder

    def forward(self, features: Features) -> Outputs:
        """What goes through the sigmoid, batch x the canvas's height x its width."""
        return {"output": self.decoder(features)[:, 0]}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Of each image the mean over its known pixels."""
        found, wanted = self._interval.value(outputs["output"]), targets["depth"]
        known = wanted.isfinite()
        wanted = wanted.nan_to_num(self._interval.low)
        error = torch.where(known, found - wanted, 0) / self._interval.width
        losses = {"l1": _mean(error.abs(), known).mean(), "gradient": _gradients(error, known).mean()}
        if self._interval.low > 0:
            ratio = found.clamp(min=NEAR_SHARE * self._interval.low).log() - wanted.log()
            ratio = torch.where(known, ratio, 0)
            losses["scale"] = (_mean(ratio**2, known) - SCALE_SHARE * _mean(ratio, known) ** 2).mean()
        return losses

    def decode(self, outputs: Outputs) -> Decoded:
        """Distances, batch x the canvas's height x its width."""
        return {"depth": self._interval.cut(self._interval.value(outputs["output"]))}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Depths]:
        maps = decoded["depth"].numpy()
        return [Depths(interval=self._interval, canvas=each, view=v) for each, v in zip(maps, views, strict=True)]

    def evaluation(self) -> Evaluation:
        return _Distances()


def _mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Over the known pixels of each image, whose other values are 0; 0 where there is none."""
    return values.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)


def _gradients(error: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """How much the error differs from pixel to pixel, over the pairs of which both are known; (batch,)."""
    total = error.new_zeros(len(error))
    for step in GRADIENT_STEPS:
        for dim in (1, 2):
            length = error.shape[dim] - step
            if length <= 0:
                continue
            both = known.narrow(dim, 0, length) & known.narrow(dim, step, length)
            change = error.narrow(dim, step, length) - error.narrow(dim, 0, length)
            total = total + _mean(torch.where(both, change.abs(), 0), both)
    return total / (2 * len(GRADIENT_STEPS))


class _Distances:
    """Sums over pixels."""

    def __init__(self) -> None:
        self._pixels = 0
        self._absolute = self._squared = 0.0
        self._near = 0

    def add(self, prediction: Depths, target: DepthMap, view: View) -> None:
        truth = target.depths()
        found = prediction.depths(truth.shape[1], truth.shape[0])
        known = truth > 0  # not where it is NaN
        wanted, got = truth[known].astype(np.float64), found[known].astype(np.float64)
        error = got - wanted
        self._pixels += error.size
        self._absolute += float(np.abs(error).sum())
        self._squared += float((error**2).sum())
        self._near += int(((got < RATIO_MAX * wanted) & (wanted < RATIO_MAX * got)).sum())

    def values(self) -> list[MetricValue]:
        if not self._pixels:
            return []
        return [
            MetricValue(name="rmse", value=math.sqrt(self._squared / self._pixels)),
            MetricValue(name="mae", value=self._absolute / self._pixels),
            MetricValue(name="delta_125", value=self._near / self._pixels),
        ]

    def text(self) -> list[str]:
        return []
