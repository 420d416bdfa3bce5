"""Keypoint detection: objects with named points.

Points of the grid say boxes as in object detection, where in them each keypoint lies, and whether it is there. What is
learned of places is the distance as a share of the object's size, and COCO's similarity (OKS) itself. An object of
which no keypoint is annotated teaches where its box is, and nothing else.
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

from runner.tasks.anchor_free import AnchorFree, Dense, Matches, within
from runner.tasks.average_precision import AveragePrecision, coco_box
from runner.tasks.names import missing, read_names
from runner.tasks.objects import (
    Flags,
    Objects,
    PlacedObjects,
    areas_of,
    boxes_in_image,
    crowded_boxes,
    is_ignored,
    on_canvas,
    read_box,
    read_list,
    read_numbers,
    read_scores,
    stacked,
)
from runner.tasks.shapes import SCORE_TOLD_MIN, Shape, with_shapes
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

PRESENCE_MIN = 0.5
"""From here on a keypoint is said to be there."""
PLACE_WEIGHT = 2.0
"""What places, and similarity, count beside the scores in the loss."""
SIDE_MIN = 1.0
"""Pixels of a box around a single keypoint, where the annotation has no box."""
NEAR_SHARE = 0.1
"""Of the longer side of an object's box: a keypoint that is no further off is right (PCK)."""
OVERLAP_SAME = 0.5
"""Boxes that overlap so much are of the same object, for PCK."""
MIRRORED = "left and right change places, and the metadata have no `flip_pairs` to say which keypoints those are"


@dataclass(frozen=True, kw_only=True, eq=False)
class Poses:
    """The objects of one image, n of them with K keypoints each, in pixels of the image."""

    objects: Objects
    places: Floats
    """(n, K, 2)."""
    present: Flags
    """(n, K)."""
    areas: Floats
    """(n,): what COCO's similarity is a share of; the box's where the annotation has none."""
    mirrored: Sequence[int]
    """Which keypoint of an object each is in a mirror."""


class KeypointDetection(Task):
    """The task."""

    name = "keypoint detection"
    metrics: Mapping[str, bool] = dict.fromkeys(
        ("ap", "ap_50", "ap_75", "ap_medium", "ap_large", "mean_recall", "pck_10"), True
    )

    def unfit_augmentations(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        return {} if vocabulary["flip_pairs"] else {"horizontal_flip": MIRRORED, "vertical_flip": MIRRORED}

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        names = read_names(metadata, "keypoints", "a keypoint")
        sigmas = metadata.get("sigmas") or [1 / len(names)] * len(names)
        if len(sigmas) != len(names) or not all(isinstance(each, int | float) and each > 0 for each in sigmas):
            raise Wrong(f"`sigmas` must be {len(names)} positive numbers, {sigmas!r:.100} was found")
        pairs = metadata.get("flip_pairs") or []
        if not all(isinstance(pair, list) and len(pair) == 2 and set(pair) <= set(names) for pair in pairs):
            raise Wrong(f"`flip_pairs` must be pairs of keypoints, {pairs!r:.100} was found")
        return {"keypoints": names, "sigmas": list(sigmas), "flip_pairs": [list(pair) for pair in pairs]}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return missing(other["keypoints"], vocabulary["keypoints"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], Poses]:
        names, mirrored = vocabulary["keypoints"], _mirrored(vocabulary)
        return lambda annotation: _read(read_list(annotation), names, mirrored)

    def shown(self, vocabulary: Vocabulary, target: Poses, view: View) -> Prediction:
        return Skeletons(
            names=vocabulary["keypoints"],
            boxes=target.objects.boxes,
            scores=target.objects.scores,
            places=target.places,
            presences=target.present.astype(np.float64),
        )

    def place(self, target: Poses, view: View) -> PlacedObjects:
        places = view.points(target.places)
        on: Flags = np.all((places >= 0) & (places < [view.canvas_width, view.canvas_height]), axis=2)
        present = target.present & on
        a, b, _, d, e, _ = view.matrix
        if a * e - b * d < 0:  # a mirror
            places, present = places[:, target.mirrored], present[:, target.mirrored]
        boxes, ignored, there = on_canvas(view.boxes(target.objects.boxes), target.objects.ignored, view)
        return PlacedObjects(
            boxes=boxes[there],
            categories=target.objects.categories[there],
            ignored=ignored[there],
            more={
                "places": places[there].astype(np.float32),
                "present": present[there],
                "told": np.any(target.present, axis=1, keepdims=True)[there, 0],
                "areas": (target.areas[there] * view.scale**2).astype(np.float32),
            },
        )

    def batch(self, placed: Sequence[PlacedObjects]) -> Batched:
        return stacked(placed)

    def crowded(self, vocabulary: Vocabulary, view: View) -> PlacedObjects:
        boxes = crowded_boxes(view)
        count, points = len(boxes), len(vocabulary["keypoints"])
        shares = np.random.default_rng(0).uniform(0, 1, (count, points, 2)).astype(np.float32)
        return PlacedObjects(
            boxes=boxes,
            categories=np.zeros(count, np.int64),
            ignored=np.zeros(count, np.bool_),
            more={
                "places": boxes[:, None, :2] + shares * (boxes[:, None, 2:] - boxes[:, None, :2]),
                "present": np.ones((count, points), np.bool_),
                "told": np.ones(count, np.bool_),
                "areas": areas_of(boxes.astype(np.float64)).astype(np.float32),
            },
        )

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.keypoint_detection
        layers = AnchorFree(
            out_channels,
            level_min=parameters.level_min,
            channels=parameters.channels,
            categories=1,
            extras=3 * len(vocabulary["keypoints"]),
        )
        return KeypointHead(layers, vocabulary, parameters.instances_max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Skeletons(Prediction):
    """What was found, the likeliest first, in pixels of the image: n objects with K keypoints each."""

    names: Sequence[str]
    boxes: Floats
    scores: Floats
    places: Floats
    """(n, K, 2), wherever it is likeliest, also of keypoints that are not there."""
    presences: Floats
    """(n, K): how likely each keypoint is there."""

    def to_json(self) -> dict[str, Any]:
        presences = [dict(zip(self.names, each, strict=True)) for each in self.presences.tolist()]
        return {
            "objects": [
                {**item, "presence": presence} for item, presence in zip(self.annotation(), presences, strict=True)
            ]
        }

    def annotation(self) -> list[dict[str, Any]]:
        """With scores."""
        found = zip(self.scores.tolist(), self.boxes.tolist(), self.places, self.presences.tolist(), strict=True)
        return [
            {
                **{
                    name: place if presence >= PRESENCE_MIN else None
                    for name, place, presence in zip(self.names, places.tolist(), presences, strict=True)
                },
                "bbox": box,
                "score": score,
            }
            for score, box, places, presences in found
        ]

    def summary(self) -> str:
        likely = self.scores >= SCORE_TOLD_MIN
        count, points = int(likely.sum()), int((self.presences[likely] >= PRESENCE_MIN).sum())
        return f"{count} {'object' if count == 1 else 'objects'} with {points} keypoints" if count else "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        left, top, right, bottom = self.boxes.T
        outlines = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
        shapes = []
        for outline, score, places, presences in zip(
            outlines, self.scores.tolist(), self.places, self.presences, strict=True
        ):
            there = np.flatnonzero(presences >= PRESENCE_MIN).tolist()
            points = [(self.names[index], float(places[index, 0]), float(places[index, 1])) for index in there]
            shapes.append(Shape(outline=outline, category=0, score=score, points=points))
        return with_shapes(image, ["object"], shapes)


class KeypointHead(Head):
    """Points of the grid that say boxes, and keypoints in each."""

    _sigmas: torch.Tensor

    def __init__(self, layers: AnchorFree, vocabulary: Vocabulary, instances_max: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._instances_max = instances_max
        self.layers = layers
        self.register_buffer("_sigmas", torch.tensor(vocabulary["sigmas"], dtype=torch.float32), persistent=False)

    def forward(self, features: Features) -> Outputs:
        outputs: Outputs = self.layers(features)
        return outputs

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Beside scores and boxes: places, COCO's similarity, and presence."""
        dense = self.layers.dense(outputs)
        losses, matches = self.layers.losses(dense, targets)
        places, presences = self._said(dense)
        return {**losses, **self._keypoint_losses(places, presences, matches, targets)}

    def decode(self, outputs: Outputs) -> Decoded:
        """Boxes, keypoints (batch x instances x K x 2) on the canvas, their presences, and scores; 0 is no object."""
        dense = self.layers.dense(outputs)
        kept = self.layers.kept(dense, self._instances_max)
        places, presences = self._said(dense)
        told = self.layers.told(dense, kept)
        return {
            "boxes": told["boxes"],
            "scores": told["scores"],
            "places": kept.of(places),
            "presences": kept.of(presences).sigmoid(),
        }

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Skeletons]:
        return [
            self._prediction({name: tensor[row].numpy() for name, tensor in decoded.items()}, view)
            for row, view in enumerate(views)
        ]

    def evaluation(self) -> Evaluation:
        return _Similarity(self._vocabulary)

    def _said(self, dense: Dense) -> tuple[torch.Tensor, torch.Tensor]:
        """Places on the canvas, batch x points x K x 2, and presences (logits), batch x points x K."""
        count = len(self._sigmas)
        shares = torch.unflatten(dense.extras[..., : 2 * count], 2, (count, 2))
        return within(dense.boxes, shares), dense.extras[..., 2 * count :]

    def _keypoint_losses(
        self, places: torch.Tensor, presences: torch.Tensor, matches: Matches, targets: Batched
    ) -> Losses:
        present = targets["present"][matches.objects].float()
        count = present.sum(dim=1).clamp(min=1)
        areas = targets["areas"][matches.objects].clamp(min=1)[:, None]
        off = places[matches.images, matches.points] - targets["places"][matches.objects]
        size = areas.sqrt()[..., None]
        distance = functional.smooth_l1_loss(off / size, torch.zeros_like(off), beta=0.05, reduction="none").sum(dim=2)
        similarity = torch.exp(-off.square().sum(dim=2) / (2 * areas * (2 * self._sigmas) ** 2))
        known = targets["told"][matches.objects].float() * matches.weights
        there = functional.binary_cross_entropy_with_logits(
            presences[matches.images, matches.points], present, reduction="none"
        )
        return {
            "place": PLACE_WEIGHT * ((distance * present).sum(dim=1) / count * known).sum(),
            "similarity": (((1 - similarity) * present).sum(dim=1) / count * known).sum(),
            "presence": (there.mean(dim=1) * known).sum(),
        }

    def _prediction(self, found: Mapping[str, NDArray[Any]], view: View) -> Skeletons:
        boxes = boxes_in_image(found["boxes"], view)
        there = (found["scores"] > 0) & (areas_of(boxes) > 0)
        return Skeletons(
            names=self._vocabulary["keypoints"],
            boxes=boxes[there],
            scores=found["scores"][there].astype(np.float64),
            places=view.inverse(found["places"][there].astype(np.float64)),
            presences=found["presences"][there].astype(np.float64),
        )


class _Similarity:
    """COCO's metrics by similarity, and PCK: the share of keypoints that are right."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._precision = AveragePrecision(["object"], "keypoints", vocabulary["sigmas"])
        self._points = self._right = 0

    def add(self, prediction: Skeletons, target: Poses, view: View) -> None:
        objects = target.objects
        truth = [
            {
                "category": 0,
                "bbox": coco_box(box),
                "area": area,
                "iscrowd": int(ignored),
                "keypoints": _flat(np.where(present[:, None], places, 0), 2 * present),
                "num_keypoints": int(present.sum()),
            }
            for box, area, ignored, places, present in zip(
                objects.boxes,
                target.areas.tolist(),
                objects.ignored.tolist(),
                target.places,
                target.present,
                strict=True,
            )
        ]
        found = [
            {"category": 0, "bbox": coco_box(box), "score": score, "keypoints": _flat(places, np.ones(len(places)))}
            for box, score, places in zip(prediction.boxes, prediction.scores.tolist(), prediction.places, strict=True)
        ]
        self._precision.add(view.width, view.height, truth, found)
        self._count(prediction, target)

    def values(self) -> list[MetricValue]:
        values = self._precision.values("ap")
        if self._points:
            values.append(MetricValue(name="pck_10", value=self._right / self._points))
        return values

    def text(self) -> list[str]:
        return []

    def _count(self, prediction: Skeletons, target: Poses) -> None:
        """Each object's keypoints, by the likeliest of what was found where its box is; without any none is right."""
        for box, places, present, ignored in zip(
            target.objects.boxes, target.places, target.present, target.objects.ignored, strict=True
        ):
            if ignored or not present.any():
                continue
            self._points += int(present.sum())
            inside = areas_of(
                np.concatenate(
                    [np.maximum(prediction.boxes[:, :2], box[:2]), np.minimum(prediction.boxes[:, 2:], box[2:])], axis=1
                )
            )
            same = inside >= OVERLAP_SAME * (areas_of(prediction.boxes) + areas_of(box[None]) - inside)
            if same.any():
                off = np.linalg.norm(prediction.places[int(same.argmax())] - places, axis=1)[present]
                self._right += int((off <= NEAR_SHARE * (box[2:] - box[:2]).max()).sum())


def _read(items: Sequence[Mapping[str, Any]], names: Sequence[str], mirrored: Sequence[int]) -> Poses:
    """Objects with a keypoint or a box; of others nothing is known but that they are there. Raises WrongAnnotation."""
    count = len(names)
    present = np.array([[each.get(name) is not None for name in names] for each in items], np.bool_).reshape(-1, count)
    places = np.zeros((len(items), count, 2))
    for row, item in enumerate(items):
        for column in np.flatnonzero(present[row]).tolist():
            places[row, column] = read_numbers(item, names[column], (2,))
    boxed = [each.get("bbox") is not None for each in items]
    boxes = np.array(
        [
            read_box(item) if has else _around(places[row][present[row]])
            for row, (item, has) in enumerate(zip(items, boxed, strict=True))
        ],
        np.float64,
    ).reshape(-1, 4)
    areas = [float(read_numbers(each, "area", ())) if each.get("area") is not None else 0.0 for each in items]
    known = present.any(axis=1) | np.array(boxed, np.bool_)
    return Poses(
        objects=Objects(
            boxes=boxes[known],
            categories=np.zeros(int(known.sum()), np.int64),
            ignored=np.array([is_ignored(each) for each in items], np.bool_)[known],
            scores=read_scores(items)[known],
        ),
        places=places[known],
        present=present[known],
        areas=np.where(np.array(areas) > 0, areas, areas_of(boxes))[known],
        mirrored=mirrored,
    )


def _around(points: Floats) -> Floats:
    """The box around the keypoints of one object, at least SIDE_MIN wide and high; anything where there is none."""
    if not len(points):
        return np.array([0.0, 0.0, SIDE_MIN, SIDE_MIN])
    low, high = points.min(axis=0), points.max(axis=0)
    center, half = (low + high) / 2, np.maximum(high - low, SIDE_MIN) / 2
    return np.concatenate([center - half, center + half])


def _mirrored(vocabulary: Vocabulary) -> list[int]:
    names = list(vocabulary["keypoints"])
    order = list(range(len(names)))
    for one, other in vocabulary["flip_pairs"]:
        first, second = names.index(one), names.index(other)
        order[first], order[second] = second, first
    return order


def _flat(places: Floats, visible: NDArray[Any]) -> list[float]:
    """Keypoints as COCO has them: x, y and how visible, one after the other."""
    found: list[float] = np.concatenate([places, visible[:, None]], axis=1).ravel().tolist()
    return found
