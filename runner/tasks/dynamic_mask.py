"""Masks by convolutions whose weights each object brings along (CondInst, Tian et al. 2020).

All objects share a few maps of features; a point's 169 numbers are the weights of three small layers that make its mask
out of these and of where each cell lies in the object's box. Strokes are thinner than a cell: what is learned is how
much of each cell an object covers, and an edge is found between the cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from runner.tasks.anchor_free import Matches
from runner.tasks.assignment import POINTS_EACH_MAX
from runner.tasks.pyramid_decoder import PyramidDecoder
from runner.tasks.task import Features

FEATURES = 8
HIDDEN = 8
PLACES = 2
WEIGHTS = (FEATURES + PLACES) * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN + 1
MASKS_LEARNED_MAX = 160
"""Points of one batch whose masks are learned: each takes as much memory as a map of the batch's."""
DIGITS_KNOWN = 1e6
"""Digits of a weight beyond these say nothing."""
MASK_WEIGHT = 2.0
"""What the masks' part of the loss counts beside the scores'."""
BITS = 8


class DynamicMask(nn.Module):
    """Maps of features, and beside them `more` maps for whoever wants some; masks out of a point's numbers."""

    def __init__(self, in_channels: Mapping[int, int], *, level: int, channels: int, more: int = 0) -> None:
        """`level`: the finest one that is used. Raises WrongAnnotation where there is none as coarse."""
        super().__init__()
        self.decoder = PyramidDecoder(in_channels, level, channels, FEATURES + more)

    @property
    def stride(self) -> int:
        """Pixels of the canvas a cell of a mask, along each side."""
        return 1 << self.decoder.level

    def forward(self, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Features for masks, and the other maps, batch x maps x height x width."""
        maps = self.decoder.finest(features)
        return maps[:, :FEATURES], maps[:, FEATURES:]

    def masks(self, features: torch.Tensor, weights: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Logits, n x height x width: features n (or 1) x 8 x height x width, weights n x 169, boxes n x 4."""
        height, width = features.shape[2:]
        count = weights.shape[0]  # len() would be a number in an exported model, whatever the batch
        x = (torch.arange(width, device=boxes.device) + 0.5) * self.stride
        y = (torch.arange(height, device=boxes.device) + 0.5) * self.stride
        center, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=self.stride)
        across = ((x - center[:, :1]) / side[:, :1])[:, None].expand(count, height, width)
        down = ((y - center[:, 1:]) / side[:, 1:])[:, :, None].expand(count, height, width)
        places = torch.stack([across, down], dim=1).clamp(-2, 2)
        inputs = torch.cat([features.expand(count, -1, -1, -1), places], dim=1).flatten(2)
        first, first_bias, second, second_bias, third, third_bias = torch.split(
            weights, [(FEATURES + PLACES) * HIDDEN, HIDDEN, HIDDEN * HIDDEN, HIDDEN, HIDDEN, 1], dim=1
        )
        here = torch.baddbmm(first_bias[..., None], first.view(count, HIDDEN, FEATURES + PLACES), inputs).relu()
        here = torch.baddbmm(second_bias[..., None], second.view(count, HIDDEN, HIDDEN), here).relu()
        here = torch.baddbmm(third_bias[..., None], third.view(count, 1, HIDDEN), here)
        return here.view(count, height, width)

    def loss(
        self,
        features: torch.Tensor,
        *,
        boxes: torch.Tensor,
        weights: torch.Tensor,
        matches: Matches,
        packed: torch.Tensor,
    ) -> torch.Tensor:
        """One minus Dice over what each cell is covered (Milletari et al. 2016).

        `boxes` and `weights` are batch x points x …; `packed` has the true masks of all objects, canvas pixels as bits.
        """
        chosen = _chosen(matches)
        images, points = matches.images[chosen], matches.points[chosen]
        own = matches.weights[chosen]
        logits = self.masks(features[images], weights[images, points], boxes[images, points].detach())
        found = logits.sigmoid()
        height, width = features.shape[2:]
        wanted = coverage(packed[matches.objects[chosen]], height, width, self.stride)
        both = 2 * (found * wanted).sum(dim=(1, 2))
        dice = 1 - (both + 1) / (found.square().sum(dim=(1, 2)) + wanted.square().sum(dim=(1, 2)) + 1)
        # What was left out takes nothing from its image's part.
        whole = matches.weights.new_zeros(len(features)).index_add(0, matches.images, matches.weights)
        taken = own.new_zeros(len(features)).index_add(0, images, own).clamp(min=torch.finfo(own.dtype).tiny)
        return MASK_WEIGHT * (dice * own * (whole / taken)[images]).sum()


def coverage(packed: torch.Tensor, height: int, width: int, stride: int) -> torch.Tensor:
    """How much of each cell masks cover, n x height x width: packed bits, n x canvas height x bytes."""
    shifts = torch.arange(BITS - 1, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = ((packed[..., None] >> shifts) & 1).flatten(2)
    rows, columns = height * stride, width * stride
    bits = bits[:, :rows, :columns]
    bits = functional.pad(bits, (0, columns - bits.shape[2], 0, rows - bits.shape[1]))
    return functional.avg_pool2d(bits.float()[:, None], stride)[:, 0]


def _chosen(matches: Matches) -> torch.Tensor:
    """At most MASKS_LEARNED_MAX places of matches: of each object its best point, then the second best ones, ….

    Which ones of as good points, is like a lot: the last digits of weights are others in every step, and the same ones
    when a job is resumed. Were it their order, an image with more objects would never teach the last ones' masks.
    """
    place = torch.arange(len(matches.points), device=matches.points.device)
    rank = place % POINTS_EACH_MAX + torch.where(matches.weights > 0, 0, POINTS_EACH_MAX)
    return (rank + (matches.weights * DIGITS_KNOWN) % 1).argsort(stable=True)[:MASKS_LEARNED_MAX]
