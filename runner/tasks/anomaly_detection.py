"""Anomaly detection: what normal images look like is learned, and what looks otherwise is found.

Reverse distillation (Deng and Li 2022): the teacher is the backbone as the training began, frozen; the student makes
the teacher's features again out of the coarsest ones of the backbone that learns. It has only seen normal images, so
that it fails where something is that it never met. But it also fails, a little, where normal images have fine detail:
so it says beside each place how far off it expects to be (Kendall and Gal 2017), and what counts is the error as a
multiple of that. Images that are labelled as anomalous never train.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.autoencoding import inside
from runner.tasks.drawing import enlarged, heat, with_lines, with_map, with_scale
from runner.tasks.map_file import map_path, read_levels
from runner.tasks.pyramid_decoder import join
from runner.tasks.ranking import area_under_roc
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

NORMAL, ANOMALOUS = "normal", "anomalous"
LEVELS_COMPARED = 3
"""Of the teacher, below its coarsest one."""
SCORE_SHARE = 0.01
"""An image's score is the mean over this share of its pixels, the strangest ones."""
VARIANCE_MIN = 1e-6
ERROR_EXPECTED_MIN = 1e-3
"""Of one minus a cosine. Less would make much of nothing."""
STRANGENESS_DRAWN_MAX = 5.0
AUROC = "auroc"
QUANTILES = {"score_median": 0.5, "score_p95": 0.95, "score_max": 1.0}


@dataclass(frozen=True)
class State:
    """What is known of an image: its state, the mask that says it, or nothing."""

    state: str | None = None
    mask: Path | None = None

    @cached_property
    def anomalous(self) -> bool | None:
        """None where it is not known. Raises WrongAnnotation where the mask cannot be read."""
        if self.state is None:
            return None if self.mask is None else bool(read_levels(self.mask)[0].any())
        return self.state == ANOMALOUS


class AnomalyDetection(Task):
    """The task."""

    name = "anomaly detection"
    metrics: Mapping[str, bool] = {AUROC: True, **dict.fromkeys(QUANTILES, False)}
    images_alone = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return []

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], State]:
        def read(annotation: Any) -> State:
            if annotation is None or annotation in (NORMAL, ANOMALOUS):
                return State(annotation)
            if isinstance(annotation, Mapping):
                categories = annotation.get("categories")  # conversion has looked into the mask
                state = None if categories is None else ANOMALOUS if ANOMALOUS in categories else NORMAL
                return State(state, map_path(annotation, folder))
            raise Wrong(f"{NORMAL!r}, {ANOMALOUS!r}, a mask or null was wanted, {annotation!r:.100} was found")

        return read

    def place(self, target: State, view: View) -> NDArray[np.bool_] | None:
        """Where the picture is, if it may be learned from."""
        return None if target.anomalous else inside(view)

    def batch(self, placed: Sequence[NDArray[np.bool_]]) -> Batched:
        return {"inside": torch.from_numpy(np.stack(placed))}

    def crowded(self, vocabulary: Vocabulary, view: View) -> NDArray[np.bool_]:
        return np.ones((view.canvas_height, view.canvas_width), np.bool_)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        level = max(out_channels)
        channels = specification.anomaly_detection.channels
        return AnomalyHead(level=level, in_channels=out_channels[level], channels=channels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Strangeness(Prediction):
    """How strange each pixel looks, as a multiple of what is normal there, and the image's score.

    `canvas`: where the model saw it.
    """

    score: float
    canvas: NDArray[np.float32]
    view: View

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "width": self.view.width, "height": self.view.height}

    def summary(self) -> str:
        return f"anomaly score {self.score:.4f}"

    def draw(self, image: Image.Image) -> Image.Image:
        found = self.view.map_back(self.canvas, image.width, image.height)
        drawn = enlarged(with_map(image, heat(found / STRANGENESS_DRAWN_MAX)))
        return with_lines(with_scale(drawn, "0", f"{STRANGENESS_DRAWN_MAX:g}"), [self.summary()])


class AnomalyHead(Head):
    """The student: a bottleneck at the coarsest level, enlarged level by level; and the teacher."""

    teacher: nn.Module

    def __init__(self, *, level: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self._level = level
        self._channels = channels
        self.bottleneck = join(in_channels, channels)

    def built(self, model: nn.Module) -> None:
        """The teacher has the backbone's layers, its weights come later; the student's layers follow from it."""
        backbone: Any = model.get_submodule("backbone")
        self.teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
        coarsest = max(backbone.out_channels)
        below = [level for level in sorted(backbone.out_channels) if level < coarsest]
        self._compared = below[-LEVELS_COMPARED:] or [coarsest]
        levels = range(min(self._level, max(self._compared)), min(self._compared) - 1, -1)
        self.joins = nn.ModuleDict({str(level): join(self._channels, self._channels) for level in levels})
        self.lasts = nn.ModuleDict(
            # The teacher's features, and the logarithm of the error that is expected.
            {str(level): nn.Conv2d(self._channels, backbone.out_channels[level] + 1, 1) for level in self._compared}
        )

    def initialised(self, model: nn.Module) -> None:
        """The teacher is the backbone as it is now."""
        self.teacher.load_state_dict(model.get_submodule("backbone").state_dict())

    def train(self, mode: bool = True) -> AnomalyHead:
        """As torch's, but the teacher stays in evaluation: its norms must not learn either."""
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def forward(self, features: Features) -> Outputs:
        """How far the student's features point away from the teacher's, batch x the canvas's height x its width.

        `distance` is a multiple of what was expected, `expected` the logarithm of that; both are means over the levels.
        """
        with torch.no_grad():
            wanted: Mapping[int, torch.Tensor] = self.teacher(features[0])
        height, width = features[0].shape[2:]
        found = self.bottleneck(features[self._level])
        distances, expected = [], []
        for name, convolution in self.joins.items():
            level = int(name)
            size = wanted[level].shape[2:] if level in wanted else features[level].shape[2:]
            found = convolution(functional.interpolate(found, size=size, mode="bilinear", align_corners=False))
            if level in self._compared:
                said = self.lasts[name](found).float()
                error = said[:, -1:].exp() + ERROR_EXPECTED_MIN
                distances.append(_enlarged(_distance(said[:, :-1], wanted[level])[:, None] / error, height, width))
                expected.append(_enlarged(error.log(), height, width))
        return {"distance": torch.cat(distances, dim=1).mean(dim=1), "expected": torch.cat(expected, dim=1).mean(dim=1)}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Of each image the mean over its pixels: the likelihood of errors whose size was expected, but for its sign.

        Least where as much is expected as is found, and the less, the lower; it may be negative.
        """
        known = targets["inside"]
        cost = torch.where(known, outputs["distance"] + outputs["expected"], 0)
        return {"distance": (cost.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)).mean()}

    def decode(self, outputs: Outputs) -> Decoded:
        """The errors as multiples of what was expected, batch x the canvas's height x its width."""
        return {"distance": outputs["distance"]}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Strangeness]:
        maps = decoded["distance"].numpy()
        return [
            Strangeness(score=_score(each, view), canvas=each, view=view)
            for each, view in zip(maps, views, strict=True)
        ]

    def evaluation(self) -> Evaluation:
        return _Scores()


def _distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of the angle at each place, batch x height x width; float32.

    Features of a teacher that never learned point all into one direction and differ a little from place to place: so
    each channel is brought to the same mean and deviation over the image first.
    """
    with torch.autocast(student.device.type, enabled=False):
        wanted = teacher.float()
        centered = wanted - wanted.mean(dim=(2, 3), keepdim=True)
        wanted = centered / (centered.square().mean(dim=(2, 3), keepdim=True) + VARIANCE_MIN).sqrt()
        return 1 - (functional.normalize(student.float()) * functional.normalize(wanted)).sum(dim=1)


def _enlarged(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return functional.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)


def _score(distance: NDArray[np.float32], view: View) -> float:
    """The mean over the strangest pixels of the image; 0 where the canvas shows none of it."""
    values = distance[inside(view)]
    if not values.size:
        return 0.0
    count = max(1, round(SCORE_SHARE * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))


class _Scores:
    """The scores of images, by what is known of them."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._anomalous: list[bool | None] = []

    def add(self, prediction: Strangeness, target: State, view: View) -> None:
        self._anomalous.append(target.anomalous)
        self._scores.append(prediction.score)

    def values(self) -> list[MetricValue]:
        """AUROC where there are images of both states; else how the scores are spread."""
        if not self._scores:
            return []
        known = np.array([each is not None for each in self._anomalous])
        anomalous = np.array([bool(each) for each in self._anomalous])
        scores = np.array(self._scores)
        if anomalous.any() and (known & ~anomalous).any():
            return [MetricValue(name=AUROC, value=area_under_roc(anomalous[known], scores[known]))]
        return [MetricValue(name=name, value=float(np.quantile(scores, share))) for name, share in QUANTILES.items()]

    def text(self) -> list[str]:
        return []
