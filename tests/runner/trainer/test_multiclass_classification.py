"""The classification head: its loss, its metrics, its predictions."""

import math

import pytest
import torch
from sihlai.scheduler.v1.job_spec_pb2 import Head as HeadSpecification
from sihlai.scheduler.v1.job_spec_pb2 import MulticlassClassification as Parameters
from sklearn import metrics as reference
from torch.nn import functional

from runner.tasks.multiclass_classification import MulticlassClassification
from runner.tasks.task import Head, MetricValue

TASK = MulticlassClassification()


def head(categories: int = 4, *, label_smoothing: float = 0.0, dropout: float = 0.0) -> Head:
    torch.manual_seed(0)
    specification = HeadSpecification(
        multiclass_classification=Parameters(label_smoothing=label_smoothing, dropout=dropout)
    )
    vocabulary = {"categories": [f"c{index}" for index in range(categories)]}
    return TASK.head(specification, vocabulary, {2: 3, 3: 6})


def test_it_pools_the_coarsest_level() -> None:
    features = {2: torch.rand(2, 3, 8, 8), 3: torch.rand(2, 6, 4, 4)}
    tested = head()
    outputs = tested(features)
    assert outputs["logits"].shape == (2, 4)
    assert tested.output_shapes() == {"logits": ("batch", 4)}
    shuffled = {3: features[3].flatten(2)[:, :, torch.randperm(16)].view(2, 6, 4, 4)}
    torch.testing.assert_close(tested(shuffled)["logits"], outputs["logits"])


def test_an_image_without_an_annotation_adds_nothing_to_loss_and_gradients() -> None:
    tested = head(label_smoothing=0.1)
    logits = torch.randn(3, 4, requires_grad=True)
    some, all_of_them = TASK.batch([2, None, 0]), TASK.batch([2, 0])
    assert some is not None
    assert all_of_them is not None
    assert (some.labelled, all_of_them.labelled) == (2, 2)
    loss = tested.loss({"logits": logits}, some)
    torch.testing.assert_close(loss, tested.loss({"logits": logits[[0, 2]]}, all_of_them))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_a_batch_without_any_annotation_has_no_targets() -> None:
    assert TASK.batch([None, None]) is None


def test_label_smoothing_spreads_its_share_over_all_categories() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    targets = TASK.batch([0])
    assert targets is not None
    wanted = -(functional.log_softmax(logits, dim=1)[0] * torch.tensor([0.925, 0.025, 0.025, 0.025])).sum()
    torch.testing.assert_close(head(label_smoothing=0.1).loss({"logits": logits}, targets), wanted)


def test_the_loss_of_half_precision_outputs_is_computed_in_full() -> None:
    targets = TASK.batch([0, 1])
    assert targets is not None
    assert head().loss({"logits": torch.randn(2, 4, dtype=torch.bfloat16)}, targets).dtype == torch.float32


def plain(values: list[MetricValue]) -> dict[str, float]:
    return {value.name: value.value for value in values if not value.context}


def test_metrics_are_those_of_the_reference_and_do_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 6, generator=generator)
    truth = torch.randint(0, 5, (200,), generator=generator).tolist()  # category 5 is predicted, but never true
    evaluation = head(6).evaluation()
    for start in range(0, 200, 64):
        targets = TASK.batch([*truth[start : start + 64], None])
        assert targets is not None
        extra = torch.tensor([[9.0, 0, 0, 0, 0, 0]])
        evaluation.add({"logits": torch.cat([logits[start : start + 64], extra])}, targets)
    predicted = logits.argmax(dim=1).tolist()
    macro = {"average": "macro", "zero_division": 0}
    found = evaluation.values()
    assert plain(found) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, predicted),
            "precision": reference.precision_score(truth, predicted, **macro),
            "recall": reference.recall_score(truth, predicted, **macro),
            "f1": reference.f1_score(truth, predicted, **macro),
        }
    )
    recalls = {value.context["class"]: value.value for value in found if value.context}
    by_category = reference.recall_score(truth, predicted, average=None, labels=range(5))
    assert recalls == pytest.approx({f"c{index}": value for index, value in enumerate(by_category)})
    counts = [line.split()[1:] for line in evaluation.text()[2:]]
    assert counts == reference.confusion_matrix(truth, predicted, labels=range(6)).astype(str).tolist()


def test_nothing_labelled_is_no_metric_and_not_nan() -> None:
    assert head().evaluation().values() == []


def test_many_categories_have_neither_a_matrix_nor_series_of_their_own() -> None:
    evaluation = head(300).evaluation()
    targets = TASK.batch([7])
    assert targets is not None
    evaluation.add({"logits": torch.randn(1, 300)}, targets)
    assert evaluation.text() == []
    assert not [value for value in evaluation.values() if value.context]


def test_a_prediction_names_the_likeliest_categories_with_their_probabilities() -> None:
    (found,) = head().decode({"logits": torch.tensor([[0.0, 2.0, 1.0, -1.0]])})
    assert found["category"] == "c1"
    assert list(found["probabilities"]) == ["c1", "c2", "c0", "c3"]
    assert math.fsum(found["probabilities"].values()) == pytest.approx(1)
    (of_many,) = head(50).decode({"logits": torch.randn(1, 50)})
    assert len(of_many["probabilities"]) == 10
