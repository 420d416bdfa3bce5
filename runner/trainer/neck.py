"""What joins features of different levels before the heads see them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.trainer.failure import trainer_failure
from runner.trainer.norm import group_norm


class NoNeck(nn.Module):
    """Features go to the heads as they are."""

    def __init__(self, out_channels: Mapping[int, int]) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The same."""
        return features


class FeaturePyramid(nn.Module):
    """A feature pyramid network (Lin et al. 2017) over some levels, all with as many channels, and with norms.

    Levels coarser than the backbone's follow from the coarsest of them by convolutions of stride 2.
    """

    def __init__(self, in_channels: Mapping[int, int], levels: range, channels: int) -> None:
        from torchvision.ops import FeaturePyramidNetwork  # as slow to import as torch: not for jobs that have none

        super().__init__()
        self._levels = [level for level in levels if level in in_channels]
        self.out_channels = dict.fromkeys(levels, channels)
        self.pyramid = FeaturePyramidNetwork(
            [in_channels[level] for level in self._levels], channels, norm_layer=group_norm
        )
        self.coarser = nn.ModuleDict(
            {
                str(level): nn.Sequential(
                    nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), group_norm(channels)
                )
                for level in levels
                if level not in in_channels
            }
        )

    def forward(self, features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Features of the pyramid's levels; the others go no further."""
        joined = self.pyramid(OrderedDict((str(level), features[level]) for level in self._levels))
        found = {level: joined[str(level)] for level in self._levels}
        coarsest = found[self._levels[-1]]
        for level, convolution in self.coarser.items():
            coarsest = found[int(level)] = convolution(functional.relu(coarsest))
        return found


def build_neck(specification: job_spec_pb2.Neck, in_channels: Mapping[int, int]) -> NoNeck | FeaturePyramid:
    """The neck that a complete specification asks for. Raises Failure for levels that the backbone cannot give."""
    if specification.WhichOneof("kind") != "feature_pyramid":
        return NoNeck(in_channels)
    wanted = specification.feature_pyramid
    levels = range(wanted.level_min, wanted.level_max + 1)
    coarsest = max(in_channels)
    if not levels or any(level <= coarsest and level not in in_channels for level in levels) or levels[0] > coarsest:
        found = ", ".join(map(str, in_channels))
        raise trainer_failure(
            f"the feature pyramid wants levels {wanted.level_min} to {wanted.level_max}, the backbone has {found}"
        )
    return FeaturePyramid(in_channels, levels, wanted.channels)
