"""Multilabel classification: a set of labels an image.

A map of scores for each label over the coarsest features, of which the mean and half the maximum count (CSRA, Zhu and
Wu 2021): a label that fills a corner alone is found too. The mean average precision is over the labels that have a
positive image; F1 is the mean over the labels that occur in truth or prediction, at a probability of one half.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from runner.tasks.names import index_reader, missing, read_names
from runner.tasks.ranking import average_precision
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

MAXIMUM_SHARE = 0.5
"""How much the maximum of a map of scores counts beside its mean."""
PROBABILITY_MIN = 0.5
"""From here on a label is predicted."""
LABELS_DRAWN_MAX = 8
LABELS_TOLD_APART_MAX = 200
"""With more labels, no series for each is logged."""
NEGATIVES_POWER = 4.0
PROBABILITY_SHIFT = 0.05
"""Of the asymmetric loss (Ridnik et al. 2021): how fast easy negatives lose their weight, and from where."""


class MultilabelClassification(Task):
    """The task."""

    name = "multilabel classification"
    metrics: Mapping[str, bool] = {"map": True, "f1": True, "exact_match": True}

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"labels": read_names(metadata, "labels", "a label")}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["labels"], vocabulary["labels"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], NDArray[np.bool_]]:
        """A list of labels becomes bool, (labels,)."""
        count = len(vocabulary["labels"])
        index_of = index_reader(vocabulary["labels"], "label", "labels")

        def read(annotation: Any) -> NDArray[np.bool_]:
            if not isinstance(annotation, list):
                raise Wrong(f"a list of labels was wanted, {annotation!r:.100} was found")
            present = np.zeros(count, np.bool_)
            present[[index_of(label) for label in annotation]] = True
            return present

        return read

    def shown(self, vocabulary: Vocabulary, target: NDArray[np.bool_], view: View) -> Prediction:
        return Labels(names=vocabulary["labels"], probabilities=target.astype(np.float32))

    def place(self, target: NDArray[np.bool_], view: View) -> NDArray[np.bool_]:
        return target

    def batch(self, placed: Sequence[NDArray[np.bool_]]) -> Batched:
        return {"present": torch.from_numpy(np.stack(placed)).float()}

    def crowded(self, vocabulary: Vocabulary, view: View) -> NDArray[np.bool_]:
        return np.ones(len(vocabulary["labels"]), np.bool_)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.multilabel_classification
        if strangers := missing(parameters.label_weights, vocabulary["labels"]):
            raise Wrong(f"`label_weights` names {', '.join(map(repr, strangers))}, which is no label")
        return MultilabelHead(
            labels=vocabulary["labels"],
            weights=[parameters.label_weights.get(label, 1.0) for label in vocabulary["labels"]],
            level=max(out_channels),
            channels=out_channels[max(out_channels)],
            dropout=parameters.dropout,
            asymmetric=parameters.asymmetric,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels(Prediction):
    """The probability of each label, in the vocabulary's order."""

    names: Sequence[str]
    probabilities: NDArray[np.float32]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which labels are predicted."""
        return self.probabilities >= PROBABILITY_MIN

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": self.annotation(),
            "probabilities": dict(zip(self.names, self.probabilities.tolist(), strict=True)),
        }

    def annotation(self) -> list[str]:
        return [self.names[index] for index in np.flatnonzero(self.present).tolist()]

    def summary(self) -> str:
        return ", ".join(f"{name} {value:.0%}" for name, value in self._likeliest()) or "no label"

    def draw(self, image: Image.Image) -> Image.Image:
        shown = [f"{name}  {value:.1%}" for name, value in self._likeliest()]
        return with_lines(enlarged(image), shown[:LABELS_DRAWN_MAX] or ["no label"])

    def _likeliest(self) -> list[tuple[str, float]]:
        order = np.argsort(-self.probabilities, kind="stable")
        return [(self.names[index], float(self.probabilities[index])) for index in order if self.present[index]]


class MultilabelHead(Head):
    """A map of scores for each label; their mean and half their maximum."""

    _weights: torch.Tensor

    def __init__(
        self,
        *,
        labels: Sequence[str],
        weights: Sequence[float],
        level: int,
        channels: int,
        dropout: float,
        asymmetric: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("_weights", torch.tensor(weights), persistent=False)
        self._labels = tuple(labels)
        self._level = level
        self._asymmetric = asymmetric
        self.dropout = nn.Dropout2d(dropout)
        self.scores = nn.Conv2d(channels, len(labels), 1)

    def forward(self, features: Features) -> Outputs:
        """Logits, batch x labels."""
        scores = self.scores(self.dropout(features[self._level]))
        return {"logits": scores.mean(dim=(2, 3)) + MAXIMUM_SHARE * scores.amax(dim=(2, 3))}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Binary cross entropy, or its asymmetric form, times what labels weigh; the mean over the labels."""
        logits, present = outputs["logits"], targets["present"]
        if not self._asymmetric:
            return {"labels": functional.binary_cross_entropy_with_logits(logits, present, self._weights)}
        shifted = (logits.sigmoid() - PROBABILITY_SHIFT).clamp(min=0)
        negatives = -(1 - shifted).log() * shifted**NEGATIVES_POWER
        losses = torch.where(present > 0, -functional.logsigmoid(logits), negatives)
        return {"labels": (losses * self._weights).mean()}

    def decode(self, outputs: Outputs) -> Decoded:
        """Probabilities, batch x labels."""
        return {"probabilities": outputs["logits"].sigmoid()}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Labels]:
        return [Labels(names=self._labels, probabilities=row) for row in decoded["probabilities"].numpy()]

    def evaluation(self) -> Evaluation:
        return _Sets(self._labels)


class _Sets:
    """The true and the predicted labels of each image."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._present: list[NDArray[np.bool_]] = []
        self._probabilities: list[NDArray[np.float32]] = []

    def add(self, prediction: Labels, target: NDArray[np.bool_], view: View) -> None:
        self._present.append(target)
        self._probabilities.append(prediction.probabilities)

    def values(self) -> list[MetricValue]:
        if not self._present:
            return []
        present, probabilities = np.stack(self._present), np.stack(self._probabilities)
        predicted = probabilities >= PROBABILITY_MIN
        true = (present & predicted).sum(axis=0)
        both = present.sum(axis=0) + predicted.sum(axis=0)
        f1 = 2 * true / np.maximum(both, 1)
        positive = present.any(axis=0)
        precisions = {
            index: average_precision(present[:, index], probabilities[:, index])
            for index in np.flatnonzero(positive).tolist()
        }
        values = []
        if precisions:
            values.append(MetricValue(name="map", value=float(np.mean(list(precisions.values())))))
        values += [
            # Where no label is there and none is predicted, everything is right.
            MetricValue(name="f1", value=float(f1[both > 0].mean()) if both.any() else 1.0),
            MetricValue(name="exact_match", value=float((present == predicted).all(axis=1).mean())),
        ]
        if len(self._labels) <= LABELS_TOLD_APART_MAX:
            values += [
                MetricValue(name="average_precision", value=value, context={"class": self._labels[index]})
                for index, value in precisions.items()
            ]
        return values

    def text(self) -> list[str]:
        if not self._present:
            return []
        without = int((~np.stack(self._present).any(axis=0)).sum())
        return (
            [f"{without} of {len(self._labels)} labels have no positive image, and no part in map"] if without else []
        )
