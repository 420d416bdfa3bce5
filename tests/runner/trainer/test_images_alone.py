"""Text and images alone: what the table of tasks does not ask of every head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations
from sklearn import metrics as reference

from runner.report import Outcome as Ending
from runner.tasks import TASKS, anomaly_detection, scene_text_recognition
from runner.tasks.anomaly_detection import ANOMALOUS, NORMAL, AnomalyHead, State, Strangeness
from runner.tasks.ranking import area_under_roc
from runner.tasks.task import WrongAnnotation
from runner.trainer.augmentation import STRONG, strengthened
from runner.trainer.checkpoint import read_weights
from runner.trainer.model import build_model
from runner.trainer.targets import Targets
from runner.trainer.view import IDENTITY, View
from tests.runner.trainer.conftest import Workshop, picture, spec_from
from tests.runner.trainer.task_rows import ROWS, Row, write_head, write_images

VIEW = View(width=20, height=10, canvas_width=20, canvas_height=10, matrix=IDENTITY)
BY_TASK = {row.task: row for row in ROWS}
ANOMALIES = BY_TASK[task_pb2.TASK_ANOMALY_DETECTION]


def dataset(workshop: Workshop, row: Row) -> dict[str, Any]:
    folder = workshop.folder / "training"
    write_images(folder / "images", [row])
    write_head(folder / "heads", row)
    return {"images": str(folder / "images"), "heads": {"tested": str(folder / "heads")}}


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_under_the_curve_is_that_of_the_reference(ties: bool) -> None:
    random = np.random.default_rng(int(ties))
    for _ in range(50):
        scores = random.random(30)
        scores = scores.round(1) if ties else scores
        positive = random.random(30) < 0.4
        positive[:2] = True, False
        assert area_under_roc(positive, scores) == pytest.approx(reference.roc_auc_score(positive, scores))


def test_columns_that_say_the_same_side_by_side_are_one_token_and_a_gap_makes_two() -> None:
    assert scene_text_recognition.collapsed([0, 3, 3, 0, 3, 1, 1, 2, 0, 0]) == (2, 2, 0, 1)
    assert scene_text_recognition.collapsed([0, 0]) == ()


def test_edits_are_insertions_deletions_and_changes() -> None:
    edits = scene_text_recognition.edits
    assert edits("kitten", "sitting") == edits("sitting", "kitten") == 3  # type: ignore[arg-type]
    assert edits((), (1, 2)) == 2
    assert edits((1, 2), ()) == 2
    assert edits((1, 2), (1, 2)) == 0


def test_a_text_that_no_way_through_the_columns_can_say_costs_nothing_and_hurts_nothing() -> None:
    row = BY_TASK[task_pb2.TASK_SCENE_TEXT_RECOGNITION]
    task = TASKS[row.task]
    model = build_model(spec_from(model={"heads": [row.head_json()]}).model, [task.vocabulary(row.metadata)])
    read = task.reader(task.vocabulary(row.metadata), Path())
    long = [task.place(read(["a"] * 200), VIEW), task.place(read(["a", "b"]), VIEW)]
    losses = model.losses(model(torch.rand(2, 3, 16, 16)), [Targets.of(task, long)])
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.total > 0  # the other image still learns
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_most_columns_say_no_token_before_anything_is_learned() -> None:
    row = BY_TASK[task_pb2.TASK_SCENE_TEXT_RECOGNITION]
    vocabulary = TASKS[row.task].vocabulary({**row.metadata, "tokens": [*"0123456789"]})
    model = build_model(spec_from(model={"heads": [row.head_json()]}).model, [vocabulary])
    (outputs,) = model(torch.rand(2, 3, 16, 64)).values()
    none = outputs["logits"].softmax(dim=2)[..., scene_text_recognition.NONE]
    assert 0.7 < none.mean() < 0.98


def test_a_validation_text_with_a_token_that_was_never_learned_is_refused() -> None:
    task = TASKS[task_pb2.TASK_SCENE_TEXT_RECOGNITION]
    assert task.unknown({"tokens": ["a", "b"]}, {"tokens": ["b", "c"]}) == ["c"]
    with pytest.raises(WrongAnnotation, match="'c' is none of the 2 tokens"):
        task.reader({"tokens": ["a", "b"]}, Path())(["a", "c"])


def test_the_teacher_is_the_backbone_as_it_began_and_stays_so(workshop: Workshop) -> None:
    training = dataset(workshop, ANOMALIES)
    spec = spec_from(
        model={"heads": [ANOMALIES.head_json()]},
        data={"height": 32, "width": 48},
        trainer={"iterations_max": 6, "batch_size": 4, "seed": 5},
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    weights = read_weights(outcome.checkpoint_folder / "6")
    torch.manual_seed(5)
    begun = build_model(spec.model, [{}]).backbone.state_dict()
    teacher = {name: tensor for name, tensor in weights.items() if ".teacher." in name}
    assert len(teacher) == len(begun)
    for name, tensor in begun.items():
        assert torch.equal(teacher[f"head-tested.teacher.{name}"], tensor), name
    moved = [name for name, tensor in begun.items() if not torch.equal(weights[f"backbone.{name}"], tensor)]
    assert moved  # the other one has learned


def test_images_that_are_labelled_as_anomalous_never_train(tmp_path: Path) -> None:
    task = TASKS[task_pb2.TASK_ANOMALY_DETECTION]
    read = task.reader({}, tmp_path)
    (tmp_path / "annotations").mkdir()
    mask = np.zeros((10, 20), np.uint8)
    Image.fromarray(mask).save(tmp_path / "annotations" / "clean.png")
    mask[3, 4] = 255
    Image.fromarray(mask).save(tmp_path / "annotations" / "spot.png")
    for annotation, trains in (
        (None, True),
        (NORMAL, True),
        (ANOMALOUS, False),
        ({"map": "annotations/clean.png"}, True),
        ({"map": "annotations/spot.png"}, False),
        ({"map": "annotations/missing.png", "categories": [ANOMALOUS]}, False),
    ):
        assert (task.place(read(annotation), VIEW) is not None) == trains, annotation
    with pytest.raises(WrongAnnotation, match="'strange' was found"):
        read("strange")


def test_without_labelled_anomalies_the_spread_of_the_scores_is_told_and_no_area() -> None:
    head = AnomalyHead(level=1, in_channels=4, channels=4)

    def names(*states: str | None) -> set[str]:
        evaluation = head.evaluation()
        for number, state in enumerate(states):
            found = Strangeness(score=number / 10, canvas=np.zeros((10, 20), np.float32), view=VIEW)
            evaluation.add(found, State(state), VIEW)
        return {value.name for value in evaluation.values()}

    assert names(NORMAL, None, NORMAL) == set(anomaly_detection.QUANTILES)
    assert names(ANOMALOUS, None) == set(anomaly_detection.QUANTILES)
    assert names(NORMAL, ANOMALOUS, None) == {"auroc"}


def test_a_second_picture_is_changed_more_strongly_than_the_job_asks_for_and_never_less() -> None:
    found = strengthened(Augmentations(crop=0.9, rotation_degrees=20, blur=0.001))
    assert found.crop == 0.9
    assert found.rotation_degrees == 20
    assert found.blur == STRONG["blur"]
    assert found.horizontal_flip == 0


def test_weights_of_categories_scale_what_a_category_costs() -> None:
    row = BY_TASK[task_pb2.TASK_SEMANTIC_SEGMENTATION]
    task = TASKS[row.task]
    classes = torch.tensor([[[1, 1], [2, 2]]], dtype=torch.int16)
    outputs = {"logits": torch.zeros(1, 3, 2, 2)}

    def loss(**weights: float) -> float:
        head_json = row.head_json()
        head_json["semantic_segmentation"]["category_weights"] = weights
        spec = spec_from(model={"heads": [head_json]})
        head = build_model(spec.model, [task.vocabulary(row.metadata)]).heads["tested"]
        return float(head.loss(outputs, {"classes": classes})["cross_entropy"])

    assert loss(sky=3.0, ground=0.0) == pytest.approx(1.5 * loss())
    assert loss(wall=9.0) == pytest.approx(loss())  # it is not there


def test_images_alone_are_found_by_their_kind_where_another_head_says_it(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    some = {name: category if int(name[:3]) % 5 else None for name, category in halves.items()}
    training = workshop.write_dataset({"side": some, "alone": dict.fromkeys(halves)})
    for number, name in enumerate(sorted(halves)):
        picture(halves[name], number).save(Path(training["images"]) / name)
    (Path(training["heads"]["alone"]) / "metadata.json").write_text('{"task": "view-invariance learning"}')
    alone = {"id": "alone", "task": "TASK_VIEW_INVARIANCE_LEARNING"}
    side = {"id": "side", "task": "TASK_MULTICLASS_CLASSIFICATION"}
    trainer = {"iterations_max": 40, "batch_size": 16}

    def found(heads: list[dict[str, Any]]) -> dict[int, float]:
        kept = {"images": training["images"], "heads": {head["id"]: training["heads"][head["id"]] for head in heads}}
        spec = spec_from(model={"heads": heads}, trainer=trainer)
        outcome = workshop.run(workshop.write_attempt(kept, spec, validation=kept))
        assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
        assert outcome.series("alone/valid/on_diagonal")
        return outcome.series("alone/valid/knn_accuracy")

    (accuracy,) = found([side, alone]).values()
    assert accuracy > 0.5, "of four kinds, which the other head learns"
    assert found([alone]) == {}
