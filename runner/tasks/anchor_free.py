"""Dense prediction of objects without anchors: what the heads for boxes, quads, keypoints and instances share.

Every cell of every level is a point that may say one object: a score for each category, a box, and whatever else the
task adds. Two towers with group norms look at all levels with the same weights; before them each level gets what the
coarser ones see. A box is a shift of the point's place and a size, in strides of its level, so that it need not lie
around its point.

A loss is divided by the image's own weight: an image counts as much in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from runner.tasks.assignment import Grid, agreement_loss, assign, points_in_regions, points_of
from runner.tasks.task import Batched, Decoded, Features, Losses, Outputs, WrongAnnotation
from runner.trainer.norm import group_norm

GROUPS = 8
LAYERS = 2
"""Convolutions of each tower."""
SIZE_STRIDES = 5.0
"""Sides of a box that nothing was learned of."""
SIZE_LOG_MAX = 6.0
"""Logarithm of how much larger or smaller a box may be."""
OBJECTS_EXPECTED = 5.0
"""Of one image, before anything was learned: scores begin as low as that (Lin et al. 2017)."""
PRIOR_MAX = 0.1
BOX_WEIGHT = 2.0
"""What the boxes' part of the loss counts beside the scores'."""
AGREEMENT_MIN = 0.05
"""A point that learns an object has at least so much of a part in where it lies."""
SCORE_MIN = 0.01
"""What is less likely is never told."""
CANDIDATES_MAX = 1_000
"""Pairs of a point and a category of which doubles are sorted out. A clock is never asked."""
OVERLAP_MAX = 0.6
"""Of two objects of one category with a larger overlap one is the other's double."""
DOUBLES_DEEP_MAX = 16
"""Links of a chain of doubles that an exported model looks through."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What all points of all levels say: batch x points x …, float32, on the canvas."""

    grids: Sequence[Grid]
    logits: torch.Tensor
    boxes: torch.Tensor
    extras: torch.Tensor
    """What the task adds, as the convolution gave it."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The points that learn an object, POINTS_EACH_MAX for each, the best first; all are one-dimensional.

    `weights` add up to one in each image that has an object, divided by the number of images. Whoever has fewer points
    has others in their stead, of weight 0.
    """

    images: torch.Tensor
    points: torch.Tensor
    objects: torch.Tensor
    """Places among the objects of the whole batch."""
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The objects that are told of each image, batch x instances, the likeliest first; a score of 0 is none."""

    points: torch.Tensor
    categories: torch.Tensor
    scores: torch.Tensor

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """What the kept points say, of batch x points x …."""
        places = self.points.view(*self.points.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, places)


class AnchorFree(nn.Module):
    """The layers. `extras`: numbers a point for the task's own."""

    def __init__(
        self, in_channels: Mapping[int, int], *, level_min: int, channels: int, categories: int, extras: int = 0
    ) -> None:
        """Levels below `level_min` are left out. Raises WrongAnnotation where none is left."""
        super().__init__()
        self.levels = sorted((level for level in in_channels if level >= max(level_min, 1)), reverse=True)
        if not self.levels:
            found = ", ".join(str(level) for level in sorted(in_channels) if level)
            raise WrongAnnotation(f"`level_min` is {level_min}, but there are levels {found}")
        self._categories = categories
        self.laterals = nn.ModuleDict({str(level): nn.Conv2d(in_channels[level], channels, 1) for level in self.levels})
        self.norms = nn.ModuleDict({str(level): group_norm(channels, GROUPS) for level in self.levels})
        self.score_tower, self.box_tower = _tower(channels), _tower(channels)
        self.scores = nn.Conv2d(channels, categories, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.extras = nn.Conv2d(channels, extras, 3, padding=1) if extras else None
        for last in (self.scores, self.boxes, self.extras):
            if last is not None:
                nn.init.normal_(last.weight, std=0.01)
                nn.init.zeros_(last.bias)  # type: ignore[arg-type] # it has one

    def forward(self, features: Features) -> Outputs:
        """By level scores (logits), boxes and extras, batch x numbers x the level's height x its width."""
        outputs: dict[str, torch.Tensor] = {}
        points = sum(features[level].shape[2] * features[level].shape[3] for level in self.levels)
        prior = math.log(min(PRIOR_MAX, OBJECTS_EXPECTED / (self._categories * points)))
        coarser: torch.Tensor | None = None
        for level in self.levels:
            here = self.laterals[str(level)](features[level])
            if coarser is not None:
                here = here + functional.interpolate(coarser, size=here.shape[2:], mode="nearest")
            coarser = here
            here = functional.relu(self.norms[str(level)](here))
            outputs[f"scores_{level}"] = self.scores(self.score_tower(here)) + prior
            placed = self.box_tower(here)
            outputs[f"boxes_{level}"] = self.boxes(placed)
            if self.extras is not None:
                outputs[f"extras_{level}"] = self.extras(placed)
        return outputs

    def dense(self, outputs: Outputs) -> Dense:
        """What outputs say, point by point."""
        grids: list[Grid] = []
        flat: dict[str, list[torch.Tensor]] = {"scores": [], "boxes": [], "extras": []}
        first = 0
        for level in self.levels:
            height, width = outputs[f"scores_{level}"].shape[2:]
            grids.append(Grid(first, height, width, 2**level))
            first += height * width
            for name, parts in flat.items():
                if f"{name}_{level}" in outputs:
                    parts.append(outputs[f"{name}_{level}"].flatten(2).transpose(1, 2))
        logits, raw = torch.cat(flat["scores"], dim=1), torch.cat(flat["boxes"], dim=1)
        extras = torch.cat(flat["extras"], dim=1) if flat["extras"] else raw[..., :0]
        places, strides = points_of(grids, raw.device)
        center = places + raw[..., :2] * strides[:, None]
        half = raw[..., 2:].clamp(-SIZE_LOG_MAX, SIZE_LOG_MAX).exp() * (SIZE_STRIDES / 2 * strides[:, None])
        return Dense(grids=grids, logits=logits, boxes=torch.cat([center - half, center + half], dim=-1), extras=extras)

    def losses(self, dense: Dense, targets: Batched) -> tuple[Losses, Matches]:
        """Of scores and boxes; and which points learn which object."""
        wanted, weights, matches = _wanted(dense, targets)
        every = functional.binary_cross_entropy_with_logits(dense.logits, wanted, reduction="none")
        by_image = (every.sum(dim=2) * weights).sum(dim=1) / wanted.sum(dim=(1, 2)).clamp(min=1)
        boxes = agreement_loss(dense.boxes[matches.images, matches.points], targets["boxes"][matches.objects])
        return {"category": by_image.mean(), "box": BOX_WEIGHT * (boxes * matches.weights).sum()}, matches

    def kept(self, dense: Dense, instances_max: int, overlap_max: float = OVERLAP_MAX) -> Kept:
        """The likeliest points without their doubles, which overlap them by more than `overlap_max`."""
        scores = dense.logits.sigmoid().flatten(1)
        best, places = scores.topk(min(CANDIDATES_MAX, scores.shape[1]), dim=1)
        points, categories = places // self._categories, places % self._categories
        if torch.compiler.is_exporting():
            boxes = dense.boxes.gather(1, points[..., None].expand(-1, -1, 4))
            chosen, scores = _best_apart(boxes, categories, best, instances_max, overlap_max)
            return Kept(points=points.gather(1, chosen), categories=categories.gather(1, chosen), scores=scores)
        from torchvision.ops import nms  # as slow to import as torch: not for models that find no objects

        found: list[torch.Tensor] = []
        for image in range(len(scores)):
            likely = int((best[image] >= SCORE_MIN).sum())
            boxes = dense.boxes[image, points[image, :likely]]
            # Each category in a place of its own, so that none is another one's double.
            apart = categories[image, :likely, None] * (boxes.abs().amax() * 2 + 1) if likely else 0
            rows = nms(boxes + apart, best[image, :likely], overlap_max)[:instances_max]
            found.append(functional.pad(rows, (0, instances_max - len(rows)), value=-1))
        chosen = torch.stack(found)
        there, chosen = chosen >= 0, chosen.clamp(min=0)
        return Kept(
            points=points.gather(1, chosen),
            categories=categories.gather(1, chosen),
            scores=torch.where(there, best.gather(1, chosen), 0),
        )

    def told(self, dense: Dense, kept: Kept) -> Decoded:
        """Boxes on the canvas, batch x instances x 4, with their scores and categories."""
        return {"boxes": kept.of(dense.boxes), "scores": kept.scores, "categories": kept.categories}


def _best_apart(
    boxes: torch.Tensor, categories: torch.Tensor, scores: torch.Tensor, instances_max: int, overlap_max: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `nms` keeps them, in tensors whose shapes depend on nothing: places and scores, batch x `instances_max`.

    Whoever is overlapped by a likelier one that stays goes. That is said again and again, all at once: after n rounds
    the n first of each chain of doubles are settled.
    """
    low, high = (
        torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2]),
        torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:]),
    )
    both = (high - low).clamp(min=0).prod(dim=-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    overlap = both / (areas[:, :, None] + areas[:, None] - both)
    place = torch.arange(boxes.shape[1], device=boxes.device)
    doubles = (overlap > overlap_max) & (categories[:, :, None] == categories[:, None]) & (place[:, None] < place)
    beats = doubles.float()  # [image, i, j]: i is likelier than j and overlaps it
    likely = scores >= SCORE_MIN
    stays = likely
    for _ in range(DOUBLES_DEEP_MAX):
        beaten = torch.matmul(stays.float()[:, None], beats)[:, 0] > 0
        stays = likely & ~beaten
    # The earlier, the likelier; topk itself does not say what comes first of equal ones.
    order = torch.where(stays, boxes.shape[1] - place, 0).float()
    rank, chosen = functional.pad(order, (0, instances_max)).topk(instances_max, dim=1)
    there = rank > 0
    chosen = torch.where(there, chosen, 0)
    return chosen, torch.where(there, scores.gather(1, chosen), 0)


def within(boxes: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Points on the canvas, … x points x 2, out of places in boxes, … x 4: from -0.5 to 0.5 lies inside."""
    center, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return center[..., None, :] + shares * side[..., None, :]


def _wanted(dense: Dense, targets: Batched) -> tuple[torch.Tensor, torch.Tensor, Matches]:
    """The scores that are wanted, batch x points x categories, what each point weighs, and who learns what."""
    batch, points, categories = dense.logits.shape
    images = torch.repeat_interleave(targets["counts"], output_size=len(targets["boxes"]))
    found = assign(
        dense.grids,
        logits=dense.logits.detach().flatten(0, 1),
        predicted=dense.boxes.detach().flatten(0, 1),
        boxes=targets["boxes"],
        categories=targets["categories"],
        images=images,
        on_host=targets["host_boxes"].numpy(),
    )
    places = found.points * categories + targets["categories"][:, None]
    wanted = dense.logits.new_zeros(batch * points * categories)
    wanted = wanted.scatter_reduce(0, places.flatten(), found.agreement.flatten(), "amax").view_as(dense.logits)
    weights = dense.logits.new_ones((batch, points))
    if len(targets["regions"]):
        weights -= points_in_regions(targets["regions"], targets["region_counts"], dense.grids, batch).float()
        learned = weights.new_zeros(batch * points)
        learned = learned.scatter_reduce(0, found.points.flatten(), found.there.flatten().float(), "amax")
        weights = weights.maximum(learned.view_as(weights))
    share = torch.where(found.there, found.agreement.clamp(min=AGREEMENT_MIN), 0)
    of_image = share.new_zeros(batch).index_add(0, images, share.sum(dim=1)).clamp(min=torch.finfo(share.dtype).tiny)
    matches = Matches(
        images=images[:, None].expand_as(share).flatten(),
        points=(found.points - images[:, None] * points).flatten(),
        objects=torch.arange(len(share), device=share.device)[:, None].expand_as(share).flatten(),
        weights=(share / (of_image[images] * batch)[:, None]).flatten(),
    )
    return wanted, weights, matches


def _tower(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for _ in range(LAYERS)
            for layer in (
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                group_norm(channels, GROUPS),
                nn.ReLU(inplace=True),
            )
        )
    )
