"""What every task provides: vocabulary, targets, head, loss, predictions and validation metrics.

The loop, the data and the checkpoints know tasks through these types alone and never ask which one they hold. In
return a task knows nothing of letterboxes, unlabelled images, devices, number formats or files of results: it is
handed labelled rows in float32, and gives values in the pixels of the image.

A target is read once, cheaply, when the dataset is read; and placed on the canvas each time that its image is seen.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.trainer.view import View

Features: TypeAlias = Mapping[int, torch.Tensor]
"""Features by level, batch x channels x height x width; level i has stride 2^i, level 0 is the normalised image."""
Outputs: TypeAlias = Mapping[str, torch.Tensor]
"""What a head computes, by name, the batch first."""
Decoded: TypeAlias = Mapping[str, torch.Tensor]
"""What outputs mean, on the canvas, by name, the batch first."""
Losses: TypeAlias = Mapping[str, torch.Tensor]
"""The parts of a loss by name; the loss is their sum."""
Vocabulary: TypeAlias = Mapping[str, Any]
"""The part of metadata.json that a model's outputs mean something by; JSON values only, kept in every checkpoint."""
Target: TypeAlias = Any
"""What one image's annotation says, in pixels of the image; the task's own. A map is known by its file."""
Placed: TypeAlias = Any
"""What one target is to the loss, on the canvas; the task's own."""
Batched: TypeAlias = Mapping[str, torch.Tensor]
"""Placed targets of several images, by name."""
HOST = "host_"
"""Names that begin so stay on the CPU: what a loss must know there, such as sizes, it need not ask a device for."""


class WrongAnnotation(ValueError):  # noqa: N818 — it names what is wrong with the annotation
    """An annotation or a vocabulary is not what the task needs: what was wanted and what was found, in words."""


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One validation metric; `context` tells values of one metric apart, such as those of each class."""

    name: str
    value: float
    context: Mapping[str, str] = field(default_factory=dict)


class Prediction(abc.ABC):
    """What a head says about one image, in pixels of the image. A frozen value, on the CPU."""

    map_suffix = ".png"
    """Of `map_file`."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """In JSON values."""

    @abc.abstractmethod
    def summary(self) -> str:
        """In a few words, for a line at the terminal."""

    @abc.abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """A new picture of the image, which has its whole size, with the prediction on it."""

    def annotation(self) -> Any:
        """As an annotation of the task, in JSON values; None where it is a map, or no annotation says it."""
        return None

    def map_file(self) -> bytes | None:
        """The annotation as the native format has it, where the task's annotations are maps."""
        return None


class Evaluation(Protocol):
    """Gathers a validation's predictions. Used from one thread at a time, and not from the one that trains."""

    def add(self, prediction: Any, target: Target, view: View) -> None:
        """Take in an image: what is predicted, and its target as it was read.

        A task of several views gets a tuple, what is predicted of each picture; `view` is the first one's.
        """

    def values(self) -> list[MetricValue]:
        """The metrics over all that was added, the task's own first; empty where nothing was."""

    def text(self) -> list[str]:
        """Lines for the log that no number can say."""


class Head(nn.Module, abc.ABC):
    """The layers that solve one task."""

    @abc.abstractmethod
    def forward(self, features: Features) -> Outputs:
        """Compute the outputs of a batch."""

    @abc.abstractmethod
    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Each part is the mean over the images, which are all labelled; one number each, float32."""

    @abc.abstractmethod
    def decode(self, outputs: Outputs) -> Decoded:
        """What the outputs mean, on the canvas. Tensors of fixed shapes in, tensors of fixed shapes out."""

    @abc.abstractmethod
    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Prediction]:
        """Values in pixels of the images; `decoded` is on the CPU, `views` has one for each of its images."""

    @abc.abstractmethod
    def evaluation(self) -> Evaluation:
        """A new, empty evaluation."""

    def built(self, model: nn.Module) -> None:
        """Called once when the model stands, whatever weights it gets then; layers may still be added."""

    def initialised(self, model: nn.Module) -> None:
        """Called once on a fresh start, after the weights were loaded; `model` is the whole."""


class Task(abc.ABC):
    """What can be learned."""

    name: str
    """As metadata.json writes it."""
    metrics: Mapping[str, bool]
    """Names of the validation metrics, the primary one first, and whether a higher value is better."""
    views = 1
    """Pictures of each image that a head sees; of a batch first the one of all images, then the other."""
    images_alone = False
    """Whether every image that the dataset names is learned from; the reader gets None for one without annotation."""
    says_kind = False
    """Whether its targets say of what kind an image is as a whole."""
    asks_for_kind = False
    """Whether its evaluation takes an image's kind in the place of a target, None where no other head says it."""
    opens_files = False
    """Whether `place` opens a file: images are then prepared one by one, by several threads."""

    def unfit_augmentations(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        """Fields of Augmentations that would make the targets wrong, and why."""
        return {}

    @abc.abstractmethod
    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary of a dataset's metadata. Raises WrongAnnotation."""

    @abc.abstractmethod
    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """The words of another dataset's vocabulary that this one lacks; the order of words does not matter."""

    @abc.abstractmethod
    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Target]:
        """What turns an image's annotation into its target; it raises WrongAnnotation.

        `folder` is where the paths of maps begin. No map is opened.
        """

    def kind(self, target: Target) -> str:
        """Of what kind a target says that its image is, where the task says such things."""
        raise NotImplementedError(f"{self.name} says nothing of whole images")

    def shown(self, vocabulary: Vocabulary, target: Target, view: View) -> Prediction | None:
        """The prediction that says what a target says, for pictures; None where none can say it.

        Raises WrongAnnotation where a file is not what it must be.
        """
        return None

    @abc.abstractmethod
    def place(self, target: Target, view: View) -> Placed | None:
        """What the loss needs, on the canvas; None where nothing can be learned from it.

        Runs in a loader's thread. Raises WrongAnnotation where a file is not what it must be.
        """

    @abc.abstractmethod
    def batch(self, placed: Sequence[Placed]) -> Batched:
        """Stack what was placed, at least one."""

    @abc.abstractmethod
    def crowded(self, vocabulary: Vocabulary, view: View) -> Placed:
        """As much as one image can be expected to hold, for the rehearsal of a step."""

    @abc.abstractmethod
    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        """A new head on features of these levels; its weights come from torch's random state."""
