"""View-invariance learning: images alone; two pictures of an image get the same embedding, whatever was changed.

Barlow Twins (Zbontar et al. 2021): over a batch, each number of the embedding agrees with itself in the other picture,
and with no other number. The sums are over the images of a batch together: no image has a loss of its own.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.tasks.metric_learning import KNN_ACCURACY, Embedding, Identity, Search
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
from runner.trainer.view import View

OFF_DIAGONAL_WEIGHT = 2.0
"""Of the mean agreement of two different numbers, beside that of a number with itself. Means, not sums: so it is right
for embeddings of any size."""
DEVIATION_MIN = 1e-4
"""Of a number over the batch: what hardly differs from image to image is not enlarged without end."""
LENGTH_MIN = 1e-12
"""Of an embedding that has a direction."""
ON_DIAGONAL, OFF_DIAGONAL = "on_diagonal", "off_diagonal"


class ViewInvarianceLearning(Task):
    """The task."""

    name = "view-invariance learning"
    metrics: Mapping[str, bool] = {ON_DIAGONAL: True, OFF_DIAGONAL: False, KNN_ACCURACY: True}
    views = 2
    images_alone = True
    asks_for_kind = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return []

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], bool]:
        """There is nothing to read: every image counts."""
        return lambda annotation: True

    def place(self, target: bool, view: View) -> bool:
        return target

    def batch(self, placed: Sequence[bool]) -> Batched:
        return {"there": torch.tensor(placed)}

    def crowded(self, vocabulary: Vocabulary, view: View) -> bool:
        return True

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        level = max(out_channels)
        size = specification.view_invariance_learning.embedding_size
        return InvarianceHead(level=level, channels=out_channels[level], embedding_size=size)


class InvarianceHead(Head):
    """Global average pooling and a projector of two layers."""

    def __init__(self, *, level: int, channels: int, embedding_size: int) -> None:
        super().__init__()
        self._level = level
        # A norm of each image alone: no image is in another one's embedding.
        width = max(channels, 2 * embedding_size)
        self.projector = nn.Sequential(
            nn.Linear(channels, width),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, embedding_size),
        )

    def forward(self, features: Features) -> Outputs:
        """Embeddings, pictures x embedding size."""
        return {"embedding": self.projector(features[self._level].mean(dim=(2, 3)))}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """How far the agreement of the embeddings' numbers is from that of each with itself alone."""
        one, other = outputs["embedding"].chunk(2)
        agreement = _standardised(one).T @ _standardised(other) / len(one)
        own = agreement.diagonal()
        others = agreement.square().sum() - own.square().sum()
        return {
            "on_diagonal": (1 - own).square().mean(),
            "off_diagonal": OFF_DIAGONAL_WEIGHT * others / max(1, len(own) * (len(own) - 1)),
        }

    def decode(self, outputs: Outputs) -> Decoded:
        """The embeddings, pictures x embedding size."""
        return {"embedding": outputs["embedding"]}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Embedding]:
        """Vectors of any length: it is their numbers that are compared."""
        return [Embedding(vector=row) for row in decoded["embedding"].numpy()]

    def evaluation(self) -> Evaluation:
        return _Agreement()


def _standardised(embeddings: torch.Tensor) -> torch.Tensor:
    """Each number with a mean of 0 and a deviation of 1 over the batch."""
    centered = embeddings - embeddings.mean(dim=0)
    return centered / centered.square().mean(dim=0).add(DEVIATION_MIN**2).sqrt()


class _Agreement:
    """The embeddings of both pictures of every image; and how well those of its kind are found by the first one's."""

    def __init__(self) -> None:
        self._pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._search = Search()

    def add(self, prediction: Sequence[Prediction], target: str | None, view: View) -> None:
        one, other = prediction
        assert isinstance(one, Embedding)
        assert isinstance(other, Embedding)
        self._pairs.append((one.vector, other.vector))
        if target is not None:
            direction = one.vector / max(float(np.linalg.norm(one.vector)), LENGTH_MIN)
            self._search.add(Embedding(vector=direction), Identity(name=target, index=None), view)

    def values(self) -> list[MetricValue]:
        """The mean correlation of a number with itself, and the mean size of that of two, over all images.

        Where another head says of what kind images are, also the share whose five nearest others are mostly of theirs.
        """
        if len(self._pairs) < 2:
            return []
        one, other = (
            _standardised(torch.from_numpy(np.stack(side)).double()) for side in zip(*self._pairs, strict=True)
        )
        agreement = one.T @ other / len(one)
        size = len(agreement)
        own = agreement.diagonal()
        values = [MetricValue(name=ON_DIAGONAL, value=float(own.mean()))]
        if size > 1:
            others = (agreement.abs().sum() - own.abs().sum()) / (size * (size - 1))
            values.append(MetricValue(name=OFF_DIAGONAL, value=float(others)))
        return values + [value for value in self._search.values() if value.name == KNN_ACCURACY]

    def text(self) -> list[str]:
        return []
