"""A job's specification as people write it."""

from pathlib import Path

import pytest
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.specification import (
    add_head,
    assign,
    read_specification,
    set_label,
    set_resolution,
)
from services.client.dataset import task_of
from services.client.specification import SpecificationError


def assigned(*assignments: str) -> JobSpec:
    spec = JobSpec()
    for assignment in assignments:
        assign(spec, assignment)
    return spec


def test_assignments_reach_every_kind_of_field() -> None:
    spec = assigned(
        "display_name=a name with = in it",
        "labels.team=vision",
        "model.backbone.name=tiny",
        "model.heads[0].task=multiclass classification",
        "model.heads[0].multiclass_classification.dropout=0.1",
        "model.heads.1.task=TASK_OBJECT_DETECTION",
        "model.heads[1].via=instance-segmentation",
        "model.neck.identity={}",
        "data.scaling.centered=no",
        "trainer.batch_size=64",
        "trainer.precision=bfloat16-mixed",
        "trainer.multi_step.milestones=0.5, 0.8",
        "trainer.sgd.learning_rate=1e-2",
    )
    assert spec.display_name == "a name with = in it"
    assert spec.labels["team"] == "vision"
    assert [head.task for head in spec.model.heads] == [
        task_pb2.TASK_MULTICLASS_CLASSIFICATION,
        task_pb2.TASK_OBJECT_DETECTION,
    ]
    assert spec.model.heads[0].multiclass_classification.dropout == 0.1
    assert list(spec.model.heads[1].via) == [task_pb2.TASK_INSTANCE_SEGMENTATION]
    assert spec.model.neck.WhichOneof("kind") == "identity"
    assert spec.data.scaling.HasField("centered")
    assert not spec.data.scaling.centered
    assert spec.trainer.batch_size == 64
    assert spec.trainer.precision == job_spec_pb2.PRECISION_BFLOAT16_MIXED
    assert list(spec.trainer.multi_step.milestones) == [0.5, 0.8]
    assert spec.trainer.sgd.learning_rate == 0.01


def test_a_later_assignment_takes_the_place_of_an_earlier_one() -> None:
    spec = assigned("trainer.sgd.momentum=0.5", "trainer.adamw.beta1=0.8", "trainer.multi_step.milestones=0.5")
    assign(spec, "trainer.multi_step.milestones=0.6,0.7")
    assert spec.trainer.WhichOneof("optimizer") == "adamw"
    assert list(spec.trainer.multi_step.milestones) == [0.6, 0.7]


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("trainer.batchsize=1", "did you mean batch_size"),
        ("trainer.batch_size=many", "must be a whole number"),
        ("trainer.hours_max=long", "must be a number"),
        ("data.scaling.centered=perhaps", "true or false"),
        ("trainer.precision=float33", "did you mean float32"),
        ("model.heads[0].task=clasification", "multi"),
        ("model.heads[2].id=a", r"the next one is \[0\]"),
        ("model.heads.id=a", r"heads\[0\]"),
        ("model.backbone=tiny", "assign to one of its fields"),
        ("trainer.batch_size.more=1", "is a value"),
        ("labels=a", "labels.KEY"),
        ("trainer.batch_size", "is no assignment"),
        ("=1", "is no assignment"),
    ],
)
def test_what_cannot_be_assigned_is_said_in_one_sentence(assignment: str, problem: str) -> None:
    with pytest.raises(SpecificationError, match=problem) as caught:
        assigned(assignment)
    assert "\n" not in str(caught.value)


def test_yaml_and_json_files_give_the_same_specification(tmp_path: Path) -> None:
    yaml, json = tmp_path / "spec.yaml", tmp_path / "spec.json"
    yaml.write_text("model:\n  backbone: {name: tiny}\ntrainer:\n  iterations_max: 5\n  adamw: {learning_rate: 0.1}\n")
    json.write_text(
        '{"model": {"backbone": {"name": "tiny"}}, "trainer": {"iterationsMax": 5, "adamw": {"learningRate": 0.1}}}'
    )
    assert read_specification(yaml) == read_specification(json)
    assert read_specification(yaml).trainer.iterations_max == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trainer: {batch: 1}", "Trainer has no field 'batch': did you mean batch_size"),
        ("- a", "must hold a mapping"),
        ("", "holds nothing"),
        ("a: [", "neither YAML nor JSON"),
        ("trainer: {batch_size: x}", "batch_size|batchSize"),
    ],
)
def test_a_file_that_is_no_specification_is_refused_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecificationError, match=problem) as caught:
        read_specification(path)
    assert "\n" not in str(caught.value)


def test_heads_resolution_and_labels_have_short_forms() -> None:
    spec = JobSpec()
    add_head(spec, "digits=multiclass-classification@second")
    add_head(spec, "object detection")
    set_resolution(spec, "480x640")
    set_label(spec, "team=vision")
    assert (spec.model.heads[0].id, spec.model.heads[0].annotation_set) == ("digits", "second")
    assert spec.model.heads[1].task == task_pb2.TASK_OBJECT_DETECTION
    assert (spec.data.height, spec.data.width) == (480, 640)
    assert dict(spec.labels) == {"team": "vision"}


def test_a_task_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SpecificationError, match="semantic-segmentation"):
        task_of("semantic segmentatoin")
