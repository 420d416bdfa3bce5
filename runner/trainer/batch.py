"""A batch: pictures, what is wanted of them, and how they come to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.trainer.augmentation import Changes, augment
from runner.trainer.dataset import Example
from runner.trainer.image import BYTE_MAX
from runner.trainer.targets import Targets
from runner.trainer.view import View


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file that could not be used, and why. `name` is the image's; `what` names the file of the two.

    `files`: how many of that kind the dataset has, for an image all, for a map those of its head.
    """

    name: str
    reason: str
    files: int
    what: str = "image"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and the targets of each head, None where no image of the batch is annotated for it.

    Batches have always as many images as were asked for: one that cannot be read keeps its slot, blank, and no head
    has a target for it.
    """

    pictures: torch.Tensor
    """uint8, 3 x height x width each, before they are changed: one of each image, then, where a head wants two
    views, another one of each."""
    changes: Changes | None
    """What is to be done with the pictures on the device."""
    fill: float
    """The gray value, from 0 to 1, of what is moved in from outside."""
    targets: tuple[Targets | None, ...]
    examples: tuple[Example, ...]
    views: tuple[View, ...]
    """Of the first picture of each image."""
    readable: tuple[bool, ...]
    unreadable: tuple[Unreadable, ...]
    micro_batches: tuple[Batch, ...] = ()
    """The same images in several batches, where they are learned from one after the other."""
    shares: tuple[float, ...] | None = None
    """Of a micro-batch: what share of the labelled images of each head it has."""

    @property
    def parts(self) -> tuple[Batch, ...]:
        """What is learned from at once."""
        return self.micro_batches or (self,)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.examples)

    @property
    def teaches(self) -> bool:
        """Whether any head has a target."""
        return any(targets is not None for targets in self.targets)

    def on_device(self, device: torch.device) -> torch.Tensor:
        """The pictures, changed, as numbers from 0 to 1 in the model's order of memory."""
        floats = self.pictures.to(device, non_blocking=True).float().div_(BYTE_MAX)
        if self.changes is not None:
            floats = augment(floats, self.changes.to(device), self.fill)
        return floats.contiguous(memory_format=torch.channels_last)

    def targets_on(self, device: torch.device) -> list[Targets | None]:
        """The targets on a device."""
        return [None if targets is None else targets.to(device) for targets in self.targets]
