"""Which points learn which object: those whose own score and box agree best with it (TOOD, Feng et al. 2021).

Three rules are added. A box grows to one stride for the question which points lie inside, so that a small object always
has a point; where no point agrees at all the nearest ones learn; and pairs of a point and an object are listed only
where the point is inside, so many at a time, so that memory does not grow with the densest image.

How many pairs there are follows from the boxes alone, which the CPU knows: no shape is read from the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

POINTS_EACH_MAX = 10
"""Points that learn one object."""
SCORE_POWER = 0.5
OVERLAP_POWER = 6.0
PAIRS_MAX = 2**20
"""Pairs of a point and an object that are looked at together."""


class Grid(NamedTuple):
    """The points of one level: the centres of its cells, row by row. `first` is the number of the first one."""

    first: int
    height: int
    width: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The points that learn each object, objects x POINTS_EACH_MAX, those that agree best first.

    Where `there` is false it is one of the same image that does not: the object has no more, or another learns there.
    """

    points: torch.Tensor
    """They count through the batch: those of the second image follow those of the first."""
    there: torch.Tensor
    agreement: torch.Tensor
    """From 0 to 1: what a point's score shall be. The best of an object's points has its overlap; 0: not there."""


def points_of(grids: Sequence[Grid], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The points of all levels, points x 2 as x and y on the canvas, and their strides."""
    places, strides = [], []
    for grid in grids:
        x = (torch.arange(grid.width, device=device) + 0.5) * grid.stride
        y = (torch.arange(grid.height, device=device) + 0.5) * grid.stride
        places.append(torch.stack([x.expand(grid.height, -1), y[:, None].expand(-1, grid.width)], dim=-1).view(-1, 2))
        strides.append(torch.full((grid.height * grid.width,), float(grid.stride), device=device))
    return torch.cat(places), torch.cat(strides)


def points_in_regions(regions: torch.Tensor, counts: torch.Tensor, grids: Sequence[Grid], images: int) -> torch.Tensor:
    """Which points lie in a region, images x points. `counts`: how many regions, n x 4 as boxes, each image has."""
    image = torch.repeat_interleave(counts, output_size=len(regions))
    found = []
    for grid in grids:
        low, high = _cells(regions, regions.new_zeros(()), grid)
        # Every region begins at one corner and ends at the next: summed up, that says how many lie over each cell.
        corners = regions.new_zeros((images, grid.height + 1, grid.width + 1), dtype=torch.int32)
        for (x, y), sign in zip(
            ((low[:, 0], low[:, 1]), (high[:, 0], high[:, 1]), (low[:, 0], high[:, 1]), (high[:, 0], low[:, 1])),
            (1, 1, -1, -1),
            strict=True,
        ):
            corners.index_put_((image, y, x), torch.full_like(x, sign, dtype=torch.int32), accumulate=True)
        found.append((corners.cumsum(dim=1).cumsum(dim=2) > 0)[:, :-1, :-1].flatten(1))
    return torch.cat(found, dim=1)


def pairs_inside(
    boxes: torch.Tensor, sizes: Sequence[int], grids: Sequence[Grid]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pairs of a point and a box that it lies in, as numbers of points and of boxes, in the order of the boxes.

    Boxes count as at least one stride wide and high. `sizes` says how many pairs each grid has; the third tensor, how
    many each box has.
    """
    of_points, of_boxes, of_each = [], [], []
    for grid, size in zip(grids, sizes, strict=True):
        low, high = _cells(boxes, boxes.new_full((), grid.stride), grid)
        across, down = (high - low).unbind(dim=1)
        counts = across * down
        box = torch.repeat_interleave(counts, output_size=size)
        place = torch.arange(size, device=boxes.device) - (counts.cumsum(0) - counts)[box]
        column, row = low[box, 0] + place % across[box], low[box, 1] + place // across[box]
        of_points.append(grid.first + row * grid.width + column)
        of_boxes.append(box)
        of_each.append(counts)
    found, owner = torch.cat(of_points), torch.cat(of_boxes)
    order = owner.argsort(stable=True)
    return found[order], owner[order], torch.stack(of_each).sum(dim=0)


@torch.no_grad()
def assign(
    grids: Sequence[Grid],
    *,
    logits: torch.Tensor,
    predicted: torch.Tensor,
    boxes: torch.Tensor,
    categories: torch.Tensor,
    images: torch.Tensor,
    on_host: NDArray[np.float32],
) -> Assignment:
    """Of a batch: points x categories logits and points x 4 predicted boxes, those of one image after the other.

    `boxes`, `categories` and `images` are of the objects. All floats are float32. `on_host` is `boxes` as the CPU has
    them: how many pairs there are is known from these, and a GPU is never waited for.
    """
    sizes = _pair_counts(on_host, grids)
    found = [
        _best(grids, logits, predicted, boxes[part], categories[part], images[part], sizes[part].sum(axis=0).tolist())
        for part in _turns(sizes.sum(axis=1))
    ]
    points, there, overlap, agreement = (torch.cat(each) for each in zip(*found, strict=True))
    # A point that several objects want learns the one that it overlaps most, and of equal ones the first.
    row = torch.arange(points.numel(), device=points.device).view_as(points)
    nobody = row.new_full((len(logits),), points.numel())
    most = overlap.new_full((len(logits),), -1).scatter_reduce(0, points.flatten(), overlap.flatten(), "amax")
    wins = torch.where(overlap == most[points], row, points.numel())
    there = there & (nobody.scatter_reduce(0, points.flatten(), wins.flatten(), "amin")[points] == row)
    overlap, agreement = overlap * there, agreement * there
    share = agreement / agreement.amax(dim=1, keepdim=True).clamp(min=torch.finfo(agreement.dtype).tiny)
    return Assignment(points=points, there=there, agreement=share * overlap.amax(dim=1, keepdim=True))


def overlaps(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The intersection over union of each pair of boxes, n x 4 each."""
    inside = (first[:, 2:].minimum(second[:, 2:]) - first[:, :2].maximum(second[:, :2])).clamp(min=0).prod(dim=1)
    area = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return inside / (area - inside).clamp(min=torch.finfo(first.dtype).tiny)


def _cells(boxes: torch.Tensor, side_min: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """The first cells whose centre lies in boxes of at least a size, and those behind the last: n x 2 as x and y."""
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).maximum(side_min) / 2
    low, high = (
        # Cells whose centre, (cell + 0.5) * stride, lies in [low, high).
        torch.stack([each[:, 0].clamp(0, grid.width), each[:, 1].clamp(0, grid.height)], dim=1)
        for each in (torch.ceil(end / grid.stride - 0.5).long() for end in (center - half, center + half))
    )
    return low, high.maximum(low)


def _pair_counts(boxes: NDArray[np.float32], grids: Sequence[Grid]) -> NDArray[np.int64]:
    """As `pairs_inside` finds them, boxes x grids. Both compute in the same steps, so that both round alike."""
    center, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    found = np.zeros((len(boxes), len(grids)), np.int64)
    for place, grid in enumerate(grids):
        half = np.maximum(side, np.float32(grid.stride)) / 2
        low, high = (
            np.ceil(end / grid.stride - 0.5).astype(np.int64).clip(0, (grid.width, grid.height))
            for end in (center - half, center + half)
        )
        found[:, place] = np.maximum(high - low, 0).prod(axis=1)
    return found


def _turns(pairs: NDArray[np.int64]) -> list[slice]:
    """Objects, which have so many pairs each, in turns of at most about PAIRS_MAX of these."""
    turn = pairs.cumsum() // PAIRS_MAX
    bounds = [0, *(np.flatnonzero(turn[1:] != turn[:-1]) + 1).tolist(), len(pairs)]
    return [slice(first, last) for first, last in itertools.pairwise(bounds)]


def _best(
    grids: Sequence[Grid],
    logits: torch.Tensor,
    predicted: torch.Tensor,
    boxes: torch.Tensor,
    categories: torch.Tensor,
    images: torch.Tensor,
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best points of some objects, objects x POINTS_EACH_MAX, which are there, overlaps, and how well they agree.

    What is not there is the object's last point once more, with an overlap of -1.
    """
    places, _ = points_of(grids, boxes.device)
    points, objects, counts = pairs_inside(boxes, sizes, grids)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearness = (places[points] - center[objects]).square().sum(dim=1)
    points = points + images[objects] * len(places)
    overlap = overlaps(predicted[points], boxes[objects])
    agreement = logits[points, categories[objects]].sigmoid() ** SCORE_POWER * overlap**OVERLAP_POWER
    order = nearness.argsort(stable=True)
    # By object, then falling agreement; the order before decides between equal ones. 64 bits tell the two apart.
    order = order[(2.0 * objects - agreement.double())[order].argsort(stable=True)]
    rank = torch.arange(POINTS_EACH_MAX, device=boxes.device)
    there = rank < counts[:, None]
    chosen = order[(counts.cumsum(0) - counts)[:, None] + rank.minimum(counts[:, None] - 1)]
    return points[chosen], there, torch.where(there, overlap[chosen], -1), torch.where(there, agreement[chosen], 0)


def agreement_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - CIoU of each pair of boxes (Zheng et al. 2020), n x 4 each: overlap, distance and shape."""
    overlap = overlaps(found, wanted)
    tiny = torch.finfo(found.dtype).eps
    around = (found[:, 2:].maximum(wanted[:, 2:]) - found[:, :2].minimum(wanted[:, :2])).square().sum(dim=1)
    apart = ((found[:, :2] + found[:, 2:]) - (wanted[:, :2] + wanted[:, 2:])).square().sum(dim=1) / 4
    (width, height), (wanted_width, wanted_height) = (
        (boxes[:, 2:] - boxes[:, :2]).clamp(min=tiny).unbind(dim=1) for boxes in (found, wanted)
    )
    shape = 4 / math.pi**2 * (torch.atan(wanted_width / wanted_height) - torch.atan(width / height)).square()
    with torch.no_grad():
        share = shape / (1 - overlap + shape).clamp(min=tiny)
    return 1 - overlap + apart / around.clamp(min=tiny) + share * shape
