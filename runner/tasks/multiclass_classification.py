"""Multiclass classification: one category an image; `ordered: true` makes it ordinal.

Cross entropy on the globally pooled coarsest features. Where the categories are ordered the target is spread over
them by their distance in rank (SORD, Diaz and Marathe 2019). Accuracy is over images; precision, recall and F1 are
means over the categories that occur in truth or prediction.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.drawing import enlarged, with_lines
from runner.tasks.names import index_reader, missing, read_names
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
    Target,
    Task,
    Vocabulary,
)
from runner.tasks.task import WrongAnnotation as Wrong
from runner.trainer.view import View

CATEGORIES_SHOWN_MAX = 10
"""Categories whose probabilities a prediction gives, the likeliest first."""
CATEGORIES_DRAWN_MAX = 3
CATEGORIES_TOLD_APART_MAX = 200
"""With more categories, no series for each is logged."""
CONFUSION_CATEGORIES_MAX = 20
"""With more categories, no confusion matrix is logged."""


class MulticlassClassification(Task):
    """The task."""

    name = "multiclass classification"
    metrics: Mapping[str, bool] = {
        "accuracy": True,
        "precision": True,
        "recall": True,
        "f1": True,
        "rank_mae": False,
    }
    says_kind = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        """The categories in the metadata's order, which is the order of the outputs, and whether it means something."""
        ordered = metadata.get("ordered", False)
        if not isinstance(ordered, bool):
            raise Wrong(f"`ordered` must be true or false, {ordered!r:.100} was found")
        categories = read_names(metadata, "categories", "a category")
        return {"categories": categories, **({"ordered": True} if ordered else {})}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """Categories that the model has no output for."""
        return missing(other["categories"], vocabulary["categories"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Target]:
        """A category's name becomes its index."""
        return index_reader(vocabulary["categories"], "category", "categories")

    def shown(self, vocabulary: Vocabulary, target: Target, view: View) -> Prediction:
        """Certain of the one category."""
        return Classification(index=target, probabilities={vocabulary["categories"][target]: 1.0})

    def kind(self, target: Target) -> str:
        """The category's number."""
        return str(target)

    def place(self, target: Target, view: View) -> int:
        """The index, wherever the image lies."""
        index: int = target
        return index

    def batch(self, placed: Sequence[int]) -> Batched:
        """The indices."""
        return {"index": torch.tensor(placed)}

    def crowded(self, vocabulary: Vocabulary, view: View) -> int:
        """Any category."""
        return 0

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        """Pooling, dropout and one linear layer. Raises WrongAnnotation for a weight of no category."""
        parameters = specification.multiclass_classification
        categories = vocabulary["categories"]
        if strangers := missing(parameters.category_weights, categories):
            raise Wrong(f"`category_weights` names {', '.join(map(repr, strangers))}, which is no category")
        return ClassificationHead(
            categories=categories,
            ordered=vocabulary.get("ordered", False),
            weights=[parameters.category_weights.get(category, 1.0) for category in categories],
            level=max(out_channels),
            channels=out_channels[max(out_channels)],
            label_smoothing=parameters.label_smoothing,
            dropout=parameters.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Classification(Prediction):
    """The likeliest categories with their probabilities, falling; `index` is the first one's."""

    index: int
    probabilities: Mapping[str, float]

    @property
    def category(self) -> str:
        """The likeliest."""
        return next(iter(self.probabilities))

    def to_json(self) -> dict[str, Any]:
        probability = self.probabilities[self.category]
        return {"category": self.category, "probability": probability, "probabilities": dict(self.probabilities)}

    def annotation(self) -> str:
        return self.category

    def summary(self) -> str:
        return f"{self.category}  {self.probabilities[self.category]:.1%}"

    def draw(self, image: Image.Image) -> Image.Image:
        shown = list(self.probabilities.items())[:CATEGORIES_DRAWN_MAX]
        return with_lines(enlarged(image), [f"{category}  {value:.1%}" for category, value in shown])


class ClassificationHead(Head):
    """Global average pooling, dropout, linear."""

    _weights: torch.Tensor
    _soft: torch.Tensor

    def __init__(
        self,
        *,
        categories: Sequence[str],
        ordered: bool,
        weights: Sequence[float],
        level: int,
        channels: int,
        label_smoothing: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self._categories = tuple(categories)
        self._ordered = ordered
        self._level = level
        self._label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, len(categories))
        self.register_buffer("_weights", torch.tensor(weights), persistent=False)
        ranks = torch.arange(len(categories) if ordered else 0)
        soft = (-(ranks[:, None] - ranks).abs().float()).softmax(dim=1)
        self.register_buffer("_soft", soft, persistent=False)

    def forward(self, features: Features) -> Outputs:
        """Logits, batch x categories."""
        pooled = features[self._level].mean(dim=(2, 3))
        return {"logits": self.linear(self.dropout(pooled))}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Cross entropy, with label smoothing (Szegedy et al. 2016) or with the neighbours in rank."""
        index = targets["index"]
        wanted = self._soft[index] if self._ordered else index
        losses = functional.cross_entropy(
            outputs["logits"], wanted, reduction="none", label_smoothing=self._label_smoothing
        )
        return {"category": (losses * self._weights[index]).mean()}

    def decode(self, outputs: Outputs) -> Decoded:
        """The likeliest categories, falling, and their probabilities, batch x as many as are shown."""
        shown = min(CATEGORIES_SHOWN_MAX, len(self._categories))
        likeliest = outputs["logits"].softmax(dim=1).topk(shown, dim=1)
        return {"probabilities": likeliest.values, "indices": likeliest.indices}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Classification]:
        """One for each image."""
        rows = zip(decoded["indices"].tolist(), decoded["probabilities"].tolist(), strict=True)
        return [
            Classification(
                index=indices[0],
                probabilities={self._categories[index]: value for index, value in zip(indices, values, strict=True)},
            )
            for indices, values in rows
        ]

    def evaluation(self) -> Evaluation:
        """Counts by category."""
        return _Counts(self._categories, ordered=self._ordered)


class _Counts:
    """How often each category was there, was predicted, and was predicted rightly."""

    def __init__(self, categories: Sequence[str], *, ordered: bool) -> None:
        self._categories = categories
        self._ordered = ordered
        self._pairs: list[tuple[int, int]] = []
        """The true and the predicted category of each image."""

    def add(self, prediction: Classification, target: Target, view: View) -> None:
        self._pairs.append((target, prediction.index))

    def values(self) -> list[MetricValue]:
        if not self._pairs:
            return []
        size = len(self._categories)
        true, found = torch.tensor(self._pairs).unbind(dim=1)
        actual, predicted = torch.bincount(true, minlength=size), torch.bincount(found, minlength=size)
        correct = torch.bincount(true[true == found], minlength=size).double()
        recall = correct / actual.clamp(min=1)
        occurs = (actual + predicted) > 0
        by_name = {
            "accuracy": correct.sum() / len(true),
            "precision": (correct / predicted.clamp(min=1))[occurs].mean(),
            "recall": recall[occurs].mean(),
            "f1": (2 * correct / (actual + predicted).clamp(min=1))[occurs].mean(),
        }
        if self._ordered:
            by_name["rank_mae"] = (true - found).abs().double().mean()
        values = [MetricValue(name=name, value=float(value)) for name, value in by_name.items()]
        if size > CATEGORIES_TOLD_APART_MAX:
            return values
        by_category = zip(self._categories, actual.tolist(), recall.tolist(), strict=True)
        return values + [
            MetricValue(name="recall", value=value, context={"class": category})
            for category, count, value in by_category
            if count
        ]

    def text(self) -> list[str]:
        size = len(self._categories)
        if size > CONFUSION_CATEGORIES_MAX or not self._pairs:
            return []
        confusion = torch.zeros(size, size, dtype=torch.int64)
        pairs = torch.tensor(self._pairs)
        confusion.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs), dtype=torch.int64), accumulate=True)
        cells = [["", *self._categories]]
        for category, row in zip(self._categories, confusion.tolist(), strict=True):
            cells.append([category, *(str(count) for count in row)])
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        rows = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return ["confusion matrix, a row for each true category, a column for each predicted one:", *rows]
