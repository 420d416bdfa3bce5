from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec, Trainer

from services.scheduler import specification
from services.scheduler.backbone import levels
from services.scheduler.fields import FIELDS
from services.scheduler.specification import complete, merge_trainer, violations

PROTO = Path(job_spec_pb2.__file__).with_name("job_spec.proto")
TASKS = [task for task in task_pb2.Task.values() if task]


def minimal() -> JobSpec:
    spec = JobSpec()
    spec.model.heads.add(task=task_pb2.TASK_MULTICLASS_CLASSIFICATION, id="digits")
    return spec


def fields_of(found: list[specification.Violation]) -> list[str]:
    return [violation.field for violation in found]


def changed(change: Callable[[JobSpec], object]) -> list[str]:
    spec = minimal()
    change(spec)
    return fields_of(violations(spec))


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


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("priority", lambda s: setattr(s, "priority", 1001)),
        ("display_name", lambda s: setattr(s, "display_name", "x" * 201)),
        ("display_name", lambda s: setattr(s, "display_name", "two\nlines")),
        ("labels", lambda s: s.labels.update({"Upper": "x"})),
        ("labels.long", lambda s: s.labels.update({"long": "x" * 64})),
        ("resources.gpus", lambda s: setattr(s.resources, "gpus", -1)),
        ("model.backbone.name", lambda s: setattr(s.model.backbone, "name", "resnet19")),
        ("model.backbone.frozen_levels", lambda s: setattr(s.model.backbone, "frozen_levels", 6)),
        ("model.initialization.checkpoint.checkpoint", lambda s: s.model.initialization.checkpoint.SetInParent()),
        ("model.heads[0].task", lambda s: setattr(s.model.heads[0], "task", 99)),
        ("model.heads[0].task", lambda s: setattr(s.model.heads[0], "task", 0)),
        ("model.heads[0].id", lambda s: setattr(s.model.heads[0], "id", "Digits")),
        ("model.heads[0].id", lambda s: setattr(s.model.heads[0], "id", "x" * 64)),
        ("model.heads[0].loss_weight", lambda s: setattr(s.model.heads[0], "loss_weight", -0.5)),
        ("model.heads[0].metric_learning", lambda s: s.model.heads[0].metric_learning.SetInParent()),
        (
            "model.heads[0].multiclass_classification.dropout",
            lambda s: setattr(s.model.heads[0].multiclass_classification, "dropout", 1.0),
        ),
        ("model.heads[0].annotation_set", lambda s: setattr(s.model.heads[0], "annotation_set", "x" * 201)),
        ("model.heads[0].via[0]", lambda s: s.model.heads[0].via.append(77)),
        ("model.heads[0].via[0]", lambda s: s.model.heads[0].via.append(1)),
        ("model.heads[0].via[1]", lambda s: s.model.heads[0].via.extend([3, 3])),
        ("model.heads[0].conversion_options.steps[0]", lambda s: s.model.heads[0].conversion_options.steps.add()),
        (
            "model.heads[0].conversion_options.steps[0].semantic_to_multilabel.min_pixels",
            lambda s: setattr(s.model.heads[0].conversion_options.steps.add().semantic_to_multilabel, "min_pixels", 0),
        ),
        ("data.height", lambda s: setattr(s.data, "height", 15)),
        ("data.width", lambda s: setattr(s.data, "width", 8193)),
        ("data.scaling.fill", lambda s: setattr(s.data.scaling, "fill", 1.5)),
        ("data.augmentations.rotation_degrees", lambda s: setattr(s.data.augmentations, "rotation_degrees", 181)),
        ("data.validation_split.share", lambda s: setattr(s.data.validation_split, "share", 0.0)),
        ("data.validation_split.share", lambda s: setattr(s.data.validation_split, "share", 1.0)),
        ("trainer.iterations_max", lambda s: setattr(s.trainer, "iterations_max", 0)),
        ("trainer.hours_max", lambda s: setattr(s.trainer, "hours_max", math.nan)),
        ("trainer.hours_max", lambda s: setattr(s.trainer, "hours_max", -1)),
        ("trainer.batch_size", lambda s: setattr(s.trainer, "batch_size", 0)),
        ("trainer.precision", lambda s: setattr(s.trainer, "precision", 9)),
        ("trainer.gradient_clip_norm", lambda s: setattr(s.trainer, "gradient_clip_norm", math.inf)),
        ("trainer.adamw.learning_rate", lambda s: setattr(s.trainer.adamw, "learning_rate", 0)),
        ("trainer.adamw.beta1", lambda s: setattr(s.trainer.adamw, "beta1", 1)),
        ("trainer.sgd.momentum", lambda s: setattr(s.trainer.sgd, "momentum", -0.1)),
        ("trainer.multi_step.milestones[1]", lambda s: s.trainer.multi_step.milestones.extend([0.5, 0.5, 0.7])),
        ("trainer.multi_step.milestones[0]", lambda s: s.trainer.multi_step.milestones.append(1.0)),
        ("trainer.multi_step.milestones[0]", lambda s: s.trainer.multi_step.milestones.append(math.nan)),
        (
            "trainer.multi_step.warmup_iterations",
            lambda s: setattr(s.trainer.multi_step, "warmup_iterations", 1001),
        ),
        ("trainer.one_cycle.warmup_share", lambda s: setattr(s.trainer.one_cycle, "warmup_share", 1.0)),
        ("trainer.selection_metric", lambda s: setattr(s.trainer, "selection_metric", "letters/accuracy")),
        ("trainer.selection_metric", lambda s: setattr(s.trainer, "selection_metric", "accuracy")),
        ("trainer.selection_metric", lambda s: setattr(s.trainer, "selection_metric", "digits/")),
    ],
)
def test_each_wrong_field_is_named_and_nothing_else(field: str, change: Callable[[JobSpec], object]) -> None:
    assert changed(change) == [field]


def test_all_that_is_wrong_is_said_at_once() -> None:
    spec = minimal()
    spec.trainer.batch_size = 0
    spec.data.height = 1
    spec.model.backbone.name = "vit_b_16"
    spec.model.heads[0].task = task_pb2.TASK_UNSPECIFIED
    assert set(fields_of(violations(spec))) == {
        "trainer.batch_size",
        "data.height",
        "model.backbone.name",
        "model.heads[0].task",
    }


def test_a_job_needs_a_head() -> None:
    assert fields_of(violations(JobSpec())) == ["model.heads"]


def test_heads_of_one_id_are_each_named() -> None:
    spec = minimal()
    spec.model.heads.extend([Head(task=1, id="digits"), Head(task=1)])
    assert fields_of(violations(spec)) == ["model.heads[0].id", "model.heads[1].id"]


def test_a_head_must_not_take_the_names_of_other_series() -> None:
    spec = minimal()
    spec.model.heads[0].id = "system"
    assert fields_of(violations(spec)) == ["model.heads[0].id"]


def test_an_unknown_backbone_is_answered_with_the_nearest_one() -> None:
    spec = minimal()
    spec.model.backbone.name = "resnet_18"
    assert "did you mean 'resnet18'" in violations(spec)[0].description


@pytest.mark.parametrize("name", ["vit_b_16", "maxvit_t", "vit_new"])
def test_backbones_of_one_size_are_refused_with_the_reason(name: str) -> None:
    spec = minimal()
    spec.model.backbone.name = name
    assert "one size only" in violations(spec)[0].description


def test_levels_begin_where_the_backbone_begins() -> None:
    assert levels("resnet18") == range(1, 6)
    assert levels("swin_v2_t") == range(2, 6)
    assert levels("squeezenet1_1")[-1] == 4


def test_a_neck_asks_for_multiples_of_its_coarsest_stride_and_for_levels_that_exist() -> None:
    spec = minimal()
    spec.data.height = 100
    assert violations(spec) == []
    spec.model.neck.feature_pyramid.SetInParent()
    assert fields_of(violations(spec)) == ["data.height"]
    spec.model.neck.feature_pyramid.level_max = 2
    assert "model.neck.feature_pyramid.level_min" in fields_of(violations(spec))


def test_a_neck_goes_on_where_the_backbone_ends_but_begins_where_it_has_features() -> None:
    spec = minimal()
    spec.data.height = spec.data.width = 256
    spec.model.neck.feature_pyramid.level_max = 7
    assert violations(spec) == []
    spec.data.height = 192
    assert fields_of(violations(spec)) == ["data.height"]
    spec.model.backbone.name = "tiny"
    spec.model.neck.feature_pyramid.level_min = 4
    assert "model.neck.feature_pyramid.level_min" in fields_of(violations(spec))
    spec.model.neck.feature_pyramid.level_max = 8
    assert "model.neck.feature_pyramid.level_max" in fields_of(violations(spec))


def test_the_tiny_backbone_has_no_imagenet_weights() -> None:
    spec = minimal()
    spec.model.backbone.name = "tiny"
    spec.model.initialization.imagenet_pretrained.SetInParent()
    assert fields_of(violations(spec)) == ["model.initialization.imagenet_pretrained"]


def test_nesterov_needs_momentum() -> None:
    spec = minimal()
    spec.trainer.sgd.nesterov = True
    assert violations(spec) == []
    spec.trainer.sgd.momentum = 0
    assert fields_of(violations(spec)) == ["trainer.sgd.nesterov"]


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


def test_gpus_that_would_be_left_idle_are_refused() -> None:
    spec = minimal()
    spec.resources.gpus = 2
    (found,) = violations(spec)
    assert found.field == "resources.gpus"
    assert "a job trains on one GPU" in found.description


def test_a_weight_of_a_category_is_a_number_that_can_weigh() -> None:
    spec = minimal()
    weights = spec.model.heads[0].multiclass_classification.category_weights
    weights["one"] = 0.5
    assert violations(spec) == []
    weights["two"] = math.nan
    weights["three"] = -1
    assert fields_of(violations(spec)) == [
        "model.heads[0].multiclass_classification.category_weights[three]",
        "model.heads[0].multiclass_classification.category_weights[two]",
    ]


def test_a_weight_of_a_label_is_a_number_that_can_weigh() -> None:
    spec = minimal()
    spec.model.heads[0].task = task_pb2.TASK_MULTILABEL_CLASSIFICATION
    weights = spec.model.heads[0].multilabel_classification.label_weights
    weights["one"] = 3
    assert violations(spec) == []
    weights["two"] = -1
    assert fields_of(violations(spec)) == ["model.heads[0].multilabel_classification.label_weights[two]"]


def test_a_head_that_begins_beyond_the_coarsest_level_is_refused() -> None:
    spec = JobSpec()
    spec.model.backbone.name = "tiny"
    spec.model.heads.add(task=task_pb2.TASK_SEMANTIC_SEGMENTATION).semantic_segmentation.level_min = 3
    assert violations(spec) == []
    spec.model.heads[0].semantic_segmentation.level_min = 4
    assert fields_of(violations(spec)) == ["model.heads[0].semantic_segmentation.level_min"]


def test_a_size_that_the_backbone_cannot_take_is_refused() -> None:
    spec = minimal()
    spec.model.backbone.name = "alexnet"
    spec.data.height, spec.data.width = 62, 63
    (found,) = violations(spec)
    assert (found.field, found.description) == ("data.height", "is 62, but must be at least 63 for alexnet")


def test_a_backbone_of_timm_is_frozen_as_a_whole_or_not_at_all() -> None:
    spec = minimal()
    spec.model.backbone.name = "timm/convnext_atto"
    for frozen, wanted in ((0, []), (2, ["model.backbone.frozen_levels"]), (5, [])):
        spec.model.backbone.frozen_levels = frozen
        assert fields_of(violations(spec)) == wanted


def test_a_backbone_of_timm_is_taken_by_its_name() -> None:
    spec = minimal()
    spec.model.backbone.name = "timm/convnext_atto.d2_in1k"
    assert violations(spec) == []
    spec.model.initialization.imagenet_pretrained.SetInParent()
    assert fields_of(violations(spec)) == ["model.initialization.imagenet_pretrained"]
    spec.model.initialization.random.SetInParent()
    spec.model.backbone.name = "timm/../x"
    assert fields_of(violations(spec)) == ["model.backbone.name"]


def test_a_canvas_too_narrow_for_the_longest_text_is_refused_with_the_width_that_is_needed() -> None:
    spec = JobSpec()
    text = spec.model.heads.add(task=task_pb2.TASK_SCENE_TEXT_RECOGNITION).scene_text_recognition
    assert violations(spec) == []  # the defaults fit
    text.tokens_max = 40
    (found,) = violations(spec)
    assert found.field == "model.heads[0].scene_text_recognition.tokens_max"
    assert "data.width of at least 316 where columns are read at level 2, but it is 224" in found.description
    spec.data.width = 320
    assert violations(spec) == []
    spec.model.neck.feature_pyramid.level_min = 3
    (found,) = violations(spec)
    assert "at least 632 where columns are read at level 3" in found.description
    spec.model.neck.feature_pyramid.level_min = 1
    assert violations(spec) == []


def test_every_task_can_be_submitted_with_its_defaults_alone() -> None:
    for task in TASKS:
        spec = JobSpec()
        spec.model.heads.add(task=task_pb2.Task.ValueType(task))
        assert violations(spec) == [], task


def test_a_batch_cannot_have_more_parts_than_images() -> None:
    def parts(spec: JobSpec) -> None:
        spec.trainer.batch_size, spec.trainer.micro_batches = 4, 5

    assert changed(parts) == ["trainer.micro_batches"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda spec: setattr(spec, "display_name", "na\0me"), "display_name"),
        (lambda spec: setattr(spec, "display_name", "two\nlines"), "display_name"),
        (lambda spec: spec.labels.update({"team": "a\x1b[31m"}), "labels.team"),
        (lambda spec: setattr(spec.model.heads[0], "annotation_set", "par\0ts"), "model.heads[0].annotation_set"),
        (
            lambda spec: spec.model.heads[0].multiclass_classification.category_weights.update({"c\0t": 1.0}),
            "model.heads[0].multiclass_classification.category_weights",
        ),
        (
            lambda spec: spec.model.heads[0].multiclass_classification.category_weights.update(
                {f"category-{number}": 1.0 for number in range(2_001)}
            ),
            "model.heads[0].multiclass_classification.category_weights",
        ),
        (lambda spec: setattr(spec.resources, "gpu_memory_bytes", 2**30), "resources.gpu_memory_bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: Callable[[JobSpec], object], field: str) -> None:
    assert changed(change) == [field]


def test_a_name_may_be_of_any_script() -> None:
    assert changed(lambda spec: setattr(spec, "display_name", "größer 日本語 👨\u200d👩\u200d👧")) == []


def test_a_specification_has_a_largest_size() -> None:
    def grow(spec: JobSpec) -> None:
        for number in range(32):
            head = spec.model.heads.add(task=task_pb2.TASK_MULTICLASS_CLASSIFICATION, id=f"head-{number}")
            head.multiclass_classification.category_weights.update({f"c{index}" * 20: 1.0 for index in range(500)})

    assert changed(grow) == [""]


def test_a_list_that_is_too_long_is_refused_without_a_look_at_each_of_its_entries() -> None:
    """The scheduler has one event loop: sixty thousand entries, each compared with all before it, held it for 40 s."""

    def grow(spec: JobSpec) -> None:
        spec.model.heads[0].via.extend([task_pb2.TASK_OBJECT_DETECTION] * 10_000)
        for _ in range(1_000):
            spec.model.heads[0].conversion_options.steps.add()
        spec.trainer.multi_step.milestones.extend([0.5] * 1_000)
        spec.labels.update({f"l{number}": "" for number in range(500)})

    assert sorted(changed(grow)) == [
        "labels",
        "model.heads[0].conversion_options.steps",
        "model.heads[0].via",
        "trainer.multi_step.milestones",
    ]
    heads = minimal()
    for _ in range(1_000):
        heads.model.heads.add()
    assert [each.field for each in violations(heads)] == ["model.heads"]
    for _ in range(100_000):
        heads.model.heads.add()
    assert complete(heads) == heads, "it is refused for its size, which nothing is added to"


def test_unknown_fields_are_left_out() -> None:
    spec = minimal()
    unknown = bytes([0xFA, 0x7F, 3]) + b"new"  # field 2047, which no version of ours has
    grown = JobSpec.FromString(spec.SerializeToString() + unknown)
    assert grown.SerializeToString().endswith(b"new")
    assert complete(grown) == complete(spec)
    assert not complete(grown).SerializeToString().endswith(b"new")
