"""What every task provides: its vocabulary, targets, head, loss, predictions and validation metrics.

The loop, the data and the checkpoints know tasks through these types alone and never ask which one they hold.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

Features: TypeAlias = Mapping[int, torch.Tensor]
"""Features by level, each batch x channels x height x width; level i has stride 2^i."""
Outputs: TypeAlias = Mapping[str, torch.Tensor]
"""What a head computes, by name, the batch first."""
Vocabulary: TypeAlias = Mapping[str, Any]
"""The part of metadata.json that a model's outputs mean something by; JSON values only, kept in every checkpoint."""
Target: TypeAlias = Any
"""What one image's annotation is to the loss; the task's own."""


class WrongAnnotation(ValueError):  # noqa: N818 — it names what is wrong with the annotation
    """An annotation or a vocabulary is not what the task needs: what was wanted and what was found, in words."""


class Targets(Protocol):
    """The targets of a batch; images without an annotation are marked in it, and add nothing to the loss."""

    @property
    def labelled(self) -> int:
        """Images of the batch with an annotation; at least one."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One validation metric; `context` tells values of one metric apart, such as those of each class."""

    name: str
    value: float
    context: Mapping[str, str] = field(default_factory=dict)


class Evaluation(Protocol):
    """Gathers a validation's outputs."""

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Take in a batch; images without an annotation do not count."""

    def values(self) -> list[MetricValue]:
        """The metrics over all that was added, the task's own first; empty where nothing was labelled."""

    def text(self) -> list[str]:
        """Lines for the log that no number can say."""


class Head(nn.Module, abc.ABC):
    """The layers that solve one task."""

    @abc.abstractmethod
    def forward(self, features: Features) -> Outputs:
        """Compute the outputs of a batch."""

    @abc.abstractmethod
    def loss(self, outputs: Outputs, targets: Targets) -> torch.Tensor:
        """The mean over the batch's labelled images: one number, in float32."""

    @abc.abstractmethod
    def decode(self, outputs: Outputs) -> list[dict[str, Any]]:
        """What is predicted for each image, in JSON values."""

    @abc.abstractmethod
    def evaluation(self) -> Evaluation:
        """A new, empty evaluation."""

    @abc.abstractmethod
    def output_shapes(self) -> Mapping[str, tuple[str | int, ...]]:
        """Names and shapes of the outputs, such as `("batch", 10)`."""


class Task(Protocol):
    """What can be learned."""

    @property
    def name(self) -> str:
        """As metadata.json writes it."""

    @property
    def metrics(self) -> Mapping[str, bool]:
        """Names of the validation metrics, the primary one first, and whether a higher value is better."""

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary of a dataset's metadata. Raises WrongAnnotation."""

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """The words of another dataset's vocabulary that this one lacks; the order of words does not matter."""

    def reader(self, vocabulary: Vocabulary) -> Callable[[Any], Target]:
        """What turns an image's annotation into its target; it raises WrongAnnotation."""

    def batch(self, targets: Sequence[Target | None]) -> Targets | None:
        """The targets of a batch, None where no image of it is annotated."""

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        """A new head on features of these levels; its weights come from torch's random state."""
