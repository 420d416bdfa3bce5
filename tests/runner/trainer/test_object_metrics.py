"""Metrics of quadrilaterals and of panoptic maps, against references."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runner.tasks.average_precision import OverlapPrecision
from runner.tasks.panoptic_quality import PanopticQuality, Segmented
from runner.tasks.polygon import polygon_overlaps, polygons_of, without_doubles

SHARED = Path(__file__).parents[4] / "shared/data"
NAMES = ("a", "b", "c")
FREE = np.zeros(100, np.bool_)


class ByPolygon(COCOeval):  # type: ignore[misc] # it has no types
    """pycocotools with another overlap: that of each image's and category's polygons."""

    overlaps: dict[tuple[int, int], Any]

    def computeIoU(self, image: int, category: int) -> Any:  # noqa: N802 — its name
        return self.overlaps[image, category]


def quads(random: np.random.Generator, count: int) -> Any:
    """Turned and skewed rectangles."""
    angle = random.uniform(0, 6.28, count)
    half = random.uniform(3, 25, (count, 2))
    frame = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half[:, None]
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    return frame @ turn + random.uniform(20, 80, (count, 1, 2)) + random.uniform(-1, 1, (count, 4, 2))


def test_average_precision_of_quadrilaterals_is_that_of_pycocotools_given_their_overlaps() -> None:
    compared = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        ours = OverlapPrecision(NAMES)
        truth_json: list[dict[str, Any]] = []
        found_json: list[dict[str, Any]] = []
        overlaps: dict[tuple[int, int], Any] = {}
        images = range(1, int(random.integers(2, 6)))
        for image in images:
            truth = quads(random, int(random.integers(0, 6)))
            near = truth + random.normal(0, 1.5, truth.shape)
            found = np.concatenate([near, near + 1, quads(random, int(random.integers(0, 4)))])
            wanted, said = random.integers(0, 3, len(truth)), random.integers(0, 3, len(found))
            said[: len(near)] = wanted
            crowd, scores = random.random(len(truth)) < 0.2, random.random(len(found)).round(2)
            each = polygon_overlaps(polygons_of(found), polygons_of(truth), crowd)
            ours.add(each, found=said, scores=scores, truth=wanted, crowd=crowd)
            for category in range(3):
                order = np.flatnonzero(said == category)
                order = order[np.argsort(-scores[order], kind="stable")]
                overlaps[image, category + 1] = each[np.ix_(order, np.flatnonzero(wanted == category))]
            shared = {"image_id": image, "bbox": [0, 0, 1, 1], "area": 1.0}
            for category, many in zip(wanted.tolist(), crowd.tolist(), strict=True):
                truth_json.append(
                    {**shared, "id": len(truth_json) + 1, "category_id": category + 1, "iscrowd": int(many)}
                )
            for category, score in zip(said.tolist(), scores.tolist(), strict=True):
                found_json.append({**shared, "category_id": category + 1, "score": score})
        if not found_json:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": image} for image in images],
                "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
                "annotations": truth_json,
            }
            coco.createIndex()
            evaluation = ByPolygon(coco, coco.loadRes(found_json), "bbox")
            evaluation.overlaps = overlaps
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = {"map": 0, "map_50": 1, "map_75": 2, "mean_recall": 8}
        wanted_values = {name: evaluation.stats[at] for name, at in names.items() if evaluation.stats[at] > -1}
        values = {value.name: value.value for value in ours.values() if not value.context}
        assert values == pytest.approx(wanted_values, abs=1e-9), seed
        compared += bool(values)
    assert compared > 30


def test_overlaps_of_upright_quadrilaterals_are_those_of_boxes() -> None:
    square = np.array([[(0, 0), (10, 0), (10, 10), (0, 10)]], float)
    half, other_way = square + np.array([5, 0]), square[:, ::-1]
    found = polygon_overlaps(polygons_of(np.concatenate([square, half])), polygons_of(other_way), FREE[:1])
    assert found[:, 0] == pytest.approx([1, 1 / 3])
    in_crowd = polygon_overlaps(polygons_of(half), polygons_of(square), np.array([True]))
    assert in_crowd[0, 0] == pytest.approx(0.5)


def test_a_bow_tie_is_what_it_encloses_and_a_line_is_nothing() -> None:
    bow_tie = np.array([[(0, 0), (10, 10), (10, 0), (0, 10)]], float)
    line = np.array([[(0, 0), (5, 5), (10, 10), (2, 2)]], float)
    left = np.array([[(0, 0), (5, 0), (5, 10), (0, 10)]], float)
    found = polygon_overlaps(polygons_of(np.concatenate([bow_tie, line])), polygons_of(left), FREE[:1])
    assert found[:, 0] == pytest.approx([25 / 75, 0])


def test_doubles_go_by_polygon_and_category() -> None:
    square = np.array([[(0, 0), (10, 0), (10, 10), (0, 10)]], float)
    slanted = np.array([[(10, 0), (11, 1), (1, 11), (0, 10)]], float)  # its box is the square's, nearly
    polygons = polygons_of(np.concatenate([square, square + 1, square, slanted]))
    assert without_doubles(polygons, np.array([0, 0, 1, 0]), 0.6).tolist() == [True, False, True, True]


def by_the_rules(images: list[Any], categories: int) -> dict[str, float]:
    """Panoptic quality as panopticapi words its rules, segment by segment."""
    overlap, right, wrong, missed = (dict.fromkeys(range(categories), 0.0) for _ in range(4))
    for truth, of_truth, crowd, found, of_found in images:
        matched_truth, matched_found = set(), set()
        for i in range(1, len(of_truth) + 1):
            for j in range(1, len(of_found) + 1):
                if of_truth[i - 1] != of_found[j - 1] or crowd[i - 1]:
                    continue
                inside = int(((truth == i) & (found == j)).sum())
                union = int((truth == i).sum() + (found == j).sum()) - inside - int(((truth == 0) & (found == j)).sum())
                if union and inside / union > 0.5:
                    overlap[of_truth[i - 1]] += inside / union
                    right[of_truth[i - 1]] += 1
                    matched_truth.add(i)
                    matched_found.add(j)
        for i, category in enumerate(of_truth, start=1):
            missed[category] += i not in matched_truth and not crowd[i - 1]
        for j, category in enumerate(of_found, start=1):
            area = int((found == j).sum())
            if j in matched_found or not area:
                continue
            excused = int(((truth == 0) & (found == j)).sum())
            for i, own in enumerate(of_truth, start=1):
                if crowd[i - 1] and own == category:
                    excused += int(((truth == i) & (found == j)).sum())
            wrong[category] += excused / area <= 0.5
    every = [c for c in range(categories) if right[c] + wrong[c] + missed[c]]
    quality = [overlap[c] / (right[c] + wrong[c] / 2 + missed[c] / 2) for c in every]
    segmentation = [overlap[c] / right[c] if right[c] else 0 for c in every]
    recognition = [right[c] / (right[c] + wrong[c] / 2 + missed[c] / 2) for c in every]
    return {"pq": np.mean(quality), "sq": np.mean(segmentation), "rq": np.mean(recognition)}  # type: ignore[dict-item]


def random_map(random: np.random.Generator) -> tuple[Any, Any]:
    """A map of blocks and the categories of its segments, each of which has a pixel."""
    coarse = random.integers(0, 6, (4, 5))
    numbers = np.unique(coarse, return_inverse=True)[1].reshape(4, 5)
    labels = np.kron(numbers, np.ones((6, 6), int))
    return labels, random.integers(0, 4, int(labels.max()))


def test_panoptic_quality_keeps_to_panopticapis_rules() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        images = []
        ours = PanopticQuality([str(number) for number in range(4)], {0, 1})
        for _ in range(int(random.integers(1, 4))):
            truth, of_truth = random_map(random)
            found, of_found = random_map(random)
            if random.random() < 0.7:  # nearly right
                found, of_found = np.roll(truth, int(random.integers(0, 3)), axis=1), of_truth.copy()
            crowd = random.random(len(of_truth)) < 0.2
            images.append((truth, of_truth, crowd, found, of_found))
            ours.add(Segmented(labels=truth, categories=of_truth), crowd, Segmented(labels=found, categories=of_found))
        values = {value.name: value.value for value in ours.values() if not value.context}
        wanted = by_the_rules(images, 4)
        assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)


def test_panoptic_quality_on_photos_of_coco() -> None:
    """The photos of panopticapi's sample: perfect where the truth is predicted, and by the rules where it is not."""
    sample = SHARED / "coco_panoptic_sample"
    if not sample.is_dir():
        pytest.skip(f"the photos are left out: {sample} is not there")
    described = json.loads((sample / "panoptic_examples.json").read_text())
    names = {each["id"]: index for index, each in enumerate(described["categories"])}
    perfect = PanopticQuality([str(index) for index in range(len(names))], set())
    moved = PanopticQuality([str(index) for index in range(len(names))], set())
    images = []
    for annotation in described["annotations"]:
        pixels = np.asarray(Image.open(sample / "panoptic_examples" / annotation["file_name"]).convert("RGB"), np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65_536 * pixels[..., 2]
        segments = annotation["segments_info"]
        labels = np.zeros(ids.shape, np.int64)
        for number, segment in enumerate(segments, start=1):
            labels[ids == segment["id"]] = number
            assert int((labels == number).sum()) == segment["area"]
        categories = np.array([names[each["category_id"]] for each in segments])
        crowd = np.array([bool(each["iscrowd"]) for each in segments])
        truth = Segmented(labels=labels, categories=categories)
        perfect.add(truth, crowd, truth)
        rolled = np.roll(labels, 12, axis=1)
        moved.add(truth, crowd, Segmented(labels=rolled, categories=categories))
        images.append((labels[::4, ::4], categories, crowd, rolled[::4, ::4], categories))
    assert {value.name: value.value for value in perfect.values() if value.name in ("pq", "sq", "rq")} == {
        "pq": 1.0,
        "sq": 1.0,
        "rq": 1.0,
    }
    assert 0 < {value.name: value.value for value in moved.values()}["pq"] < 0.9
    fewer = PanopticQuality([str(index) for index in range(len(names))], set())
    for labels, categories, crowd, rolled, _ in images:
        fewer.add(
            Segmented(labels=labels, categories=categories), crowd, Segmented(labels=rolled, categories=categories)
        )
    wanted = by_the_rules(images, len(names))
    values = {value.name: value.value for value in fewer.values()}
    assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
