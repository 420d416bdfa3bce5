"""Random changes of a training image, from the specification's ranges and a seed of the sample's own.

Neither the global random state nor the number of threads plays a part: the same seed gives the same picture. Every
sample draws the same numbers in the same order whatever is switched on, so that one more augmentation leaves the draws
of the others as they were.
"""

from __future__ import annotations

import hashlib

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

DRAWS = 9
SEED_BYTES = 8
SEED_MASK = 2**63 - 1


def seed_of(*parts: int | str) -> int:
    """A seed out of what a draw depends on, such as (seed, iteration, slot); parts that differ give other seeds."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "little") & SEED_MASK


def changes_anything(augmentations: job_spec_pb2.Augmentations) -> bool:
    """Whether any augmentation is switched on."""
    return any(value for _, value in augmentations.ListFields())


def augment(
    image: torch.Tensor, augmentations: job_spec_pb2.Augmentations, *, fill_byte: int, seed: int
) -> torch.Tensor:
    """Change a uint8 image of 3 x height x width; size and type stay. What is turned or moved in is `fill_byte`."""
    draws = torch.rand(DRAWS, generator=torch.Generator().manual_seed(seed)).tolist()
    flip_horizontally, flip_vertically = draws[:2]
    angle, right, down, zoom, brightness, contrast, saturation = (2 * draw - 1 for draw in draws[2:])
    if flip_horizontally < augmentations.horizontal_flip:
        image = functional.horizontal_flip(image)
    if flip_vertically < augmentations.vertical_flip:
        image = functional.vertical_flip(image)
    if augmentations.rotation_degrees or augmentations.translation or augmentations.zoom:
        height, width = image.shape[-2:]
        shift = [right * augmentations.translation * width, down * augmentations.translation * height]
        image = functional.affine(
            image,
            angle=angle * augmentations.rotation_degrees,
            translate=shift,
            scale=(1 + augmentations.zoom) ** zoom,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[float(fill_byte)] * 3,
        )
    if augmentations.brightness:
        image = functional.adjust_brightness(image, 1 + brightness * augmentations.brightness)
    if augmentations.contrast:
        image = functional.adjust_contrast(image, 1 + contrast * augmentations.contrast)
    if augmentations.saturation:
        image = functional.adjust_saturation(image, 1 + saturation * augmentations.saturation)
    return image
