"""Object detection: boxes with categories.

Points of all levels say boxes (`anchor_free`); metrics are COCO's, in pixels of the image.
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

from runner.tasks.anchor_free import AnchorFree
from runner.tasks.average_precision import METRICS, AveragePrecision, coco_box
from runner.tasks.names import index_reader, missing, read_names
from runner.tasks.objects import (
    Integers,
    Objects,
    PlacedObjects,
    areas_of,
    boxes_in_image,
    crowded_boxes,
    on_canvas,
    read_box,
    read_list,
    read_objects,
    stacked,
)
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
from runner.trainer.view import Floats, View


class ObjectDetection(Task):
    """The task."""

    name = "object detection"
    metrics = METRICS

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"categories": read_names(metadata, "categories", "a category")}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["categories"], vocabulary["categories"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Objects]:
        index_of = index_reader(vocabulary["categories"], "category", "categories")
        return lambda annotation: read_objects(read_list(annotation), index_of, read_box)

    def shown(self, vocabulary: Vocabulary, target: Objects, view: View) -> Prediction:
        return Boxes(
            names=vocabulary["categories"], boxes=target.boxes, categories=target.categories, scores=target.scores
        )

    def place(self, target: Objects, view: View) -> PlacedObjects:
        boxes, ignored, there = on_canvas(view.boxes(target.boxes), target.ignored, view)
        return PlacedObjects(boxes=boxes[there], categories=target.categories[there], ignored=ignored[there])

    def batch(self, placed: Sequence[PlacedObjects]) -> Batched:
        return stacked(placed)

    def crowded(self, vocabulary: Vocabulary, view: View) -> PlacedObjects:
        boxes = crowded_boxes(view)
        count = len(boxes)
        categories = np.arange(count) % len(vocabulary["categories"])
        return PlacedObjects(boxes=boxes, categories=categories, ignored=np.zeros(count, np.bool_))

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.object_detection
        layers = AnchorFree(
            out_channels,
            level_min=parameters.level_min,
            channels=parameters.channels,
            categories=len(vocabulary["categories"]),
        )
        return DetectionHead(layers, vocabulary["categories"], parameters.instances_max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes(Prediction):
    """What was found, the likeliest first; `boxes` are n x 4 in pixels of the image."""

    names: Sequence[str]
    boxes: Floats
    categories: Integers
    scores: Floats

    def to_json(self) -> dict[str, Any]:
        return {"objects": self.annotation()}

    def annotation(self) -> list[dict[str, Any]]:
        """With scores."""
        found = zip(self.categories.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"category": self.names[index], "score": score, "bbox": box} for index, score, box in found]

    def summary(self) -> str:
        return counted(self.names, self.categories, self.scores)

    def draw(self, image: Image.Image) -> Image.Image:
        left, top, right, bottom = self.boxes.T
        corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
        found = zip(corners, self.categories.tolist(), self.scores.tolist(), strict=True)
        return with_shapes(image, self.names, [Shape(outline=o, category=c, score=s) for o, c, s in found])


class DetectionHead(Head):
    """Points that say boxes."""

    def __init__(self, layers: AnchorFree, names: Sequence[str], instances_max: int) -> None:
        super().__init__()
        self._names = tuple(names)
        self._instances_max = instances_max
        self.layers = layers

    def forward(self, features: Features) -> Outputs:
        outputs: Outputs = self.layers(features)
        return outputs

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Scores: binary cross entropy towards how well a point agrees with its object. Boxes: CIoU."""
        losses, _ = self.layers.losses(self.layers.dense(outputs), targets)
        return losses

    def decode(self, outputs: Outputs) -> Decoded:
        """Boxes on the canvas, batch x instances x 4, scores and categories; a score of 0 is no object."""
        dense = self.layers.dense(outputs)
        return self.layers.told(dense, self.layers.kept(dense, self._instances_max))

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Boxes]:
        return [
            found_boxes(self._names, *rows, view=view)
            for *rows, view in zip(decoded["boxes"], decoded["scores"], decoded["categories"], views, strict=True)
        ]

    def evaluation(self) -> Evaluation:
        return _Found(self._names)


def found_boxes(
    names: Sequence[str], boxes: torch.Tensor, scores: torch.Tensor, categories: torch.Tensor, *, view: View
) -> Boxes:
    """One image's; what lies beside the image is left out."""
    places = boxes_in_image(boxes.numpy(), view)
    there = (scores.numpy() > 0) & (areas_of(places) > 0)
    return Boxes(
        names=names,
        boxes=places[there],
        categories=categories.numpy()[there],
        scores=scores.numpy()[there].astype(np.float64),
    )


class _Found:
    """COCO's metrics of boxes."""

    def __init__(self, names: Sequence[str]) -> None:
        self._precision = AveragePrecision(names)

    def add(self, prediction: Boxes, target: Objects, view: View) -> None:
        areas = areas_of(target.boxes).tolist()
        truth = [
            {"category": category, "bbox": coco_box(box), "area": area, "iscrowd": int(ignored)}
            for category, box, area, ignored in zip(
                target.categories.tolist(), target.boxes, areas, target.ignored.tolist(), strict=True
            )
        ]
        found = [
            {"category": category, "bbox": coco_box(box), "score": score}
            for category, box, score in zip(
                prediction.categories.tolist(), prediction.boxes, prediction.scores.tolist(), strict=True
            )
        ]
        self._precision.add(view.width, view.height, truth, found)

    def values(self) -> list[MetricValue]:
        return self._precision.values()

    def text(self) -> list[str]:
        return []
