"""What turns an image into features by level: two small networks of our own, torchvision's convolutional ones and Swin.

Level i has stride 2^i. A backbone is a chain of stages, one for each level that it has, so that features of every level
fall out of one pass and the finest levels can be frozen.

torchvision is imported where it is used: with its models it takes as long as torch itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from runner.trainer.failure import trainer_failure
from runner.trainer.image import CHANNELS
from runner.trainer.timm_backbone import PREFIX, TimmBackbone

TINY = "tiny"
TINY_CHANNELS = (32, 64, 128)
"""By level, from level 1; 95,000 weights with a head of ten categories.

What works for handwritten digits: 16 x 16 pixels, batches of 64, AdamW with a highest rate of 0.003, 300 iterations.
That is 99.4 % (median of three seeds) in about 4 s on two idle cores.
"""
SMALL = "small"
SMALL_CHANNELS = (24, 48, 96, 128, 160)
"""By level, from level 1; 832,000 weights."""
OWN = frozenset({TINY, SMALL})
PROBE_PIXELS = 256
"""Images of this size show the strides of a chain's parts; the smallest power of two that all of them can take."""
LEVEL_NAMES = ("stage-1", "stage-2", "stage-3", "stage-4", "stage-5")
POOLED = frozenset({"avgpool", "classifier", "fc", "head", "dropout", "flatten"})
"""Where a torchvision model stops to be a chain of features."""
AUXILIARY = frozenset({"aux1", "aux2", "AuxLogits"})
NESTED = frozenset({"features", "trunk_output", "layers"})
"""Children that are chains themselves."""
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's images, by channel, from 0 to 1: every backbone gets images that are normalised with them."""
CENTERED_INPUT = frozenset({"googlenet", "inception_v3"})


class Backbone(nn.Module):
    """A chain of stages. `out_channels` is by level, the image itself (level 0) left out."""

    def __init__(
        self,
        stages: Mapping[int, nn.Module],
        out_channels: Mapping[int, int],
        *,
        channels_last_levels: frozenset[int] = frozenset(),
    ) -> None:
        """`channels_last_levels`: levels whose stage ends in batch x height x width x channels."""
        super().__init__()
        self.out_channels = out_channels
        self._levels = tuple(stages)
        self._channels_last_levels = channels_last_levels
        self._frozen_levels = 0
        for level, stage in stages.items():
            self.add_module(LEVEL_NAMES[level - 1], stage)

    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        """Features of every level of a batch of normalised images."""
        features: dict[int, torch.Tensor] = {}
        here = images
        for level in self._levels:
            here = self.get_submodule(LEVEL_NAMES[level - 1])(here)
            features[level] = here.permute(0, 3, 1, 2) if level in self._channels_last_levels else here
        return features

    def freeze(self, levels: int) -> None:
        """Keep the weights, and the statistics of norms, of the first levels as they are; 0 freezes nothing."""
        self._frozen_levels = levels
        for stage in self._frozen_stages():
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As torch's, but frozen stages stay in evaluation: their norms must not learn either."""
        super().train(mode)
        for stage in self._frozen_stages():
            stage.eval()
        return self

    def _frozen_stages(self) -> Iterator[nn.Module]:
        return (self.get_submodule(LEVEL_NAMES[level - 1]) for level in self._levels if level <= self._frozen_levels)


def build_backbone(name: str) -> Backbone | TimmBackbone:
    """A backbone with weights from torch's random state. Raises Failure for a name that is none."""
    if name == TINY:
        return _tiny()
    if name == SMALL:
        return _small()
    if name.startswith(PREFIX):
        return TimmBackbone(name.removeprefix(PREFIX))
    return backbone_from_torchvision(name, _torchvision_model(name))


def backbone_from_torchvision(name: str, model: nn.Module) -> Backbone:
    """The features of a torchvision model that was built already: its chain, cut behind the last part of each level."""
    parts = list(_chain(model))
    if name in CENTERED_INPUT:
        parts.insert(0, _CenteredInput())
    if name.startswith("densenet"):
        parts.append(nn.ReLU(inplace=True))  # the model's own forward does it behind the last norm
    shapes = _probe(parts)
    finest = min(shape.level for shape in shapes if shape.level > 0)
    parts_by_level: dict[int, list[nn.Module]] = defaultdict(list)
    last_shapes: dict[int, _Shape] = {}
    for part, shape in zip(parts, shapes, strict=True):
        level = max(shape.level, finest)  # what has the image's own size belongs to the first level
        parts_by_level[level].append(part)
        last_shapes[level] = shape
    return Backbone(
        {level: nn.Sequential(*stage) for level, stage in parts_by_level.items()},
        {level: shape.channels for level, shape in last_shapes.items()},
        channels_last_levels=frozenset(level for level, shape in last_shapes.items() if shape.channels_last),
    )


def load_imagenet_weights(backbone: Backbone | TimmBackbone, name: str, folder: Path | None) -> None:
    """Give a new backbone torchvision's ImageNet weights from a local file; nothing is downloaded.

    `folder` is where the file lies, None for torch's own folder of downloaded weights. Raises Failure.
    """
    if name in OWN or name.startswith(PREFIX):
        raise trainer_failure(f"there are no ImageNet weights of torchvision for {name}: take random initialization")
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / weights.url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise trainer_failure(
            f"the ImageNet weights of {name} were wanted at {path}, where no file is:"
            f" put {weights.url} there, or take random initialization"
        )
    model = _torchvision_model(name)
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise trainer_failure(f"{path} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
    backbone.load_state_dict(backbone_from_torchvision(name, model).state_dict())


def _tiny() -> Backbone:
    """At each level a convolution, a norm and a pooling: digits want to be seen at full resolution before halving."""
    stages: dict[int, nn.Module] = {}
    before = CHANNELS
    for level, channels in enumerate(TINY_CHANNELS, start=1):
        stages[level] = nn.Sequential(
            nn.Conv2d(before, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        before = channels
    return Backbone(stages, dict(enumerate(TINY_CHANNELS, start=1)))


def _small() -> Backbone:
    """At each level a convolution that halves, and one beside which the features pass unchanged."""
    stages: dict[int, nn.Module] = {}
    before = CHANNELS
    for level, channels in enumerate(SMALL_CHANNELS, start=1):
        halving = nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False)
        stages[level] = nn.Sequential(halving, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), _Residual(channels))
        before = channels
    return Backbone(stages, dict(enumerate(SMALL_CHANNELS, start=1)))


class _Residual(nn.Module):
    """What passes, and what a convolution adds to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + functional.relu(self.norm(self.convolution(features)))


def _torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    arguments: dict[str, Any] = {"weights": None}
    if name in CENTERED_INPUT:
        # Their own initialization draws truncated normals for half a minute; torch's own serves as well.
        arguments["init_weights"] = False
    try:
        model: nn.Module = models.get_model(name, **arguments)
    except ValueError as error:
        raise trainer_failure(
            f"{name!r} is no backbone: take {TINY!r}, {SMALL!r}, a torchvision classification model,"
            f" or one of timm with {PREFIX!r} before its name"
        ) from error
    return model


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that an image passes one after another, up to where features are pooled."""
    for child_name, child in model.named_children():
        if child_name in POOLED:
            return
        if child_name in AUXILIARY:
            continue
        if child_name in NESTED:
            yield from child.children()
        else:
            yield child


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What a part's output looks like."""

    level: int
    channels: int
    channels_last: bool


def _probe(parts: Sequence[nn.Module]) -> list[_Shape]:
    """The shape of each part's output, found with a black square."""
    training = [part.training for part in parts]
    shapes = []
    here = torch.zeros(1, CHANNELS, PROBE_PIXELS, PROBE_PIXELS)
    with torch.no_grad():
        for part in parts:
            here = part.eval()(here)
            # The image is a square, so its two equal sizes stand together. Swin alone keeps channels last.
            channels_last = here.shape[2] != here.shape[3]
            pixels, channels = (here.shape[1], here.shape[3]) if channels_last else (here.shape[2], here.shape[1])
            level = round(math.log2(PROBE_PIXELS / pixels))
            shapes.append(_Shape(level=level, channels=channels, channels_last=channels_last))
    for part, mode in zip(parts, training, strict=True):
        part.train(mode)
    return shapes


class _CenteredInput(nn.Module):
    """From ImageNet's mean and deviation to the range from -1 to 1, which these weights were learned with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.new_tensor(MEAN).view(1, CHANNELS, 1, 1)
        deviation = images.new_tensor(DEVIATION).view(1, CHANNELS, 1, 1)
        return (images * deviation + mean) * 2.0 - 1.0
