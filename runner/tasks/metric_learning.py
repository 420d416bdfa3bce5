"""Metric learning: images of one identity get embeddings that lie close together.

An embedding of length 1, learned with a normalised softmax over the identities of the training dataset (Zhai and Wu
2019), with ArcFace's margin where it is asked for (Deng et al. 2019). Validation knows no identities by heart: images
are found by each other, so that new identities are fine.
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

from runner.tasks.drawing import enlarged, heat, with_lines
from runner.tasks.names import read_names
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

SHARPNESS = 16.0
"""What cosines are multiplied with before the softmax."""
KNN_ACCURACY = "knn_accuracy"
NEIGHBOURS = 5
"""Of the kNN classification."""
QUERIES_BLOCK = 512
"""Queries whose distances to all others are in memory at once."""
NUMBERS_SHOWN_MAX = 4
STRIP_HEIGHT = 12


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose image it is; `index` is None for one that the training dataset does not know."""

    name: str
    index: int | None


class MetricLearning(Task):
    """The task."""

    name = "metric learning"
    metrics: Mapping[str, bool] = {"precision_at_1": True, "r_precision": True, KNN_ACCURACY: True}
    says_kind = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"identities": read_names(metadata, "identities", "an identity")}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """None: what is validated on may be new."""
        return []

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Identity]:
        index_by_name = {name: index for index, name in enumerate(vocabulary["identities"])}

        def read(annotation: Any) -> Identity:
            if not isinstance(annotation, str):
                raise Wrong(f"an identity's name was wanted, {annotation!r:.100} was found")
            return Identity(name=annotation, index=index_by_name.get(annotation))

        return read

    def kind(self, target: Identity) -> str:
        return target.name

    def place(self, target: Identity, view: View) -> int | None:
        return target.index

    def batch(self, placed: Sequence[int]) -> Batched:
        return {"index": torch.tensor(placed)}

    def crowded(self, vocabulary: Vocabulary, view: View) -> int:
        return 0

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.metric_learning
        return EmbeddingHead(
            identities=len(vocabulary["identities"]),
            level=max(out_channels),
            channels=out_channels[max(out_channels)],
            embedding_size=parameters.embedding_size,
            margin=parameters.margin,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding(Prediction):
    """A vector; the cosine between two is how alike their images are. Of metric learning its length is 1."""

    vector: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        return {"embedding": self.vector.tolist()}

    def summary(self) -> str:
        shown = ", ".join(f"{value:.3f}" for value in self.vector[:NUMBERS_SHOWN_MAX])
        return f"[{shown}, …], {len(self.vector)} numbers"

    def draw(self, image: Image.Image) -> Image.Image:
        picture = enlarged(image)
        spread = max(float(np.abs(self.vector).max()), 1e-6)
        strip = Image.fromarray(heat(self.vector[None] / spread / 2 + 0.5))
        drawn = Image.new("RGB", (picture.width, picture.height + STRIP_HEIGHT))
        drawn.paste(picture, (0, 0))
        drawn.paste(strip.resize((picture.width, STRIP_HEIGHT), Image.Resampling.NEAREST), (0, picture.height))
        return with_lines(drawn, [f"embedding of {len(self.vector)} numbers"])


class EmbeddingHead(Head):
    """Global average pooling and a linear layer give the embedding; a direction for each identity learns with it."""

    def __init__(self, *, identities: int, level: int, channels: int, embedding_size: int, margin: float) -> None:
        super().__init__()
        self._level = level
        self._margin = margin
        self.linear = nn.Linear(channels, embedding_size)
        self.directions = nn.Parameter(torch.empty(identities, embedding_size))
        nn.init.normal_(self.directions, std=embedding_size**-0.5)

    def forward(self, features: Features) -> Outputs:
        """Embeddings before they are scaled to length 1, batch x embedding size."""
        return {"embedding": self.linear(features[self._level].mean(dim=(2, 3)))}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Cross entropy over the cosines with the identities' directions."""
        index = targets["index"]
        cosines = functional.normalize(outputs["embedding"]) @ functional.normalize(self.directions).T
        if self._margin > 0:
            own = cosines.gather(1, index[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
            # A wider angle than there is has to be beaten; beyond half a turn the cosine would rise again.
            wider = (own.acos() + self._margin).clamp(max=torch.pi).cos()
            cosines = cosines.scatter(1, index[:, None], wider)
        return {"identity": functional.cross_entropy(SHARPNESS * cosines, index)}

    def decode(self, outputs: Outputs) -> Decoded:
        """Embeddings of length 1, batch x embedding size."""
        return {"embedding": functional.normalize(outputs["embedding"])}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Embedding]:
        return [Embedding(vector=row) for row in decoded["embedding"].numpy()]

    def evaluation(self) -> Evaluation:
        return Search()


class Search:
    """Every image looks for the others of its identity. One that is alone with its identity is skipped as a query."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._vectors: list[NDArray[np.float32]] = []

    def add(self, prediction: Embedding, target: Identity, view: View) -> None:
        self._names.append(target.name)
        self._vectors.append(prediction.vector)

    def values(self) -> list[MetricValue]:
        if not self._names:
            return []
        _, labels, sizes = np.unique(self._names, return_inverse=True, return_counts=True)
        queries = np.flatnonzero(sizes[labels] > 1)
        if not len(queries):
            return []
        vectors = np.stack(self._vectors)
        first, precision, right = 0, 0.0, 0
        for start in range(0, len(queries), QUERIES_BLOCK):
            block = queries[start : start + QUERIES_BLOCK]
            likeness = vectors[block] @ vectors.T
            likeness[np.arange(len(block)), block] = -np.inf
            wanted = sizes[labels[block]] - 1
            reach = min(max(int(wanted.max()), NEIGHBOURS), len(vectors) - 1)
            nearest = _nearest(likeness, reach)
            hits = labels[nearest] == labels[block][:, None]
            first += int(hits[:, 0].sum())
            inside = np.arange(reach) < wanted[:, None]
            precision += float(((hits & inside).sum(axis=1) / wanted).sum())
            right += sum(
                _majority(row) == label
                for row, label in zip(labels[nearest[:, :NEIGHBOURS]].tolist(), labels[block].tolist(), strict=True)
            )
        return [
            MetricValue(name="precision_at_1", value=first / len(queries)),
            MetricValue(name="r_precision", value=precision / len(queries)),
            MetricValue(name=KNN_ACCURACY, value=right / len(queries)),
        ]

    def text(self) -> list[str]:
        return []


def _nearest(likeness: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The columns of the highest values of each row, falling."""
    some = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(likeness, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def _majority(labels: Sequence[int]) -> int:
    """The most frequent one; of several, the one that comes first."""
    return max(labels, key=lambda label: (labels.count(label), -labels.index(label)))
