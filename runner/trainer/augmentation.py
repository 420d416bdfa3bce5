"""Random changes of training images, from the specification's ranges and a seed of the sample's own.

What is drawn for a sample is a `Change`: one matrix, with which its targets are placed too, and what becomes of its
colours. Pixels are changed in batches on the device, where it costs little. Neither the global random state nor the
number of threads plays a part: the same seed gives the same picture. Every sample draws the same numbers in the same
order whatever is switched on, so that one more augmentation leaves the draws of the others as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch.nn import functional

from runner.trainer.image import CHANNELS, Canvas
from runner.trainer.view import (
    IDENTITY,
    Matrix,
    flip_horizontally,
    flip_vertically,
    inverted,
    product,
    shift,
    turn_and_zoom,
)

Color: TypeAlias = tuple[float, ...]
"""Nine numbers, by row: from red, green and blue to the new ones."""

DRAWS = 15
SEED_BYTES = 8
SEED_MASK = 2**63 - 1
LUMA = (0.299, 0.587, 0.114)
"""How bright the eye sees each channel (ITU-R BT.601)."""
TO_YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
FROM_YIQ = torch.linalg.inv(TO_YIQ)
GRAY = torch.tensor([LUMA] * CHANNELS, dtype=torch.float64)
EVERY_COLOR: Color = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
STRONG: Mapping[str, float] = {
    "crop": 0.6,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "gray": 0.2,
    "blur": 0.02,
}
"""What view-invariance learning asks for at least; flips and turns change what some images mean."""
BLUR_DEVIATIONS = 2.5
"""How far a blur's kernel reaches; beyond lies a hundredth of its weight."""
BLUR_PIXELS_MIN = 0.2
"""A smaller standard deviation cannot be seen."""
BLURRED_ROWS = 128
"""Rows that are blurred at once on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What happens to one picture on its canvas.

    A pixel's new colour is `color` times the old one, plus `gray` times the picture's mean brightness (contrast is
    about that mean). `blur` is a Gaussian's standard deviation in pixels.
    """

    matrix: Matrix = IDENTITY
    color: Color = EVERY_COLOR
    gray: float = 0.0
    blur: float = 0.0


UNCHANGED = Change()


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes of a batch, ready for a device; None where no picture of it needs one of that kind."""

    matrices: torch.Tensor | None
    """From the new canvas's pixels to the old one's, float32, batch x 2 x 3."""
    colors: torch.Tensor | None
    """float32, batch x 3 x 4; the last column is `gray`."""
    blurs: torch.Tensor | None
    """Standard deviations in pixels, float32, batch."""
    blur_radius: int

    @classmethod
    def of(cls, changes: Sequence[Change]) -> Self | None:
        """Of the pictures in their order; None where none of them is changed."""
        moved = any(change.matrix is not IDENTITY for change in changes)
        tinted = any(change.color is not EVERY_COLOR or change.gray for change in changes)
        blur = max((change.blur for change in changes), default=0.0)
        if not (moved or tinted or blur):
            return None
        matrices = colors = blurs = None
        if moved:
            matrices = torch.tensor([inverted(change.matrix) for change in changes]).view(-1, 2, 3)
        if tinted:
            colors = torch.tensor([change.color for change in changes]).view(-1, CHANNELS, CHANNELS)
            gray = torch.tensor([change.gray for change in changes]).view(-1, 1, 1).expand(-1, CHANNELS, 1)
            colors = torch.cat([colors, gray], dim=2)
        if blur:
            blurs = torch.tensor([change.blur for change in changes])
        return cls(matrices=matrices, colors=colors, blurs=blurs, blur_radius=math.ceil(BLUR_DEVIATIONS * blur))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in memory that a GPU copies from while the CPU goes on."""
        return self._each(torch.Tensor.pin_memory)

    def of_pictures(self, places: torch.Tensor) -> Self:
        """Those of some pictures of the batch."""
        return self._each(lambda tensor: tensor[places])

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(
            self,
            matrices=None if self.matrices is None else function(self.matrices),
            colors=None if self.colors is None else function(self.colors),
            blurs=None if self.blurs is None else function(self.blurs),
        )


def seed_of(*parts: int | str) -> int:
    """A seed out of what a draw depends on, such as (seed, iteration, slot); parts that differ give other seeds."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "little") & SEED_MASK


def changes_anything(augmentations: job_spec_pb2.Augmentations) -> bool:
    """Whether any augmentation is switched on."""
    return any(value for _, value in augmentations.ListFields())


def strengthened(augmentations: job_spec_pb2.Augmentations) -> job_spec_pb2.Augmentations:
    """The same, but nothing weaker than STRONG: for pictures that shall look unlike each other."""
    strong = job_spec_pb2.Augmentations()
    strong.CopyFrom(augmentations)
    for name, value in STRONG.items():
        setattr(strong, name, max(value, getattr(strong, name)))
    return strong


def change_of(augmentations: job_spec_pb2.Augmentations, canvas: Canvas, seed: int) -> Change:
    """Draw one picture's change."""
    draws = torch.rand(DRAWS, generator=torch.Generator().manual_seed(seed)).tolist()
    signed = [2 * draw - 1 for draw in draws]
    color, gray = _color(augmentations, signed[6:9], signed[9], draws[10])
    blur = draws[11] * augmentations.blur * min(canvas.width, canvas.height)
    return Change(
        matrix=_matrix(augmentations, canvas, draws),
        color=color,
        gray=gray,
        blur=blur if blur >= BLUR_PIXELS_MIN else 0.0,
    )


def augment(images: torch.Tensor, changes: Changes, fill: float) -> torch.Tensor:
    """Change pictures of floats from 0 to 1, batch x 3 x height x width. What is moved in from outside is `fill`."""
    if changes.blurs is not None:
        images = _blurred(images, changes.blurs, changes.blur_radius)
    if changes.colors is not None:
        images = _tinted(images, changes.colors)
    if changes.matrices is not None:
        images = _moved(images, changes.matrices, fill)
    return images


def _matrix(augmentations: job_spec_pb2.Augmentations, canvas: Canvas, draws: Sequence[float]) -> Matrix:
    """Crop, flips, turn, zoom and shift, in this order."""
    width, height = canvas.width, canvas.height
    matrix = IDENTITY
    if augmentations.crop:
        side = math.sqrt(1 - draws[12] * augmentations.crop)
        left, top = draws[13] * (1 - side) * width, draws[14] * (1 - side) * height
        matrix = (1 / side, 0.0, -left / side, 0.0, 1 / side, -top / side)
    if draws[0] < augmentations.horizontal_flip:
        matrix = product(flip_horizontally(width), matrix)
    if draws[1] < augmentations.vertical_flip:
        matrix = product(flip_vertically(height), matrix)
    if augmentations.rotation_degrees or augmentations.zoom:
        degrees = (2 * draws[2] - 1) * augmentations.rotation_degrees
        zoom = (1 + augmentations.zoom) ** (2 * draws[5] - 1)
        matrix = product(turn_and_zoom(degrees, zoom, width / 2, height / 2), matrix)
    if augmentations.translation:
        right, down = ((2 * draw - 1) * augmentations.translation for draw in draws[3:5])
        matrix = product(shift(right * width, down * height), matrix)
    return matrix


def _color(
    augmentations: job_spec_pb2.Augmentations, signed: Sequence[float], hue: float, gray: float
) -> tuple[Color, float]:
    """Brightness, contrast, saturation, hue and no colour at all, as one matrix and a share of the mean brightness."""
    brightness, contrast, saturation = (
        1 + draw * value
        for draw, value in zip(
            signed, (augmentations.brightness, augmentations.contrast, augmentations.saturation), strict=True
        )
    )
    gray_drawn = gray < augmentations.gray
    if not (augmentations.saturation or augmentations.hue or gray_drawn):
        if brightness == contrast == 1:
            return EVERY_COLOR, 0.0
        scale = brightness * contrast
        return (scale, 0.0, 0.0, 0.0, scale, 0.0, 0.0, 0.0, scale), (1 - contrast) * brightness
    # None of the three changes a gray, so that what contrast adds goes through them as it is.
    if gray_drawn:
        tint = GRAY
    else:
        angle = 2 * math.pi * hue * augmentations.hue
        cosine, sine = saturation * math.cos(angle), saturation * math.sin(angle)
        turn = torch.tensor([(1, 0, 0), (0, cosine, -sine), (0, sine, cosine)], dtype=torch.float64)
        tint = FROM_YIQ @ turn @ TO_YIQ
    color = (tint * (brightness * contrast)).flatten().tolist()
    return tuple(color), (1 - contrast) * brightness


def _moved(images: torch.Tensor, matrices: torch.Tensor, fill: float) -> torch.Tensor:
    # A grid by hand: affine_grid takes five times as long on a CPU. Both sides count from -1 to 1.
    sizes = (images.shape[3], images.shape[2])
    across, down = (torch.arange(size, device=images.device) + 0.5 for size in sizes)
    grid = images.new_empty((len(images), sizes[1], sizes[0], 2))
    for axis, size in enumerate(sizes):
        a, b, c = (2 / size * each[:, None] for each in matrices[:, axis].unbind(dim=1))
        torch.add((a * across)[:, None, :], (b * down + (c - 1))[:, :, None], out=grid[..., axis])
    sampled = functional.grid_sample(images - fill if fill else images, grid, align_corners=False)
    return sampled.add_(fill) if fill else sampled


def _tinted(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    flat = images.flatten(2)
    # Numbers of Python and no tensor of them: on a GPU that would wait for all that is under way.
    red, green, blue = (share * mean for share, mean in zip(LUMA, flat.mean(dim=2).unbind(dim=1), strict=True))
    offset = colors[:, :, 3:] * (red + green + blue)[:, None, None]
    return torch.baddbmm(offset, colors[:, :, :3], flat).clamp_(0, 1).view(images.shape)


def _blurred(images: torch.Tensor, blurs: torch.Tensor, radius: int) -> torch.Tensor:
    radius = min(radius, images.shape[2] - 1, images.shape[3] - 1)  # reflection reaches no further
    steps = torch.arange(-radius, radius + 1, device=images.device)
    # A picture without a blur has a deviation so small that its kernel is a single one.
    deviations = blurs.clamp(min=1e-3)[:, None]
    kernels = torch.exp(-0.5 * (steps / deviations) ** 2) * (steps.abs() <= (BLUR_DEVIATIONS * deviations).ceil())
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    if images.device.type == "cpu":
        smoothed = torch.empty_like(images)
        for image, kernel, into in zip(images, kernels, smoothed, strict=True):
            _smooth(image, kernel, into)
        return smoothed
    batch, channels, height, width = images.shape
    kernels = kernels.repeat_interleave(channels, dim=0)
    # One group for each channel of each picture, so that every picture has a kernel of its own.
    padded = functional.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernels[:, None, None, :], groups=batch * channels)
    both = functional.conv2d(across, kernels[:, None, :, None], groups=batch * channels)
    return both.view(images.shape)


def _smooth(image: torch.Tensor, kernel: torch.Tensor, into: torch.Tensor) -> None:
    """One picture, 3 x height x width. On a CPU sums of shifted pictures take a fraction of a convolution's time.

    A few rows of one channel after the other: what is summed up stays in the core's own cache.
    """
    weights = kernel[len(kernel) // 2 :].tolist()
    weights = weights[: 1 + max(index for index, weight in enumerate(weights) if weight > 0)]
    radius = len(weights) - 1
    _, height, width = image.shape
    padded = functional.pad(image, (radius,) * 4, mode="reflect")
    for rows_of, rows_into in zip(padded, into, strict=True):
        for top in range(0, height, BLURRED_ROWS):
            rows = min(BLURRED_ROWS, height - top)
            across = _weighted(rows_of[top : top + rows + 2 * radius], weights, dim=1, length=width)
            rows_into[top : top + rows] = _weighted(across, weights, dim=0, length=rows)


def _weighted(padded: torch.Tensor, weights: Sequence[float], *, dim: int, length: int) -> torch.Tensor:
    """The sum of neighbours to both sides; `weights` from the middle outwards."""
    radius = len(weights) - 1
    total = padded.narrow(dim, radius, length) * weights[0]
    for step in range(1, radius + 1):
        total.add_(padded.narrow(dim, radius - step, length), alpha=weights[step])
        total.add_(padded.narrow(dim, radius + step, length), alpha=weights[step])
    return total
