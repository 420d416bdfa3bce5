"""Backbones of timm, where the extra `timm` is installed: what its `features_only` gives, by level."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from runner.trainer.failure import trainer_failure

PREFIX = "timm/"
CHANNELS_FIRST = "NCHW"


class TimmBackbone(nn.Module):
    """A model of timm that takes images of any size. `out_channels` is by level."""

    def __init__(self, name: str) -> None:
        """`name` without the prefix; weights come from torch's random state. Raises Failure."""
        super().__init__()
        try:
            import timm
        except ImportError:
            raise trainer_failure(
                f"the backbone {PREFIX}{name} is one of timm's, which this runner lacks: install sihlai[timm] there"
            ) from None
        try:
            self.model = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # timm raises each of them for a name
            reason = " ".join(str(error).split())
            raise trainer_failure(f"timm has no backbone {name!r} with features by level: {reason:.200}") from error
        self._channels_last = getattr(self.model, "output_fmt", None) not in (None, CHANNELS_FIRST)
        about: Any = self.model.feature_info
        levels = [round(math.log2(reduction)) for reduction in about.reduction()]
        if len(set(levels)) < len(levels):
            raise trainer_failure(f"timm's {name!r} has features of one stride alone: take a convolutional backbone")
        self.out_channels = dict(zip(levels, about.channels(), strict=True))
        self._frozen = False

    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        """Features of every level of a batch of normalised images."""
        found = self.model(images)
        if self._channels_last:
            found = [each.permute(0, 3, 1, 2) for each in found]
        return dict(zip(self.out_channels, found, strict=True))

    def freeze(self, levels: int) -> None:
        """Keep the weights and the statistics of norms as they are, of all levels or of none. Raises Failure."""
        if 0 < levels < max(self.out_channels):
            raise trainer_failure(
                f"backbone.frozen_levels is {levels}, but of a backbone of timm's all {max(self.out_channels)} levels"
                " are frozen, or 0"
            )
        self._frozen = levels > 0
        if self._frozen:
            self.model.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmBackbone:
        """As torch's, but a frozen model stays in evaluation: its norms must not learn either."""
        super().train(mode)
        if self._frozen:
            self.model.eval()
        return self
