"""From features of several levels to a map: for semantic segmentation, depth, and the masks of instances."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from runner.tasks.task import Features, WrongAnnotation
from runner.trainer.norm import group_norm

GROUPS_MAX = 8
"""Of the norms: they look at one image alone, so that no image is in another one's gradient."""
FULL_WIDTH_LEVEL = 2
"""Finer levels have half the channels each: there are four times as many pixels."""
CHANNELS_MIN = 8


class PyramidDecoder(nn.Module):
    """From the coarsest level to the finest: enlarged, added to the next level's features, and joined."""

    def __init__(self, in_channels: Mapping[int, int], level_min: int, channels: int, outputs: int) -> None:
        """Levels below `level_min` are left out. Raises WrongAnnotation where none is left."""
        super().__init__()
        self.levels = sorted((level for level in in_channels if level >= level_min), reverse=True)
        if not self.levels:
            found = ", ".join(map(str, sorted(in_channels)))
            raise WrongAnnotation(f"`level_min` is {level_min}, but there are levels {found}")
        widths = {level: max(CHANNELS_MIN, channels >> max(0, FULL_WIDTH_LEVEL - level)) for level in self.levels}
        self.laterals = nn.ModuleDict(
            {
                # The image itself has nothing to say in a single pixel.
                str(level): nn.Conv2d(
                    in_channels[level], widths[level], 3 if level == 0 else 1, padding=int(level == 0)
                )
                for level in self.levels
            }
        )
        finer = {level: widths[below] for level, below in zip(self.levels, self.levels[1:], strict=False)}
        finest = self.levels[-1]
        self.joins = nn.ModuleDict(
            {str(level): join(widths[level], finer.get(level, widths[finest])) for level in self.levels}
        )
        self.last = nn.Conv2d(widths[finest], outputs, 1)

    @property
    def level(self) -> int:
        """The finest level that is used."""
        return self.levels[-1]

    def forward(self, features: Features) -> torch.Tensor:
        """Batch x outputs x the canvas's height x its width."""
        return _enlarged(self.finest(features), features[0])

    def finest(self, features: Features) -> torch.Tensor:
        """Batch x outputs x the finest level's height x its width."""
        found: torch.Tensor | None = None
        for level in self.levels:
            here = self.laterals[str(level)](features[level])
            if found is not None:
                here = here + _enlarged(found, here)
            found = self.joins[str(level)](here)
        assert found is not None, "there is a level"
        last: torch.Tensor = self.last(found)
        return last


def join(channels: int, outputs: int) -> nn.Sequential:
    """A convolution that sees neighbours, and a norm of each image alone."""
    return nn.Sequential(
        nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
        group_norm(outputs, GROUPS_MAX),
        nn.ReLU(inplace=True),
    )


def _enlarged(found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if found.shape[2:] == like.shape[2:]:
        return found
    return functional.interpolate(found, size=like.shape[2:], mode="bilinear", align_corners=False)
