"""What joins features of different levels before the heads see them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from runner.trainer.failure import trainer_failure


class NoNeck(nn.Module):
    """Features go to the heads as they are."""

    def __init__(self, out_channels: Mapping[int, int]) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The same."""
        return features


class FeaturePyramid(nn.Module):
    """A feature pyramid network (Lin et al. 2017) over some levels, all with as many channels."""

    def __init__(self, in_channels: Mapping[int, int], levels: range, channels: int) -> None:
        super().__init__()
        self._levels = levels
        self.out_channels = dict.fromkeys(levels, channels)
        self.pyramid = FeaturePyramidNetwork([in_channels[level] for level in levels], channels)

    def forward(self, features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Features of the pyramid's levels; the others go no further."""
        joined = self.pyramid(OrderedDict((str(level), features[level]) for level in self._levels))
        return {level: joined[str(level)] for level in self._levels}


def build_neck(specification: job_spec_pb2.Neck, in_channels: Mapping[int, int]) -> NoNeck | FeaturePyramid:
    """The neck that a complete specification asks for. Raises Failure for levels that the backbone lacks."""
    if specification.WhichOneof("kind") != "feature_pyramid":
        return NoNeck(in_channels)
    wanted = specification.feature_pyramid
    levels = range(wanted.level_min, wanted.level_max + 1)
    missing = [str(level) for level in levels if level not in in_channels]
    if missing or not levels:
        found = ", ".join(map(str, in_channels))
        raise trainer_failure(
            f"the feature pyramid wants levels {wanted.level_min} to {wanted.level_max}, the backbone has {found}"
        )
    return FeaturePyramid(in_channels, levels, wanted.channels)
