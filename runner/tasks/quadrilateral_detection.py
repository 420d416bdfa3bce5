"""Quadrilateral detection: four corners with a category.

Points say boxes as in object detection, and where the corners lie in them. Points learn by the boxes around the
quadrilaterals, so that it does not matter which way around these go. Metrics are COCO's by the overlap of polygons.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch.nn import functional

from runner.tasks.anchor_free import OVERLAP_MAX, AnchorFree, Dense, within
from runner.tasks.average_precision import OverlapPrecision
from runner.tasks.names import index_reader, missing, read_names
from runner.tasks.objects import (
    Integers,
    Objects,
    PlacedObjects,
    crowded_boxes,
    on_canvas,
    read_list,
    read_numbers,
    read_objects,
    stacked,
)
from runner.tasks.polygon import polygon_overlaps, polygons_of, without_doubles
from runner.tasks.shapes import Shape, counted, with_shapes
from runner.tasks.task import (
    Batched,
    Decoded,
    Evaluation,
    Features,
    Head,
    Losses,
    MetricValue,
    Outputs,
    Prediction,
    Task,
    Vocabulary,
)
from runner.tasks.task import WrongAnnotation as Wrong
from runner.trainer.view import Floats, View

CORNERS = 4
CORNER_WEIGHT = 2.0
"""What the corners' part of the loss counts beside the scores'."""
SMOOTH_SHARE = 0.05
"""Of an object's size: from here on a distance counts as it is, below it by its square."""
BOX_OVERLAP_MAX = 0.9
"""Boxes around slanted quadrilaterals overlap where these do not: doubles are told by the polygons, in the end."""
BOX_CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
"""Where the corners of a box lie in it: what a point says before it has learned anything."""
ORDERS = [[(first + step * turn) % CORNERS for step in range(CORNERS)] for turn in (1, -1) for first in range(CORNERS)]
"""All ways around a quadrilateral, the annotated one first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quads:
    """The quadrilaterals of one image; `corners` are (n, 4, 2) in pixels of the image."""

    objects: Objects
    corners: Floats


class QuadrilateralDetection(Task):
    """The task."""

    name = "quadrilateral detection"
    metrics: Mapping[str, bool] = dict.fromkeys(("map", "map_50", "map_75", "mean_recall"), True)

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"categories": read_names(metadata, "categories", "a category")}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["categories"], vocabulary["categories"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Quads]:
        index_of = index_reader(vocabulary["categories"], "category", "categories")

        def read(annotation: Any) -> Quads:
            items = read_list(annotation)
            corners = np.array([read_numbers(each, "quad", (CORNERS, 2)) for each in items]).reshape(-1, CORNERS, 2)
            return Quads(objects=read_objects(items, index_of, _box_of), corners=corners)

        return read

    def shown(self, vocabulary: Vocabulary, target: Quads, view: View) -> Prediction:
        objects = target.objects
        return Quadrilaterals(
            names=vocabulary["categories"],
            corners=target.corners,
            categories=objects.categories,
            scores=objects.scores,
        )

    def place(self, target: Quads, view: View) -> PlacedObjects:
        corners = view.points(target.corners)
        boxes, ignored, there = on_canvas(_around(corners), target.objects.ignored, view)
        return PlacedObjects(
            boxes=boxes[there],
            categories=target.objects.categories[there],
            ignored=ignored[there],
            more={"corners": corners[there].astype(np.float32)},
        )

    def batch(self, placed: Sequence[PlacedObjects]) -> Batched:
        return stacked(placed)

    def crowded(self, vocabulary: Vocabulary, view: View) -> PlacedObjects:
        boxes = crowded_boxes(view)
        count = len(boxes)
        shares = np.array(BOX_CORNERS, np.float32)
        corners = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + shares * (boxes[:, None, 2:] - boxes[:, None, :2])
        categories = np.arange(count) % len(vocabulary["categories"])
        return PlacedObjects(
            boxes=boxes, categories=categories, ignored=np.zeros(count, np.bool_), more={"corners": corners}
        )

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.quadrilateral_detection
        layers = AnchorFree(
            out_channels,
            level_min=parameters.level_min,
            channels=parameters.channels,
            categories=len(vocabulary["categories"]),
            extras=2 * CORNERS,
        )
        return QuadrilateralHead(layers, vocabulary["categories"], parameters.instances_max, parameters.ordered)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadrilaterals(Prediction):
    """What was found, the likeliest first; `corners` are n x 4 x 2 in pixels of the image."""

    names: Sequence[str]
    corners: Floats
    categories: Integers
    scores: Floats

    def to_json(self) -> dict[str, Any]:
        return {"objects": self.annotation()}

    def annotation(self) -> list[dict[str, Any]]:
        """With scores."""
        found = zip(self.categories.tolist(), self.scores.tolist(), self.corners.tolist(), strict=True)
        return [{"category": self.names[index], "score": score, "quad": quad} for index, score, quad in found]

    def summary(self) -> str:
        return counted(self.names, self.categories, self.scores)

    def draw(self, image: Image.Image) -> Image.Image:
        found = zip(self.corners, self.categories.tolist(), self.scores.tolist(), strict=True)
        return with_shapes(image, self.names, [Shape(outline=o, category=c, score=s) for o, c, s in found])


class QuadrilateralHead(Head):
    """Points that say boxes, and four corners in each."""

    _orders: torch.Tensor
    _box_corners: torch.Tensor

    def __init__(self, layers: AnchorFree, names: Sequence[str], instances_max: int, ordered: bool) -> None:
        super().__init__()
        self._names = tuple(names)
        self._instances_max = instances_max
        self.register_buffer("_orders", torch.tensor(ORDERS[:1] if ordered else ORDERS), persistent=False)
        self.register_buffer("_box_corners", torch.tensor(BOX_CORNERS), persistent=False)
        self.layers = layers

    def forward(self, features: Features) -> Outputs:
        outputs: Outputs = self.layers(features)
        return outputs

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Beside scores and boxes how far the corners are off, as a share of the quadrilateral's size."""
        dense = self.layers.dense(outputs)
        losses, matches = self.layers.losses(dense, targets)
        found = self._corners(dense)[matches.images, matches.points]
        off = distance(found, targets["corners"][matches.objects], targets["boxes"][matches.objects], self._orders)
        return {**losses, "corner": CORNER_WEIGHT * (off * matches.weights).sum()}

    def decode(self, outputs: Outputs) -> Decoded:
        """Corners on the canvas, batch x instances x 4 x 2, scores and categories; a score of 0 is no object."""
        dense = self.layers.dense(outputs)
        kept = self.layers.kept(dense, self._instances_max, BOX_OVERLAP_MAX)
        return {"corners": kept.of(self._corners(dense)), "scores": kept.scores, "categories": kept.categories}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Quadrilaterals]:
        return [
            self._prediction(*rows, view=view)
            for *rows, view in zip(decoded["corners"], decoded["scores"], decoded["categories"], views, strict=True)
        ]

    def evaluation(self) -> Evaluation:
        return _Found(self._names)

    def _corners(self, dense: Dense) -> torch.Tensor:
        """Batch x points x 4 x 2, on the canvas."""
        shares = torch.unflatten(dense.extras, 2, (CORNERS, 2))
        return within(dense.boxes, shares + self._box_corners)

    def _prediction(
        self, corners: torch.Tensor, scores: torch.Tensor, categories: torch.Tensor, *, view: View
    ) -> Quadrilaterals:
        there = scores.numpy() > 0
        places = view.inverse(corners.numpy()[there].astype(np.float64))
        found, likely = categories.numpy()[there], scores.numpy()[there].astype(np.float64)
        kept = without_doubles(polygons_of(places), found, OVERLAP_MAX)
        return Quadrilaterals(names=self._names, corners=places[kept], categories=found[kept], scores=likely[kept])


def distance(found: torch.Tensor, wanted: torch.Tensor, boxes: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """How far corners, n x 4 x 2, are off in the mean, as shares of a box's size, in the order where that is least.

    `orders` are places of corners, orders x 4.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1).sqrt()[:, None, None, None]
    ordered = wanted[:, orders] / size  # n x orders x 4 x 2
    said = (found[:, None] / size).expand_as(ordered)
    off = functional.smooth_l1_loss(said, ordered, beta=SMOOTH_SHARE, reduction="none")
    return off.sum(dim=3).mean(dim=2).amin(dim=1)


class _Found:
    """COCO's metrics, by the overlap of polygons."""

    def __init__(self, names: Sequence[str]) -> None:
        self._precision = OverlapPrecision(names)

    def add(self, prediction: Quadrilaterals, target: Quads, view: View) -> None:
        crowd = target.objects.ignored
        self._precision.add(
            polygon_overlaps(polygons_of(prediction.corners), polygons_of(target.corners), crowd),
            found=prediction.categories,
            scores=prediction.scores,
            truth=target.objects.categories,
            crowd=crowd,
        )

    def values(self) -> list[MetricValue]:
        return self._precision.values()

    def text(self) -> list[str]:
        return []


def _around(corners: Floats) -> Floats:
    """Boxes around corners, (n, 4, 2)."""
    found: Floats = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return found


def _box_of(item: Mapping[str, Any]) -> Floats:
    box: Floats = _around(read_numbers(item, "quad", (CORNERS, 2))[None])[0]
    if not (box[0] < box[2] and box[1] < box[3]):
        raise Wrong(f"`quad` must enclose an area, {item.get('quad')!r:.100} was found")
    return box
