"""Validation metrics on random data, compared with scikit-learn's where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as reference
from sklearn.neighbors import NearestNeighbors

from runner.tasks import depth_estimation, metric_learning, multilabel_classification, regression, semantic_segmentation
from runner.tasks.interval import Interval
from runner.tasks.map_file import Palette
from runner.tasks.ranking import average_precision
from runner.tasks.task import Evaluation
from runner.trainer.view import IDENTITY, View

VIEW = View(width=20, height=10, canvas_width=20, canvas_height=10, matrix=IDENTITY)


def plain(evaluation: Evaluation) -> dict[str, float]:
    return {value.name: value.value for value in evaluation.values() if not value.context}


def by_class(evaluation: Evaluation) -> dict[str, float]:
    return {value.context["class"]: value.value for value in evaluation.values() if value.context}


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_the_reference(ties: bool) -> None:
    random = np.random.default_rng(int(ties))
    for _ in range(50):
        scores = random.random(40).astype(np.float32)
        scores = scores.round(1) if ties else scores
        positive = random.random(40) < 0.3
        positive[0] = True
        assert average_precision(positive, scores) == pytest.approx(reference.average_precision_score(positive, scores))


def test_multilabel_metrics_are_those_of_the_reference() -> None:
    random = np.random.default_rng(0)
    names = ("a", "b", "c", "d", "never there", "never at all")
    present = random.random((200, 6)) < 0.3
    present[:, 4:] = False
    probabilities = random.random((200, 6)).astype(np.float32)
    probabilities[:, 5] = 0.1
    probabilities[:40] = present[:40]  # some are exactly right
    evaluation = multilabel_classification._Sets(names)
    for wanted, found in zip(present, probabilities, strict=True):
        evaluation.add(multilabel_classification.Labels(names=names, probabilities=found), wanted, VIEW)
    predicted = probabilities >= 0.5
    assert plain(evaluation) == pytest.approx(
        {
            "map": reference.average_precision_score(present[:, :4], probabilities[:, :4], average="macro"),
            "f1": reference.f1_score(present[:, :5], predicted[:, :5], average="macro", zero_division=0),
            "exact_match": reference.accuracy_score(present, predicted),
        }
    )
    assert list(by_class(evaluation)) == ["a", "b", "c", "d"]
    assert evaluation.text() == ["2 of 6 labels have no positive image, and no part in map"]


def test_regression_metrics_are_those_of_the_reference() -> None:
    random = np.random.default_rng(0)
    wanted, found = random.random(100), random.random(100)
    evaluation = regression._Pairs()
    for target, value in zip(wanted, found, strict=True):
        evaluation.add(regression.Number(value=float(value)), float(target), VIEW)
    assert plain(evaluation) == pytest.approx(
        {
            "mae": reference.mean_absolute_error(wanted, found),
            "rmse": reference.root_mean_squared_error(wanted, found),
            "r2": reference.r2_score(wanted, found),
        }
    )


def test_one_number_alone_explains_nothing() -> None:
    evaluation = regression._Pairs()
    evaluation.add(regression.Number(value=1.0), 2.0, VIEW)
    assert plain(evaluation) == {"mae": 1.0, "rmse": 1.0}


@pytest.mark.parametrize("block", [7, 512])
def test_search_by_embedding_is_that_of_the_reference(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_learning, "QUERIES_BLOCK", block)
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), random.integers(1, 12, 12))  # some identities are alone
    vectors = random.normal(size=(len(labels), 8)) + 2 * random.normal(size=(12, 8))[labels] / 3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    evaluation = metric_learning.Search()
    for label, vector in zip(labels, vectors, strict=True):
        target = metric_learning.Identity(name=f"i{label}", index=None)
        evaluation.add(metric_learning.Embedding(vector=vector), target, VIEW)
    order = NearestNeighbors(n_neighbors=len(labels)).fit(vectors).kneighbors(vectors, return_distance=False)[:, 1:]
    first, precision, right = [], [], []
    for query, others in enumerate(order):
        relevant = int((labels == labels[query]).sum()) - 1
        if relevant == 0:
            continue
        found = labels[others] == labels[query]
        first.append(found[0])
        precision.append(found[:relevant].mean())
        nearest = labels[others[:5]].tolist()
        right.append(max(nearest, key=lambda each: (nearest.count(each), -nearest.index(each))) == labels[query])
    assert 0 < np.mean(first) < 1
    assert plain(evaluation) == pytest.approx(
        {"precision_at_1": np.mean(first), "r_precision": np.mean(precision), "knn_accuracy": np.mean(right)}
    )


def test_identities_that_are_all_alone_have_no_metric() -> None:
    evaluation = metric_learning.Search()
    for name in "ab":
        vector = np.array([1, 0], np.float32)
        evaluation.add(metric_learning.Embedding(vector=vector), metric_learning.Identity(name=name, index=None), VIEW)
    assert evaluation.values() == []


def test_segmentation_metrics_are_those_of_the_reference(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = ("a", "b", "c", "only predicted", "nowhere")
    palette = Palette(names, {name: [10 * number + 10, 0, 0] for number, name in enumerate(names)})
    evaluation = semantic_segmentation._Pixels(names)
    wanted, found = [], []
    for number in range(6):
        truth = random.integers(0, 4, (10, 20)).astype(np.int16)
        predicted = np.where(random.random((10, 20)) < 0.6, truth.clip(1), random.integers(1, 5, (10, 20)))
        path = tmp_path / f"{number}.png"
        path.write_bytes(palette.encoded(truth))
        prediction = semantic_segmentation.Segmentation(palette=palette, canvas=predicted.astype(np.int16), view=VIEW)
        evaluation.add(prediction, semantic_segmentation.ClassMap(path=path, palette=palette), VIEW)
        known = truth > 0
        wanted += truth[known].tolist()
        found += predicted[known].tolist()
    assert plain(evaluation) == pytest.approx(
        {
            "mean_iou": reference.jaccard_score(wanted, found, average="macro"),
            "pixel_accuracy": reference.accuracy_score(wanted, found),
        }
    )
    iou = reference.jaccard_score(wanted, found, average=None, labels=[1, 2, 3, 4])
    assert by_class(evaluation) == pytest.approx(dict(zip(names, iou, strict=False)))


def test_depth_metrics_are_those_of_the_reference(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    interval = Interval(low=0.0, high=10.0)
    evaluation = depth_estimation._Distances()
    wanted: list[Any] = []
    found: list[Any] = []
    for number in range(4):
        levels = random.integers(0, 65_536, (10, 20)).astype(np.uint16)
        levels[0, :3] = (0, 1, 65_535)  # ignored, the farthest, and a distance of 0 that has no ratio
        path = tmp_path / f"{number}.png"
        Image.fromarray(levels).save(path)
        predicted = random.uniform(0, 10, (10, 20)).astype(np.float32)
        prediction = depth_estimation.Depths(interval=interval, canvas=predicted, view=VIEW)
        evaluation.add(prediction, depth_estimation.DepthMap(path=path, interval=interval), VIEW)
        truth = 10 - (levels.astype(float) - 1) / 65_534 * 10
        known = (levels > 0) & (levels < 65_535)
        wanted += truth[known].tolist()
        found += predicted[known].tolist()
    ratio = np.maximum(np.array(wanted) / found, np.array(found) / wanted)
    assert plain(evaluation) == pytest.approx(
        {
            "rmse": reference.root_mean_squared_error(wanted, found),
            "mae": reference.mean_absolute_error(wanted, found),
            "delta_125": (ratio < 1.25).mean(),
        },
        rel=1e-5,
    )
