"""Average precision on random sets, against pycocotools, number by number."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runner.tasks.average_precision import AveragePrecision, coco_box

NAMES = ("a", "b", "c")
SIZE = 120
POINTS = 5
SIGMAS = [0.05, 0.1, 0.2, 0.1, 0.07]
Image = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def boxes(random: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    low = random.uniform(0, SIZE - 4, (count, 2))
    sides = random.uniform(2, 70, (count, 2))
    return np.concatenate([low, (low + sides).clip(max=SIZE)], axis=1)


def shaken(random: np.random.Generator, box: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    moved = box + random.normal(0, 2.5, 4)
    moved[2:] = np.maximum(moved[2:], moved[:2] + 0.5)
    return moved


def scene(random: np.random.Generator, kind: str) -> Image:
    """Objects, crowds among them, and what was found: near objects, doubles, wrong categories, nothing at all there."""
    truth, found = [], []
    for box in boxes(random, random.integers(0, 6)):
        category = int(random.integers(0, len(NAMES)))
        points = random.uniform(box[:2], box[2:], (POINTS, 2))
        visible = random.integers(0, 3, POINTS)
        truth.append(
            annotation(kind, category, box, points, visible)
            | {"iscrowd": int(random.random() < 0.2), "area": area(box)}
        )
        for _ in range(random.integers(0, 3)):
            wrong = int(random.integers(0, len(NAMES))) if random.random() < 0.2 else category
            near = points + random.normal(0, 3, points.shape)
            found.append(annotation(kind, wrong, shaken(random, box), near, np.ones(POINTS)))
    found += [
        annotation(kind, 0, box, random.uniform(0, SIZE, (POINTS, 2)), np.ones(POINTS))
        for box in boxes(random, random.integers(0, 4))
    ]
    scores = random.random(len(found)).round(2)  # some are equal
    return truth, [each | {"score": float(score)} for each, score in zip(found, scores, strict=True)]


def area(box: np.ndarray[Any, Any]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def annotation(kind: str, category: int, box: Any, points: Any, visible: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"category": category, "bbox": coco_box(box)}
    if kind == "segm":
        mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
        left, top, right, bottom = box.round().astype(int).clip(0, SIZE)
        mask[top:bottom, left:right] = 1
        found["segmentation"] = coco_mask.encode(mask)
    if kind == "keypoints":
        shown = np.where(visible[:, None] > 0, points, 0)
        found["keypoints"] = np.concatenate([shown, visible[:, None]], axis=1).ravel().tolist()
        found["num_keypoints"] = int((visible > 0).sum())
    return found


def reference(images: Sequence[Image], kind: str) -> dict[str, float]:
    """What pycocotools counts, by our names."""
    truth, found = [], []
    for number, (wanted, predicted) in enumerate(images, start=1):
        for each in wanted:
            shared = {key: value for key, value in each.items() if key != "category"}
            truth.append({**shared, "id": len(truth) + 1, "image_id": number, "category_id": each["category"] + 1})
        for each in predicted:
            shared = {key: value for key, value in each.items() if key != "category"}
            found.append({**shared, "image_id": number, "category_id": each["category"] + 1})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number, "width": SIZE, "height": SIZE} for number in range(1, len(images) + 1)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        if kind == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    if kind == "keypoints":
        names = ["map", "map_50", "map_75", "map_medium", "map_large", "mean_recall"]
        values = evaluation.stats[:6]
    else:
        names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mean_recall"]
        values = [*evaluation.stats[:6], evaluation.stats[8]]
    return {name: float(value) for name, value in zip(names, values, strict=True) if value > -1}


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_average_precision_is_that_of_pycocotools_on_random_sets(kind: str) -> None:
    compared = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        images = [scene(random, kind) for _ in range(random.integers(1, 6))]
        if not any(found for _, found in images):
            continue
        ours = AveragePrecision(NAMES, kind, SIGMAS if kind == "keypoints" else None)
        for truth, found in images:
            ours.add(SIZE, SIZE, truth, found)
        values = {value.name: value.value for value in ours.values() if not value.context}
        assert values == pytest.approx(reference(images, kind), abs=1e-9), seed
        compared += bool(values)
    assert compared > 150
