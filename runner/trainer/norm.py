"""Norms that look at one image alone, so that a batch may be small (Wu and He 2018): for necks and heads."""

from __future__ import annotations

from torch import nn

GROUPS_MAX = 32
CHANNELS_EACH_MIN = 2
"""Of a group, as far as there are so many: of one channel nothing is left where its map is a single pixel."""


def group_norm(channels: int, groups_max: int = GROUPS_MAX) -> nn.Module:
    """A norm for maps of any size, down to one pixel, of any number of images, down to one."""
    if channels == 1:
        return nn.Identity()  # there is nothing that a lone value could be compared with
    groups = max(
        count
        for count in range(1, groups_max + 1)
        if channels % count == 0 and (count == 1 or channels // count >= CHANNELS_EACH_MIN)
    )
    return nn.GroupNorm(groups, channels)
