"""What each head would say on a small canvas if it said exactly what a batch of placed targets says."""

from __future__ import annotations

from typing import Any

import torch

from runner.tasks import dynamic_mask, quadrilateral_detection
from runner.tasks.task import Outputs, Task
from runner.trainer.image import Canvas
from tests.runner.trainer.drawn_annotations import COLORS

CANVAS = Canvas(height=32, width=48, centered=True, fill=0.0, enlarge=True)


def one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    return 30.0 * torch.nn.functional.one_hot(index, count).float()


def through_sigmoid(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    share = (values - low) / (high - low)
    return torch.logit((share + 0.05) / 1.1)


def ideal_classes(task: Task, batched: Any) -> Outputs:
    classes = batched["classes"].long()
    return {"logits": one_hot((classes - 1).clamp(min=0), len(COLORS)).permute(0, 3, 1, 2)}


def ideal_depths(task: Task, batched: Any) -> Outputs:
    """What the map does not say is as in the row below: a pixel of the canvas may lie in both."""
    depths = batched["depth"]
    depths = torch.where(depths.isnan(), depths.roll(-1, dims=1), depths)
    return {"output": through_sigmoid(depths.nan_to_num(1), 1, 5)}


def ideal_quads(task: Task, batched: Any) -> Outputs:
    low, high = batched["boxes"].view(-1, 2, 2).unbind(dim=1)
    shares = (batched["corners"] - ((low + high) / 2)[:, None]) / (high - low)[:, None]
    return ideal_points(batched, (shares - torch.tensor(quadrilateral_detection.BOX_CORNERS)).flatten(1))


def ideal_poses(task: Task, batched: Any) -> Outputs:
    low, high = batched["boxes"].view(-1, 2, 2).unbind(dim=1)
    shares = (batched["places"] - ((low + high) / 2)[:, None]) / (high - low)[:, None]
    shares = shares * batched["told"][:, None, None]  # where nothing is known, somewhere inside
    there = 60 * (batched["present"].float() - 0.5)
    return ideal_points(batched, torch.cat([shares.flatten(1), there], dim=1), 1)


def ideal_instances(task: Task, batched: Any) -> Outputs:
    """The first eight objects have a map of features each, from which their weights read them."""
    images, most = len(batched["counts"]), int(batched["counts"].max())
    size = (CANVAS.height >> 1, CANVAS.width >> 1)
    features = torch.zeros(images, dynamic_mask.FEATURES, *size)
    weights = torch.zeros(len(batched["boxes"]), dynamic_mask.WEIGHTS)
    wide = dynamic_mask.FEATURES + dynamic_mask.PLACES
    at = 0
    assert most <= dynamic_mask.FEATURES
    for image, count in enumerate(batched["counts"].tolist()):
        covered = dynamic_mask.coverage(batched["masks"][at : at + count], *size, 2)
        features[image, :count] = covered
        for place in range(count):
            weights[at + place, place] = 1.0  # the first unit of the first layer looks at its map
            weights[at + place, wide * 8 + 8] = 1.0
            weights[at + place, wide * 8 + 8 + 64 + 8] = 60.0
            weights[at + place, -1] = -30.0
        at += count
    return {**ideal_points(batched, weights), "features": features}


def ideal_panoptic(task: Task, batched: Any) -> Outputs:
    semantic = one_hot((batched["classes"].long() - 1).clamp(min=0), 4).permute(0, 3, 1, 2)
    return {**ideal_instances(task, batched), "semantic": semantic}


def ideal_points(batched: Any, extras: torch.Tensor | None = None, categories: int = 2) -> dict[str, torch.Tensor]:
    """The nth object of an image is said by the nth point of level 2; all others say nothing. `extras`: by object."""
    images = len(batched["counts"])
    outputs = {}
    for level in (2, 3):
        size = (CANVAS.height >> level, CANVAS.width >> level)
        outputs[f"scores_{level}"] = torch.full((images, categories, *size), -30.0)
        outputs[f"boxes_{level}"] = torch.zeros(images, 4, *size)
        if extras is not None:
            outputs[f"extras_{level}"] = torch.zeros(images, extras.shape[1], *size)
    at = 0
    for image, count in enumerate(batched["counts"].tolist()):
        for point in range(count):
            row, column = divmod(point, CANVAS.width >> 2)
            low, high = batched["boxes"][at].view(2, 2)
            shift = (low + high) / 2 / 4 - torch.tensor([column + 0.5, row + 0.5])
            outputs["scores_2"][image, batched["categories"][at], row, column] = 30.0
            outputs["boxes_2"][image, :, row, column] = torch.cat([shift, ((high - low) / 20).log()])
            if extras is not None:
                outputs["extras_2"][image, :, row, column] = extras[at]
            at += 1
    return outputs


def ideal_text(task: Task, batched: Any) -> Outputs:
    """A token in every other column."""
    columns = torch.zeros(len(batched["said"]), 2 * batched["said"].shape[1] + 1, dtype=torch.int64)
    columns[:, 1::2] = batched["said"]
    return {"logits": one_hot(columns, 1 + len(TOKENS))}


def ideal_pictures(task: Task, batched: Any) -> Outputs:
    picture = torch.rand(batched["inside"].shape)[:, None].repeat(1, 3, 1, 1)
    return {"again": picture, "picture": picture}


def ideal_distances(task: Task, batched: Any) -> Outputs:
    strange = torch.tensor([state == "anomalous" for state in STATES]).float()
    return {"distance": strange[:, None, None].repeat(1, CANVAS.height, CANVAS.width)}


def ideal_embeddings(task: Task, batched: Any) -> Outputs:
    """Four numbers that say nothing of each other."""
    bits = torch.arange(8)[:, None] >> torch.arange(3) & 1
    signs = 1.0 - 2 * bits
    return {"embedding": torch.cat([signs, signs.prod(dim=1, keepdim=True)], dim=1)}


TOKENS = ["a", "b", "c", "long"]
STATES = ["normal", "normal", "normal", "normal", "anomalous", "anomalous", None, "anomalous"]
