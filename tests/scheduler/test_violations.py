"""What is wrong with a specification: each field is named, with the reason, and all of it at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec

from services.scheduler import specification
from services.scheduler.backbone import levels
from services.scheduler.specification import complete, violations
from tests.scheduler.minimal_specification import TASKS, minimal


def fields_of(found: list[specification.Violation]) -> list[str]:
    return [violation.field for violation in found]


def changed(change: Callable[[JobSpec], object]) -> list[str]:
    spec = minimal()
    change(spec)
    return fields_of(violations(spec))


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
