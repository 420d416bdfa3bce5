"""Panoptic segmentation: a category for each pixel, and for those of things which one it belongs to.

Things are found as in instance segmentation, and what every pixel is as in semantic segmentation; both come from the
same maps. They are joined as in Panoptic FPN (Kirillov et al. 2019): the likeliest things first, each where none before
it lies, then what is left of stuff. Metrics are panopticapi's.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch.nn import functional

from runner.tasks.anchor_free import AnchorFree
from runner.tasks.drawing import enlarged as enlarged_picture
from runner.tasks.drawing import with_lines, with_map
from runner.tasks.dynamic_mask import WEIGHTS, DynamicMask
from runner.tasks.instance_file import PanopticFile, panoptic_file, written_segments
from runner.tasks.instance_segmentation import (
    MASK_BYTES_AT_ONCE,
    crowded_masks,
    decoded_instances,
    enlargement,
    found_instances,
    joined,
    packed_masks,
)
from runner.tasks.map_file import Classes, Palette, read_palette
from runner.tasks.mask import decoded as mask_of
from runner.tasks.mask import enlarged
from runner.tasks.names import missing, read_names
from runner.tasks.objects import PlacedObjects, stacked
from runner.tasks.panoptic_quality import METRICS, PanopticQuality, Segmented
from runner.tasks.semantic_segmentation import class_losses
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
from runner.trainer.view import View

SCORE_MIN = 0.3
"""Things that are less likely are left out."""
SEEN_MIN = 0.5
"""Share of a thing's mask that likelier ones must leave it."""
STUFF_SHARE_MIN = 0.005
"""Of the image's pixels: less of a kind of stuff is left out."""
SEGMENTS_DRAWN_MAX = 16
SHADE_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Segmentable:
    """A map in its file; `things` are classes, which count from 1."""

    file: PanopticFile
    things: tuple[int, ...]


class PanopticSegmentation(Task):
    """The task."""

    name = "panoptic segmentation"
    metrics: Mapping[str, bool] = dict.fromkeys(METRICS, True)
    opens_files = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        categories = read_names(metadata, "categories", "a category")
        things = metadata.get("things")
        if things is None:
            things = categories
        if not isinstance(things, list) or missing(things, categories):
            raise Wrong(f"`things` must be some of the categories, {things!r:.100} was found")
        return {"categories": categories, "colors": read_palette(metadata, categories), "things": list(things)}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["categories"], vocabulary["categories"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Segmentable]:
        palette = Palette(vocabulary["categories"], vocabulary["colors"])
        things = _things(vocabulary)
        return lambda annotation: Segmentable(file=panoptic_file(annotation, folder, palette), things=things)

    def shown(self, vocabulary: Vocabulary, target: Segmentable, view: View) -> Prediction:
        found = target.file.read()
        return Segmentation(
            palette=target.file.palette,
            labels=enlarged(found.labels, view.width, view.height),
            segments=[Segment(category=number - 1, score=1.0) for number in found.classes.tolist()],
        )

    def place(self, target: Segmentable, view: View) -> tuple[PlacedObjects, Classes]:
        """Objects of the things, whose categories are places among them; and the class of every pixel."""
        segments = target.file.read()
        labels = view.map(segments.labels, 0)
        cells = np.bincount(segments.labels.ravel(), minlength=len(segments.classes) + 1)[1:]
        areas = cells.astype(np.float64) * enlargement(view, segments.labels.shape)
        of_things = np.flatnonzero(np.isin(segments.classes, target.things))
        parts = [
            packed_masks(
                labels[None] == (some + 1)[:, None, None],
                areas[some],
                np.searchsorted(target.things, segments.classes[some]),
                segments.ignored[some],
            )
            for some in np.split(of_things, range(0, len(of_things), max(1, MASK_BYTES_AT_ONCE // labels.size)))
        ]
        classes = np.concatenate([[0], np.where(segments.ignored, 0, segments.classes)]).astype(np.int16)
        return joined(parts, view), classes[labels]

    def batch(self, placed: Sequence[tuple[PlacedObjects, Classes]]) -> Batched:
        maps = torch.from_numpy(np.stack([classes for _, classes in placed]))
        return {**stacked([objects for objects, _ in placed]), "classes": maps}

    def crowded(self, vocabulary: Vocabulary, view: View) -> tuple[PlacedObjects, Classes]:
        classes = np.ones((view.canvas_height, view.canvas_width), np.int16)
        return crowded_masks(max(1, len(vocabulary["things"])), view), classes

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.panoptic_segmentation
        layers = AnchorFree(
            out_channels,
            level_min=parameters.level_min,
            channels=parameters.channels,
            categories=max(1, len(vocabulary["things"])),  # where all is stuff the points learn that nothing is there
            extras=WEIGHTS,
        )
        categories = len(vocabulary["categories"])
        masks = DynamicMask(out_channels, level=parameters.mask_level, channels=parameters.channels, more=categories)
        palette = Palette(vocabulary["categories"], vocabulary["colors"])
        return PanopticHead(layers, masks, palette, _things(vocabulary), parameters.instances_max)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One that was found; `category` is from 0 on. Stuff has a score of 1."""

    category: int
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation(Prediction):
    """In `labels`, (height, width) of the image, 0 is nothing and n the nth segment."""

    map_suffix = ".tiff"

    palette: Palette
    labels: NDArray[np.int32]
    segments: Sequence[Segment]

    def to_json(self) -> dict[str, Any]:
        areas = self._areas()
        return {
            "segments": [
                {"category": self.palette.categories[each.category], "id": number, "score": each.score, "area": area}
                for number, (each, area) in enumerate(zip(self.segments, areas, strict=True), start=1)
            ],
            "width": self.labels.shape[1],
            "height": self.labels.shape[0],
        }

    def summary(self) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in self._shares()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """Segments of one category in shades of its colour, with a line between any two."""
        colors = np.zeros((len(self.segments) + 1, 3), np.uint8)
        for number, each in enumerate(self.segments, start=1):
            shade = 1 - 0.15 * (number % SHADE_STEPS)
            colors[number] = (self.palette.colors[each.category + 1] * shade).astype(np.uint8)
        labels = enlarged(self.labels, image.width, image.height)
        shown = colors[labels]
        edge = np.zeros(labels.shape, np.bool_)
        edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        edge[1:] |= labels[1:] != labels[:-1]
        shown[edge] = 255
        drawn = enlarged_picture(with_map(image, shown))
        lines = [f"{name}  {share:.1%}" for name, share in self._shares()[:SEGMENTS_DRAWN_MAX]]
        squares = [tuple(colors[number].tolist()) for number in self._order()[:SEGMENTS_DRAWN_MAX]]
        return with_lines(drawn, lines or ["nothing"], squares)

    def map_file(self) -> bytes:
        classes = np.array([0, *(each.category + 1 for each in self.segments)], np.int16)
        return written_segments(classes[self.labels], self.labels, self.palette)

    def _areas(self) -> list[int]:
        areas: list[int] = np.bincount(self.labels.ravel(), minlength=len(self.segments) + 1)[1:].tolist()
        return areas

    def _order(self) -> list[int]:
        """Numbers of segments, the largest first."""
        areas = self._areas()
        return sorted(range(1, len(areas) + 1), key=lambda number: -areas[number - 1])

    def _shares(self) -> list[tuple[str, float]]:
        areas = self._areas()
        return [
            (self.palette.categories[self.segments[number - 1].category], areas[number - 1] / self.labels.size)
            for number in self._order()
        ]


class PanopticHead(Head):
    """Points and masks of things, and an output for each category."""

    def __init__(
        self, layers: AnchorFree, masks: DynamicMask, palette: Palette, things: tuple[int, ...], instances_max: int
    ) -> None:
        super().__init__()
        self._palette = palette
        self._things = things
        self._instances_max = instances_max
        self.layers = layers
        self.masks = masks

    def forward(self, features: Features) -> Outputs:
        found, semantic = self.masks(features)
        size = features[0].shape[2:]
        if semantic.shape[2:] != size:
            semantic = functional.interpolate(semantic, size=size, mode="bilinear", align_corners=False)
        return {**self.layers(features), "features": found, "semantic": semantic}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Those of instance segmentation over the things, and those of semantic segmentation over all."""
        dense = self.layers.dense(outputs)
        losses, matches = self.layers.losses(dense, targets)
        mask = self.masks.loss(
            outputs["features"], boxes=dense.boxes, weights=dense.extras, matches=matches, packed=targets["masks"]
        )
        return {**losses, "mask": mask, **class_losses(outputs["semantic"], targets["classes"])}

    def decode(self, outputs: Outputs) -> Decoded:
        """What instance segmentation gives for things, and the class of each pixel of the canvas."""
        instances = decoded_instances(self.layers, self.masks, outputs, self._instances_max)
        return {**instances, "classes": (outputs["semantic"].argmax(dim=1) + 1).to(torch.int16)}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Segmentation]:
        return [
            self._joined({name: tensor[row].numpy() for name, tensor in decoded.items()}, view)
            for row, view in enumerate(views)
        ]

    def evaluation(self) -> Evaluation:
        return _Quality(self._palette.categories, self._things)

    def _joined(self, found: Mapping[str, NDArray[Any]], view: View) -> Segmentation:
        labels = np.zeros((view.height, view.width), np.int32)
        segments: list[Segment] = []
        likely = {**found, "scores": np.where(found["scores"] >= SCORE_MIN, found["scores"], 0)}
        things = found_instances(self._palette, likely, self.masks.stride, view) if self._things else None
        for place in range(len(things.masks) if things else 0):
            assert things is not None, "there is one"
            mask = mask_of(things.masks[place])
            free = mask & (labels == 0)
            if free.sum() < SEEN_MIN * mask.sum():
                continue
            category = self._things[int(things.categories[place])] - 1
            segments.append(Segment(category=category, score=float(things.scores[place])))
            labels[free] = len(segments)
        classes = view.map_back(found["classes"])
        classes = np.where(labels > 0, 0, classes)
        areas = np.bincount(classes.ravel(), minlength=len(self._palette.categories) + 1)
        for number in np.flatnonzero(areas >= max(1, STUFF_SHARE_MIN * labels.size)).tolist():
            if number and number not in self._things:
                segments.append(Segment(category=number - 1, score=1.0))
                labels[classes == number] = len(segments)
        return Segmentation(palette=self._palette, labels=labels, segments=segments)


class _Quality:
    """panopticapi's metrics."""

    def __init__(self, names: Sequence[str], things: Sequence[int]) -> None:
        self._quality = PanopticQuality(names, {number - 1 for number in things})

    def add(self, prediction: Segmentation, target: Segmentable, view: View) -> None:
        truth = target.file.read()
        height, width = prediction.labels.shape
        self._quality.add(
            Segmented(labels=enlarged(truth.labels, width, height), categories=truth.classes - 1),
            truth.ignored,
            Segmented(
                labels=prediction.labels,
                categories=np.array([each.category for each in prediction.segments], np.int64),
            ),
        )

    def values(self) -> list[MetricValue]:
        return self._quality.values()

    def text(self) -> list[str]:
        return []


def _things(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Classes of things, rising."""
    things = set(vocabulary["things"])
    return tuple(number for number, name in enumerate(vocabulary["categories"], start=1) if name in things)
