"""Instance segmentation: a mask for each object.

Points say boxes as in object detection, and the weights of the layers that make each object's mask (`dynamic_mask`).
A mask is runs of pixels of the image as soon as it is predicted; metrics are COCO's by the overlap of masks.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks.anchor_free import AnchorFree
from runner.tasks.average_precision import METRICS, AveragePrecision
from runner.tasks.dynamic_mask import WEIGHTS, DynamicMask
from runner.tasks.instance_file import Instance, InstanceFile, instance_file, written_instances
from runner.tasks.map_file import Palette, read_palette
from runner.tasks.mask import Mask, Rle, area_of, decoded, encoded, enlarged, json_of, mask_in_image
from runner.tasks.names import missing, read_names
from runner.tasks.objects import (
    VISIBLE_SHARE_MIN,
    Flags,
    Integers,
    PlacedObjects,
    areas_of,
    boxes_in_image,
    crowded_boxes,
    stacked,
)
from runner.tasks.shapes import SCORE_TOLD_MIN, Shape, counted, with_shapes
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
from runner.trainer.view import Floats, View

BOX_MARGIN = 0.1
"""How far a mask may reach beyond its box, as a share of the box's sides."""
MASKS_CROWDED = 100
"""Of one image, in the rehearsal of a step."""
MASK_BYTES_AT_ONCE = 2**25
"""Masks that are placed together: each has a byte for each pixel while it is."""


class InstanceSegmentation(Task):
    """The task."""

    name = "instance segmentation"
    metrics = METRICS
    opens_files = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        categories = read_names(metadata, "categories", "a category")
        return {"categories": categories, "colors": read_palette(metadata, categories)}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["categories"], vocabulary["categories"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], InstanceFile]:
        palette = Palette(vocabulary["categories"], vocabulary["colors"])
        return lambda annotation: instance_file(annotation, folder, palette)

    def shown(self, vocabulary: Vocabulary, target: InstanceFile, view: View) -> Prediction:
        boxes, categories, masks = [np.empty((0, 4), np.float32)], [], []
        for each in target.read():
            mask = enlarged(each.mask, view.width, view.height)
            if mask.any():
                boxes.append(_bounds(mask[None]))
                categories.append(each.category)
                masks.append(encoded(mask))
        return Instances(
            palette=target.palette,
            width=view.width,
            height=view.height,
            boxes=np.concatenate(boxes).astype(np.float64),
            categories=np.array(categories, np.int64),
            scores=np.ones(len(masks)),
            masks=masks,
        )

    def place(self, target: InstanceFile, view: View) -> PlacedObjects:
        return place_masks(target.read(), view)

    def batch(self, placed: Sequence[PlacedObjects]) -> Batched:
        return stacked(placed)

    def crowded(self, vocabulary: Vocabulary, view: View) -> PlacedObjects:
        return crowded_masks(len(vocabulary["categories"]), view)

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.instance_segmentation
        layers = AnchorFree(
            out_channels,
            level_min=parameters.level_min,
            channels=parameters.channels,
            categories=len(vocabulary["categories"]),
            extras=WEIGHTS,
        )
        masks = DynamicMask(out_channels, level=parameters.mask_level, channels=parameters.channels)
        palette = Palette(vocabulary["categories"], vocabulary["colors"])
        return InstanceHead(layers, masks, palette, parameters.instances_max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances(Prediction):
    """What was found, the likeliest first, in pixels of the image, which has `width` x `height` of them."""

    map_suffix = ".tiff"

    palette: Palette
    width: int
    height: int
    boxes: Floats
    categories: Integers
    scores: Floats
    masks: Sequence[Rle]

    def to_json(self) -> dict[str, Any]:
        names = self.palette.categories
        found = zip(self.categories.tolist(), self.scores.tolist(), self.boxes.tolist(), self.masks, strict=True)
        return {
            "objects": [
                {"category": names[index], "score": score, "bbox": box, "mask": json_of(mask)}
                for index, score, box, mask in found
            ]
        }

    def summary(self) -> str:
        return counted(self.palette.categories, self.categories, self.scores)

    def draw(self, image: Image.Image) -> Image.Image:
        colors = [tuple(color) for color in self.palette.colors[1:].tolist()]
        shapes = [
            Shape(mask=decoded(mask), outline=_corners(box), category=category, score=score)
            for mask, box, category, score in zip(
                self.masks, self.boxes.tolist(), self.categories.tolist(), self.scores.tolist(), strict=True
            )
            if score >= SCORE_TOLD_MIN
        ]
        return with_shapes(image, self.palette.categories, shapes, colors)

    def map_file(self) -> bytes:
        """Of what is likely enough."""
        likely = np.flatnonzero(self.scores >= SCORE_TOLD_MIN).tolist()
        masks = [decoded(self.masks[place]) for place in likely]
        colors = [self.palette.colors[self.categories[place] + 1] for place in likely]
        return written_instances(masks, colors, self.width, self.height)


class InstanceHead(Head):
    """Points that say boxes and the weights of masks, and maps of features that masks are made of."""

    def __init__(self, layers: AnchorFree, masks: DynamicMask, palette: Palette, instances_max: int) -> None:
        super().__init__()
        self._palette = palette
        self._instances_max = instances_max
        self.layers = layers
        self.masks = masks

    def forward(self, features: Features) -> Outputs:
        found, _ = self.masks(features)
        return {**self.layers(features), "features": found}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Beside scores and boxes one minus Dice of the masks."""
        dense = self.layers.dense(outputs)
        losses, matches = self.layers.losses(dense, targets)
        mask = self.masks.loss(
            outputs["features"], boxes=dense.boxes, weights=dense.extras, matches=matches, packed=targets["masks"]
        )
        return {**losses, "mask": mask}

    def decode(self, outputs: Outputs) -> Decoded:
        """Boxes on the canvas, scores (0 is no object), categories, and masks in cells, in 255ths."""
        return decoded_instances(self.layers, self.masks, outputs, self._instances_max)

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Instances]:
        return [
            found_instances(
                self._palette, {name: tensor[row].numpy() for name, tensor in decoded.items()}, self.masks.stride, view
            )
            for row, view in enumerate(views)
        ]

    def evaluation(self) -> Evaluation:
        return _Found(self._palette.categories)


def decoded_instances(layers: AnchorFree, masks: DynamicMask, outputs: Outputs, instances_max: int) -> Decoded:
    """As `InstanceHead.decode`."""
    dense = layers.dense(outputs)
    kept = layers.kept(dense, instances_max)
    told = layers.told(dense, kept)
    weights = kept.of(dense.extras)
    if torch.compiler.is_exporting():  # no loop over a batch of any size
        count = weights.shape[1]
        features = outputs["features"].repeat_interleave(count, dim=0)
        flat = masks.masks(features, weights.flatten(0, 1), told["boxes"].flatten(0, 1))
        return {**told, "masks": (flat.view(-1, count, *flat.shape[1:]).sigmoid() * 255).round().to(torch.uint8)}
    made = [
        masks.masks(features[None], own, boxes)
        for features, own, boxes in zip(outputs["features"], weights, told["boxes"], strict=True)
    ]
    return {**told, "masks": (torch.stack(made).sigmoid() * 255).round().to(torch.uint8)}


def found_instances(palette: Palette, found: Mapping[str, NDArray[Any]], stride: int, view: View) -> Instances:
    """One image's; a mask without a pixel is left out."""
    boxes = boxes_in_image(found["boxes"], view)
    rows: list[int] = []
    masks: list[Rle] = []
    for row in np.flatnonzero((found["scores"] > 0) & (areas_of(boxes) > 0)).tolist():
        margin = BOX_MARGIN * (boxes[row, 2:] - boxes[row, :2])
        around = np.concatenate([boxes[row, :2] - margin, boxes[row, 2:] + margin]).tolist()
        mask = mask_in_image(found["masks"][row], stride, around, view)
        if mask.any():
            rows.append(row)
            masks.append(encoded(mask))
    return Instances(
        palette=palette,
        width=view.width,
        height=view.height,
        boxes=boxes[rows],
        categories=found["categories"][rows],
        scores=found["scores"][rows].astype(np.float64),
        masks=masks,
    )


def place_masks(instances: Iterable[Instance], view: View) -> PlacedObjects:
    """Instances of an image on the canvas, masks as bits; boxes are those of what is seen there."""
    canvas = view.canvas_height * view.canvas_width
    parts: list[PlacedObjects] = []
    left = iter(instances)
    for first in left:
        count = max(1, MASK_BYTES_AT_ONCE // max(first.mask.size, canvas))
        some = [first, *itertools.islice(left, count - 1)]
        masks = np.stack([each.mask for each in some])
        parts.append(
            packed_masks(
                view.map(masks, False),
                masks.sum(axis=(1, 2)) * enlargement(view, masks.shape[1:]),
                np.array([each.category for each in some]),
                np.array([each.ignored for each in some]),
            )
        )
    return joined(parts, view)


def enlargement(view: View, shape: tuple[int, ...]) -> float:
    """How many pixels of the canvas a cell of a map of the image, (height, width), is."""
    return view.scale**2 * (view.width / shape[1]) * (view.height / shape[0])


def packed_masks(masks: Mask, areas: Floats, categories: Integers, ignored: Flags) -> PlacedObjects:
    """Masks of the canvas, (n, height, width), that are seen; `areas` are those that the whole objects would have."""
    seen = masks.sum(axis=(1, 2))
    there = seen > 0
    return PlacedObjects(
        boxes=_bounds(masks[there]),
        categories=categories[there],
        ignored=(ignored | (seen < VISIBLE_SHARE_MIN * areas))[there],
        more={"masks": np.packbits(masks[there], axis=2)},
    )


def joined(parts: Sequence[PlacedObjects], view: View) -> PlacedObjects:
    """The objects of one image, which were packed in several parts, or in none."""
    size = (0, view.canvas_height, view.canvas_width)
    every = [packed_masks(np.zeros(size, np.bool_), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.bool_)), *parts]
    return PlacedObjects(
        boxes=np.concatenate([each.boxes for each in every]),
        categories=np.concatenate([each.categories for each in every]),
        ignored=np.concatenate([each.ignored for each in every]),
        more={"masks": np.concatenate([each.more["masks"] for each in every])},
    )


def crowded_masks(categories: int, view: View) -> PlacedObjects:
    """Filled boxes."""
    boxes = crowded_boxes(view, MASKS_CROWDED)
    x, y = np.arange(view.canvas_width) + 0.5, np.arange(view.canvas_height) + 0.5
    left, top, right, bottom = boxes.T[..., None]
    rows = (y >= top) & (y < bottom)
    columns = np.packbits((x >= left) & (x < right), axis=1)
    return PlacedObjects(
        boxes=boxes,
        categories=np.arange(len(boxes)) % categories,
        ignored=np.zeros(len(boxes), np.bool_),
        more={"masks": rows[..., None] * columns[:, None]},
    )


class _Found:
    """COCO's metrics of masks."""

    def __init__(self, names: Sequence[str]) -> None:
        self._precision = AveragePrecision(names, "segm")

    def add(self, prediction: Instances, target: InstanceFile, view: View) -> None:
        truth = []
        for each in target.read():
            rle = encoded(enlarged(each.mask, view.width, view.height))
            truth.append(
                {"category": each.category, "segmentation": rle, "area": area_of(rle), "iscrowd": int(each.ignored)}
            )
        found = [
            {"category": category, "segmentation": rle, "score": score}
            for category, rle, score in zip(
                prediction.categories.tolist(), prediction.masks, prediction.scores.tolist(), strict=True
            )
        ]
        self._precision.add(view.width, view.height, truth, found)

    def values(self) -> list[MetricValue]:
        return self._precision.values()

    def text(self) -> list[str]:
        return []


def _bounds(masks: Mask) -> NDArray[np.float32]:
    """The boxes around masks, (n, height, width), none of which is empty."""
    columns: Flags = np.any(masks, axis=1)
    rows: Flags = np.any(masks, axis=2)
    low = [columns.argmax(axis=1), rows.argmax(axis=1)]
    high = [each.shape[1] - each[:, ::-1].argmax(axis=1) for each in (columns, rows)]
    return np.stack([*low, *high], axis=1).astype(np.float32)


def _corners(box: Sequence[float]) -> Floats:
    left, top, right, bottom = box
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
