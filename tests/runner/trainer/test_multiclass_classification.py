"""The classification head: its loss, its metrics, its predictions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sihlai.scheduler.v1.job_spec_pb2 import Head as HeadSpecification
from sihlai.scheduler.v1.job_spec_pb2 import MulticlassClassification as Parameters
from sklearn import metrics as reference
from torch.nn import functional

from runner.tasks.multiclass_classification import Classification, MulticlassClassification
from runner.tasks.task import Head, MetricValue, WrongAnnotation
from runner.trainer.view import IDENTITY, View

TASK = MulticlassClassification()
VIEW = View(width=8, height=8, canvas_width=8, canvas_height=8, matrix=IDENTITY)


def head(categories: int = 4, *, ordered: bool = False, **parameters: Any) -> Head:
    torch.manual_seed(0)
    specification = HeadSpecification(multiclass_classification=Parameters(**parameters))
    vocabulary = TASK.vocabulary({"categories": [f"c{index}" for index in range(categories)], "ordered": ordered})
    return TASK.head(specification, vocabulary, {2: 3, 3: 6})


def predicted(tested: Head, logits: torch.Tensor) -> Sequence[Classification]:
    found = tested.predictions(tested.decode({"logits": logits}), [VIEW] * len(logits))
    assert all(isinstance(each, Classification) for each in found)
    return found  # type: ignore[return-value]


def test_it_pools_the_coarsest_level() -> None:
    features = {2: torch.rand(2, 3, 8, 8), 3: torch.rand(2, 6, 4, 4)}
    tested = head()
    outputs = tested(features)
    assert outputs["logits"].shape == (2, 4)
    shuffled = {3: features[3].flatten(2)[:, :, torch.randperm(16)].view(2, 6, 4, 4)}
    torch.testing.assert_close(tested(shuffled)["logits"], outputs["logits"])


def test_label_smoothing_spreads_its_share_over_all_categories() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    wanted = -(functional.log_softmax(logits, dim=1)[0] * torch.tensor([0.925, 0.025, 0.025, 0.025])).sum()
    found = head(label_smoothing=0.1).loss({"logits": logits}, TASK.batch([0]))
    torch.testing.assert_close(found, {"category": wanted})


def test_a_category_weighs_what_the_specification_says() -> None:
    logits = torch.randn(2, 4)
    each = functional.cross_entropy(logits, torch.tensor([0, 3]), reduction="none")
    found = head(category_weights={"c3": 5.0}).loss({"logits": logits}, TASK.batch([0, 3]))
    torch.testing.assert_close(found["category"], (each[0] + 5 * each[1]) / 2)
    with pytest.raises(WrongAnnotation, match="names 'c9', which is no category"):
        head(category_weights={"c9": 5.0})


def sure_of(*indices: int) -> torch.Tensor:
    return 6 * functional.one_hot(torch.tensor(indices), 5).float()


def test_of_ordered_categories_a_near_miss_costs_less_than_a_far_one() -> None:
    tested, unordered = head(5, ordered=True), head(5)
    target = TASK.batch([1])
    losses = [float(tested.loss({"logits": sure_of(index)}, target)["category"]) for index in range(5)]
    assert min(losses) == losses[1]
    assert losses[2] < losses[3] < losses[4]
    near, far = (float(unordered.loss({"logits": sure_of(index)}, target)["category"]) for index in (2, 4))
    assert near == pytest.approx(far)


def test_of_ordered_categories_the_error_of_the_rank_is_measured() -> None:
    tested = head(5, ordered=True)
    truth, found = [0, 1, 4, 2], [0, 3, 3, 2]
    evaluation = tested.evaluation()
    for target, prediction in zip(truth, predicted(tested, sure_of(*found)), strict=True):
        evaluation.add(prediction, target, VIEW)
    assert plain(evaluation.values())["rank_mae"] == pytest.approx(reference.mean_absolute_error(truth, found))
    with pytest.raises(WrongAnnotation, match="`ordered` must be true or false"):
        TASK.vocabulary({"categories": ["a"], "ordered": "yes"})


def plain(values: list[MetricValue]) -> dict[str, float]:
    return {value.name: value.value for value in values if not value.context}


def test_metrics_are_those_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 6, generator=generator)
    truth = torch.randint(0, 5, (200,), generator=generator).tolist()  # category 5 is predicted, but never true
    tested = head(6)
    evaluation = tested.evaluation()
    for target, prediction in zip(truth, predicted(tested, logits), strict=True):
        evaluation.add(prediction, target, VIEW)
    likeliest = logits.argmax(dim=1).tolist()
    macro = {"average": "macro", "zero_division": 0}
    found = evaluation.values()
    assert plain(found) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, likeliest),
            "precision": reference.precision_score(truth, likeliest, **macro),
            "recall": reference.recall_score(truth, likeliest, **macro),
            "f1": reference.f1_score(truth, likeliest, **macro),
        }
    )
    recalls = {value.context["class"]: value.value for value in found if value.context}
    by_category = reference.recall_score(truth, likeliest, average=None, labels=range(5))
    assert recalls == pytest.approx({f"c{index}": value for index, value in enumerate(by_category)})
    counts = [line.split()[1:] for line in evaluation.text()[2:]]
    assert counts == reference.confusion_matrix(truth, likeliest, labels=range(6)).astype(str).tolist()


def test_nothing_labelled_is_no_metric_and_not_nan() -> None:
    assert head().evaluation().values() == []


def test_many_categories_have_neither_a_matrix_nor_series_of_their_own() -> None:
    tested = head(300)
    evaluation = tested.evaluation()
    evaluation.add(predicted(tested, torch.randn(1, 300))[0], 7, VIEW)
    assert evaluation.text() == []
    assert not [value for value in evaluation.values() if value.context]


def test_a_prediction_names_the_likeliest_categories_with_their_probabilities() -> None:
    (found,) = predicted(head(), torch.tensor([[0.0, 2.0, 1.0, -1.0]]))
    described = found.to_json()
    assert described["category"] == "c1"
    assert list(described["probabilities"]) == ["c1", "c2", "c0", "c3"]
    assert math.fsum(described["probabilities"].values()) == pytest.approx(1)
    assert found.summary().startswith("c1 ")
    (of_many,) = predicted(head(50), torch.randn(1, 50))
    assert len(of_many.probabilities) == 10


def test_a_prediction_is_written_below_its_image(tmp_path: Path) -> None:
    (found,) = predicted(head(), torch.tensor([[0.0, 2.0, 1.0, -1.0]]))
    image = Image.new("RGB", (40, 20), (200, 0, 0))
    drawn = found.draw(image)
    assert image.size == (40, 20)
    assert drawn.width >= 256
    assert drawn.getpixel((0, 0)) == (200, 0, 0)
    assert drawn.height > drawn.width // 2
