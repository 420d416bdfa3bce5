"""The backbones that a job may name, without torch: their levels of features, and the sizes that they can take.

A scheduler has no torch; tests of the runner compare what stands here with what its backbones do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache

from services.scheduler.fields import LEVEL_COARSEST

TINY = "tiny"
SMALL = "small"
OWN_BACKBONES = frozenset({TINY, SMALL})
"""Of our own; there are no ImageNet weights for them."""
LEVEL_COARSEST_TINY = 3
NAMES_MAX = 1_024
"""Of which is remembered what stands below."""
TIMM = re.compile(r"timm/[a-z0-9_.]{1,100}")
"""A backbone of timm's; what it has its runner knows."""

# The classification models of torchvision with convolutional features, and Swin's.
BACKBONES = frozenset(
    f"""{TINY} {SMALL} alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
    densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
    efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet
    inception_v3 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b
    swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
    wide_resnet101_2 wide_resnet50_2""".split()
)
REFUSED_BACKBONES = frozenset({"maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"})
FIXED_SIZE_PREFIXES = ("maxvit", "vit_")
# Level i has stride 2^i. (finest, coarsest) by the name's beginning; the first that fits counts.
LEVELS: Mapping[str, tuple[int, int]] = {
    TINY: (1, LEVEL_COARSEST_TINY),
    "alexnet": (2, LEVEL_COARSEST),
    "convnext": (2, LEVEL_COARSEST),
    "squeezenet": (1, 4),
    "swin": (2, LEVEL_COARSEST),
    "": (1, LEVEL_COARSEST),
}
SIZES_MIN: Mapping[str, int] = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "inception": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "vgg": 32,
    "": 16,
}
"""Pixels along each side of the smallest image, by the name's beginning; the first that fits counts."""


@lru_cache(maxsize=NAMES_MAX)
def levels(backbone: str) -> range:
    """The levels of features that a backbone of BACKBONES has, finest first; for timm's those that it may have."""
    finest, coarsest = next(found for prefix, found in LEVELS.items() if backbone.startswith(prefix))
    return range(finest, coarsest + 1)


@lru_cache(maxsize=NAMES_MAX)
def size_min(backbone: str) -> int:
    """The pixels along each side of the smallest image that a backbone of BACKBONES can take."""
    return next(found for prefix, found in SIZES_MIN.items() if backbone.startswith(prefix))


def is_backbone(name: str) -> bool:
    """Whether a job may name it."""
    return name in BACKBONES or TIMM.fullmatch(name) is not None


def extras_of(name: str) -> frozenset[str]:
    """The extras of sihlai that a runner must have installed to build it."""
    return frozenset({"timm"}) if TIMM.fullmatch(name) else frozenset()


def unknown_backbone(name: str) -> str:
    """What is wrong with a name that is none of BACKBONES."""
    if name in REFUSED_BACKBONES or name.startswith(FIXED_SIZE_PREFIXES):
        return f"is {name!r}, which takes images of one size only: take a convolutional backbone or Swin"
    close = difflib.get_close_matches(name, sorted(BACKBONES), n=1, cutoff=0)
    return f"is {name!r}, which is no backbone: did you mean {close[0]!r}?"
