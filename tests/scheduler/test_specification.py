"""Specifications are completed with every default, and a trainer's changes merged into an old one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec, Trainer

from services.scheduler import specification
from services.scheduler.fields import FIELDS
from services.scheduler.specification import complete, merge_trainer, violations
from tests.scheduler.minimal_specification import TASKS, minimal

PROTO = Path(job_spec_pb2.__file__).with_name("job_spec.proto")


def messages(message: descriptor.Descriptor) -> Iterator[descriptor.Descriptor]:
    yield message
    for field in message.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from messages(field.message_type)


def test_every_default_is_written_into_the_job() -> None:
    full = complete(minimal())
    assert full.priority == 0
    assert full.HasField("priority")
    assert full.resources.HasField("gpus")
    assert full.model.initialization.WhichOneof("source") == "random"
    assert full.model.backbone.name == "resnet18"
    assert full.model.neck.WhichOneof("kind") == "identity"
    assert full.model.heads[0].loss_weight == 1
    assert full.model.heads[0].multiclass_classification.HasField("dropout")
    assert (full.data.height, full.data.width, full.data.scaling.centered) == (224, 224, True)
    assert full.data.augmentations.HasField("saturation")
    assert full.data.validation_split.share == 0.2
    assert full.trainer.precision == job_spec_pb2.PRECISION_FLOAT32
    assert full.trainer.adamw.beta2 == 0.999
    assert full.trainer.one_cycle.final_factor == 0.0001
    assert full.trainer.selection_metric == "digits/accuracy"


def test_no_optional_field_outside_a_oneof_stays_unset() -> None:
    def unset(message: object, path: str = "") -> Iterator[str]:
        for field in message.DESCRIPTOR.fields:  # type: ignore[attr-defined]
            if field.message_type is None and field.has_presence and not message.HasField(field.name):  # type: ignore[attr-defined]
                yield path + field.name
            elif field.message_type is not None and not field.is_repeated and message.HasField(field.name):  # type: ignore[attr-defined]
                yield from unset(getattr(message, field.name), f"{path}{field.name}.")

    assert list(unset(complete(minimal()))) == []


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gets_an_id_and_its_own_parameters_and_is_then_sound(task: task_pb2.Task.ValueType) -> None:
    spec = JobSpec()
    spec.model.heads.add(task=task)
    head = complete(spec).model.heads[0]
    assert head.id == specification.task_name(task).replace(" ", "-")
    assert head.WhichOneof("parameters") == head.id.replace("-", "_")
    assert violations(spec) == []


def test_completing_twice_is_as_once_and_leaves_the_input_alone() -> None:
    spec = minimal()
    spec.trainer.multi_step.factor = 0.5
    before = spec.SerializeToString(deterministic=True)
    once = complete(spec)
    assert spec.SerializeToString(deterministic=True) == before
    assert complete(once) == once
    assert list(once.trainer.multi_step.milestones) == [0.6, 0.85]


def test_given_values_stay_also_where_they_are_zero() -> None:
    spec = minimal()
    spec.trainer.sgd.momentum = 0
    spec.data.scaling.centered = False
    spec.model.heads[0].loss_weight = 0
    full = complete(spec)
    assert full.trainer.WhichOneof("optimizer") == "sgd"
    assert (full.trainer.sgd.momentum, full.trainer.sgd.learning_rate) == (0, 0.1)
    assert full.data.scaling.centered is False
    assert full.model.heads[0].loss_weight == 0


def test_options_of_given_conversion_steps_get_their_defaults() -> None:
    spec = minimal()
    steps = spec.model.heads[0].conversion_options.steps
    steps.add().keypoint_to_detection.SetInParent()
    steps.add().semantic_to_multilabel.SetInParent()
    done = complete(spec).model.heads[0].conversion_options.steps
    assert done[0].keypoint_to_detection.category_name == "instance"
    assert done[1].semantic_to_multilabel.min_pixels == 1


@pytest.mark.parametrize(("side", "given", "level"), [(96, None, 1), (256, None, 1), (257, None, 2), (640, 1, 1)])
def test_masks_on_a_small_canvas_are_made_at_a_finer_level(side: int, given: int | None, level: int) -> None:
    for task in (task_pb2.TASK_INSTANCE_SEGMENTATION, task_pb2.TASK_PANOPTIC_SEGMENTATION):
        spec = JobSpec()
        spec.data.height, spec.data.width = side, 64
        head = spec.model.heads.add(task=task)
        name = specification.task_name(task).replace(" ", "_")
        if given is not None:
            getattr(head, name).mask_level = given
        assert getattr(complete(spec).model.heads[0], name).mask_level == level
        assert not violations(spec)


def test_selection_goes_by_the_validation_loss_where_no_head_is_supervised() -> None:
    spec = JobSpec()
    spec.model.heads.add(task=task_pb2.TASK_AUTOENCODING)
    assert complete(spec).trainer.selection_metric == "loss"
    spec.model.heads.add(task=task_pb2.TASK_SEMANTIC_SEGMENTATION, id="ground")
    assert complete(spec).trainer.selection_metric == "ground/mean_iou"


def test_the_tables_defaults_are_those_of_the_protos_comments() -> None:
    comments: dict[str, str] = {}
    stack: list[str] = []
    comment = ""
    for line in PROTO.read_text().splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment += text.removeprefix("//")
            continue
        if opened := re.match(r"(message|enum|oneof|service) (\w+) \{", text):
            stack.append(opened[2] if opened[1] == "message" else stack[-1] if stack else opened[2])
            if text.endswith("}"):
                stack.pop()
        elif text == "}":
            stack.pop()
        elif field := re.match(r"(?:optional |repeated )?[\w.<>, ]+ (\w+) = \d+;", text):
            comments[f"{stack[-1]}.{field[1]}"] = comment
        comment = ""
    said = {}
    for key, comment in comments.items():
        if key in FIELDS and (found := re.search(r"[Dd]efault (true|false|[\d.e-]*\d)|(\d), the default", comment)):
            word = found[1] or found[2]
            said[key] = {"true": True, "false": False}.get(word) if word in ("true", "false") else float(word)
    numbers = {
        key: field.default
        for key, field in FIELDS.items()
        if field.default is not None and not key.startswith(("KeypointTo", "SemanticToM"))
    }
    assert said == numbers


def test_every_number_of_the_specification_has_a_range() -> None:
    missing = [
        f"{message.name}.{field.name}"
        for message in messages(JobSpec.DESCRIPTOR)
        for field in message.fields
        if field.message_type is None and field.enum_type is None and not field.is_repeated
        if field.type != field.TYPE_STRING and f"{message.name}.{field.name}" not in FIELDS
    ]
    assert missing == []


def test_merging_replaces_the_fields_that_are_given() -> None:
    old = complete(minimal()).trainer
    merged = merge_trainer(old, Trainer(batch_size=64, adamw=job_spec_pb2.AdamW(learning_rate=0.01)))
    assert (merged.batch_size, merged.adamw.learning_rate) == (64, 0.01)
    assert (merged.iterations_max, merged.adamw.beta1) == (old.iterations_max, old.adamw.beta1)
    assert old.batch_size == 32


def test_merging_another_optimizer_or_schedule_replaces_the_old_one_whole() -> None:
    old = complete(minimal()).trainer
    merged = merge_trainer(old, Trainer(sgd=job_spec_pb2.Sgd(momentum=0.5), multi_step=job_spec_pb2.MultiStep()))
    assert (merged.WhichOneof("optimizer"), merged.WhichOneof("schedule")) == ("sgd", "multi_step")
    assert not merged.sgd.HasField("learning_rate")


def test_merging_replaces_milestones_and_does_not_append() -> None:
    old = Trainer(multi_step=job_spec_pb2.MultiStep(milestones=[0.3, 0.6], factor=0.5))
    merged = merge_trainer(old, Trainer(multi_step=job_spec_pb2.MultiStep(milestones=[0.9])))
    assert (list(merged.multi_step.milestones), merged.multi_step.factor) == ([0.9], 0.5)
    assert list(merge_trainer(old, Trainer()).multi_step.milestones) == [0.3, 0.6]


def test_merging_nothing_changes_nothing() -> None:
    old = complete(minimal()).trainer
    assert merge_trainer(old, Trainer()) == old


def test_unknown_fields_are_left_out() -> None:
    spec = minimal()
    unknown = bytes([0xFA, 0x7F, 3]) + b"new"  # field 2047, which no version of ours has
    grown = JobSpec.FromString(spec.SerializeToString() + unknown)
    assert grown.SerializeToString().endswith(b"new")
    assert complete(grown) == complete(spec)
    assert not complete(grown).SerializeToString().endswith(b"new")
