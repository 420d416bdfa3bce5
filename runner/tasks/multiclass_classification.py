"""Multiclass classification: one category an image.

Cross entropy on the globally pooled coarsest features. Accuracy is over images; precision, recall and F1 are means over
the categories that occur in truth or prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.task import Evaluation, Features, Head, MetricValue, Outputs, Target, Targets, Vocabulary
from runner.tasks.task import WrongAnnotation as Wrong

UNLABELLED = -100
"""The target of an image without an annotation; the one that cross entropy ignores."""
CATEGORIES_SHOWN_MAX = 10
"""Categories whose probabilities a prediction gives, the likeliest first."""
CATEGORIES_TOLD_APART_MAX = 200
"""With more categories, no series for each is logged."""
CONFUSION_CATEGORIES_MAX = 20
"""With more categories, no confusion matrix is logged."""


class MulticlassClassification:
    """The task."""

    name = "multiclass classification"
    metrics: Mapping[str, bool] = {"accuracy": True, "precision": True, "recall": True, "f1": True}

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        """The categories in the metadata's order, which is the order of the outputs."""
        categories = metadata.get("categories")
        if not isinstance(categories, list) or not categories or not all(isinstance(each, str) for each in categories):
            raise Wrong(f"`categories` must be a list of names, {categories!r:.100} was found")
        if len(set(categories)) < len(categories):
            raise Wrong("`categories` names a category twice")
        return {"categories": categories}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """Categories that the model has no output for."""
        known = set(vocabulary["categories"])
        return [category for category in other["categories"] if category not in known]

    def reader(self, vocabulary: Vocabulary) -> Callable[[Any], Target]:
        """A category's name becomes its index."""
        index_by_name = {name: index for index, name in enumerate(vocabulary["categories"])}

        def read(annotation: Any) -> int:
            if not isinstance(annotation, str):
                raise Wrong(f"a category's name was wanted, {annotation!r:.100} was found")
            if annotation not in index_by_name:
                raise Wrong(f"{annotation!r} is none of the {len(index_by_name)} categories of the metadata")
            return index_by_name[annotation]

        return read

    def batch(self, targets: Sequence[Target | None]) -> Targets | None:
        """The indices, UNLABELLED where there is none."""
        labelled = sum(target is not None for target in targets)
        if labelled == 0:
            return None
        indices = [UNLABELLED if target is None else target for target in targets]
        return _Categories(indices=torch.tensor(indices), labelled=labelled)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        """Pooling, dropout and one linear layer."""
        parameters = specification.multiclass_classification
        return ClassificationHead(
            categories=vocabulary["categories"],
            level=max(out_channels),
            channels=out_channels[max(out_channels)],
            label_smoothing=parameters.label_smoothing,
            dropout=parameters.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class _Categories:
    """Indices of categories, one an image."""

    indices: torch.Tensor
    labelled: int

    def to(self, device: torch.device) -> Self:
        return type(self)(indices=self.indices.to(device, non_blocking=True), labelled=self.labelled)


class ClassificationHead(Head):
    """Global average pooling, dropout, linear."""

    def __init__(
        self, *, categories: Sequence[str], level: int, channels: int, label_smoothing: float, dropout: float
    ) -> None:
        super().__init__()
        self._categories = tuple(categories)
        self._level = level
        self._label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, len(categories))

    def forward(self, features: Features) -> Outputs:
        """Logits, batch x categories."""
        pooled = features[self._level].mean(dim=(2, 3))
        return {"logits": self.linear(self.dropout(pooled))}

    def loss(self, outputs: Outputs, targets: Targets) -> torch.Tensor:
        """Cross entropy, with label smoothing (Szegedy et al. 2016)."""
        return functional.cross_entropy(
            outputs["logits"].float(),
            _indices(targets),
            ignore_index=UNLABELLED,
            label_smoothing=self._label_smoothing,
        )

    def decode(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The likeliest category, and the probabilities of the likeliest few."""
        shown = min(CATEGORIES_SHOWN_MAX, len(self._categories))
        likeliest = outputs["logits"].float().softmax(dim=1).topk(shown, dim=1)
        predictions = []
        for values, indices in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
            probabilities = {self._categories[index]: value for index, value in zip(indices, values, strict=True)}
            category = next(iter(probabilities))
            predictions.append(
                {"category": category, "probability": probabilities[category], "probabilities": probabilities}
            )
        return predictions

    def evaluation(self) -> Evaluation:
        """Counts by category."""
        return _Counts(self._categories)

    def output_shapes(self) -> Mapping[str, tuple[str | int, ...]]:
        """Logits alone."""
        return {"logits": ("batch", len(self._categories))}


class _Counts:
    """How often each category was there, was predicted, and was predicted rightly."""

    def __init__(self, categories: Sequence[str]) -> None:
        self._categories = categories
        size = len(categories)
        self._actual = torch.zeros(size, dtype=torch.int64)
        self._predicted = torch.zeros(size, dtype=torch.int64)
        self._correct = torch.zeros(size, dtype=torch.int64)
        self._confusion = torch.zeros(size, size, dtype=torch.int64) if size <= CONFUSION_CATEGORIES_MAX else None

    def add(self, outputs: Outputs, targets: Targets) -> None:
        actual = _indices(targets).cpu()
        predicted = outputs["logits"].argmax(dim=1).cpu()
        labelled = actual != UNLABELLED
        actual, predicted = actual[labelled], predicted[labelled]
        size = len(self._categories)
        self._actual += torch.bincount(actual, minlength=size)
        self._predicted += torch.bincount(predicted, minlength=size)
        self._correct += torch.bincount(actual[actual == predicted], minlength=size)
        if self._confusion is not None:
            self._confusion += torch.bincount(actual * size + predicted, minlength=size * size).view(size, size)

    def values(self) -> list[MetricValue]:
        images = int(self._actual.sum())
        if images == 0:
            return []
        correct = self._correct.double()
        precision = correct / self._predicted.clamp(min=1)
        recall = correct / self._actual.clamp(min=1)
        f1 = 2 * correct / (self._actual + self._predicted).clamp(min=1)
        occurs = (self._actual + self._predicted) > 0
        values = [
            MetricValue(name="accuracy", value=float(correct.sum() / images)),
            MetricValue(name="precision", value=float(precision[occurs].mean())),
            MetricValue(name="recall", value=float(recall[occurs].mean())),
            MetricValue(name="f1", value=float(f1[occurs].mean())),
        ]
        if len(self._categories) > CATEGORIES_TOLD_APART_MAX:
            return values
        by_category = zip(self._categories, self._actual.tolist(), recall.tolist(), strict=True)
        return values + [
            MetricValue(name="recall", value=value, context={"class": category})
            for category, actual, value in by_category
            if actual
        ]

    def text(self) -> list[str]:
        if self._confusion is None:
            return []
        cells = [["", *self._categories]]
        for category, row in zip(self._categories, self._confusion.tolist(), strict=True):
            cells.append([category, *(str(count) for count in row)])
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        rows = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return ["confusion matrix, a row for each true category, a column for each predicted one:", *rows]


def _indices(targets: Targets) -> torch.Tensor:
    assert isinstance(targets, _Categories), "a head gets the targets that its own task made"
    return targets.indices
