"""A job's specification at the wire layer: its defaults, what may be wrong with it, and changes at a resume.

Works on `sihlai.scheduler.v1.JobSpec` itself, so that no field has a second home. Everything is a pure function of its
arguments; whether a head's task can be reached from the dataset is conversion's to say. torch must not be imported: a
scheduler has none, and a test of the runner compares the names of backbones with torchvision's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, Literal, TypeAlias

from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Data, Head, JobSpec, Model, Resources, Trainer

from services.chassis.errors import Violation
from services.chassis.text import text_violations
from services.scheduler.backbone import OWN_BACKBONES, TIMM, is_backbone, levels, size_min, unknown_backbone
from services.scheduler.fields import CATEGORY_WEIGHT, FIELDS, LEVEL_COARSEST, WEIGHTS
from services.scheduler.ranges import fill, out_of_range

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs know two classes for it, one of them private."""

DISPLAY_NAME_CHARACTERS_MAX = 200
LABELS_MAX = 64
LABEL_VALUE_CHARACTERS_MAX = 63
HEADS_MAX = 32
VIA_MAX = 8
MILESTONES_MAX = 64
GPUS_USED_MAX = 1
"""More would be held, and left idle: the trainer uses one."""
NAME_CHARACTERS_MAX = 200
"""Of annotation sets, categories and metrics."""
WEIGHTS_MAX = 2_000
MODELS_REMEMBERED = 256
"""With their data: they were completed, and looked at, before. Each is as large as a specification may be at most."""
MODEL_AND_DATA = frozenset({"model", "data"})
SPEC_BYTES_MAX = 64 * 1024
"""Of a complete specification: lists send it with each job."""

ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
METRIC = re.compile(r"[a-z0-9_]+")
CHECKPOINT_ID = re.compile("[0-9]{1,18}-[0-9]{1,18}|last|best|final")
CHECKPOINT = re.compile(rf"projects/{ID.pattern}/jobs/{ID.pattern}/checkpoints/({CHECKPOINT_ID.pattern})")
RESERVED_HEAD_IDS = frozenset({"system", "train", "valid"})
"""First parts of other series' names: `system/…` goes by time, `train/loss` and `valid/loss` are the job's."""
VALIDATION_LOSS = "loss"
"""The selection metric where no supervised head has one; `{head}/loss` is a head's own."""

BACKBONE_DEFAULT = "resnet18"
MASKED = frozenset({"instance_segmentation", "panoptic_segmentation"})
SMALL_CANVAS_SIDE_PIXELS = 256
TEXT: Literal["scene_text_recognition"] = "scene_text_recognition"
MILESTONES_DEFAULT = (0.6, 0.85)

TASKS = tuple(task for task in task_pb2.Task.values() if task != task_pb2.TASK_UNSPECIFIED)
PRIMARY_METRICS: Mapping[int, str] = {
    task_pb2.TASK_MULTICLASS_CLASSIFICATION: "accuracy",
    task_pb2.TASK_MULTILABEL_CLASSIFICATION: "map",
    task_pb2.TASK_METRIC_LEARNING: "precision_at_1",
    task_pb2.TASK_REGRESSION: "mae",
    task_pb2.TASK_SCENE_TEXT_RECOGNITION: "exact_match",
    task_pb2.TASK_OBJECT_DETECTION: "map",
    task_pb2.TASK_QUADRILATERAL_DETECTION: "map",
    task_pb2.TASK_KEYPOINT_DETECTION: "ap",
    task_pb2.TASK_INSTANCE_SEGMENTATION: "map",
    task_pb2.TASK_SEMANTIC_SEGMENTATION: "mean_iou",
    task_pb2.TASK_PANOPTIC_SEGMENTATION: "pq",
    task_pb2.TASK_DEPTH_ESTIMATION: "rmse",
}
"""Of the supervised tasks: the metric's name under `{head}/valid/`."""


def complete(spec: JobSpec) -> JobSpec:
    """The specification with every default of job_spec.proto written into it. The input stays; twice is as once.

    What is too large is left as it is: `violations_in` refuses it, and millions of heads would hold everybody up.
    """
    full = JobSpec()
    full.CopyFrom(spec)
    full.DiscardUnknownFields()  # of any size, and never to be read
    if full.ByteSize() > SPEC_BYTES_MAX:
        return full
    model = full.model.SerializeToString(deterministic=True)
    data = full.data.SerializeToString(deterministic=True)
    full.ClearField("model")
    full.ClearField("data")
    full.MergeFromString(_complete_model_and_data(model, data))
    _complete_trainer(full.trainer, full.model)
    fill(full, without=MODEL_AND_DATA)
    return full


@lru_cache(maxsize=MODELS_REMEMBERED)
def _complete_model_and_data(model: bytes, data: bytes) -> bytes:
    """A specification with these two alone, complete. The jobs of a sweep, or of every night, differ elsewhere."""
    spec = JobSpec(model=Model.FromString(model), data=Data.FromString(data))
    spec.model.backbone.name = spec.model.backbone.name or BACKBONE_DEFAULT
    if spec.model.initialization.WhichOneof("source") is None:
        spec.model.initialization.random.SetInParent()
    if spec.model.neck.WhichOneof("kind") is None:
        spec.model.neck.identity.SetInParent()
    for head in spec.model.heads:
        _complete_head(head)
    spec.data.bad_data = spec.data.bad_data or job_spec_pb2.BAD_DATA_FAIL_AT_START
    fill(spec.model)
    fill(spec.data)
    for head in spec.model.heads:
        _complete_masks(head, max(spec.data.height, spec.data.width))
    return spec.SerializeToString(deterministic=True)


def violations(spec: JobSpec) -> list[Violation]:
    """Everything that is wrong with the specification once it is complete; empty where nothing is."""
    return violations_in(complete(spec))


def violations_in(spec: JobSpec) -> list[Violation]:
    """Everything that is wrong with a complete specification."""
    if spec.ByteSize() > SPEC_BYTES_MAX:
        description = f"has {spec.ByteSize()} bytes once it is complete, but at most {SPEC_BYTES_MAX} may be"
        return [Violation(field="", description=description)]
    model = spec.model.SerializeToString(deterministic=True)
    data = spec.data.SerializeToString(deterministic=True)
    return [
        *_in_identity(spec),
        *_in_resources(spec.resources),
        *out_of_range(spec, without=MODEL_AND_DATA),
        *_in_model_and_data(model, data),
        *_in_trainer(spec.trainer, spec.model),
    ]


@lru_cache(maxsize=MODELS_REMEMBERED)
def _in_model_and_data(model: bytes, data: bytes) -> tuple[Violation, ...]:
    """The longest part of it; see `_complete_model_and_data`."""
    spec = JobSpec(model=Model.FromString(model), data=Data.FromString(data))
    return (
        *out_of_range(spec),
        *_in_initialization(spec.model),
        *_in_features(spec),
        *_in_heads(spec.model),
        *_in_choice("data.bad_data", spec.data.bad_data, job_spec_pb2.BadData),
    )


def merge_trainer(old: Trainer, changes: Trainer) -> Trainer:
    """`old` with every field that is set in `changes`. Another optimizer or schedule replaces the old one whole.

    Not completed: what a new optimizer leaves open gets its default from `complete`.
    """
    merged = Trainer()
    merged.CopyFrom(old)
    if changes.multi_step.milestones:
        del merged.multi_step.milestones[:]  # MergeFrom would append to them
    merged.MergeFrom(changes)
    return merged


@cache
def task_name(task: int) -> str:
    """The task as metadata.yaml writes it."""
    words = task_pb2.Task.Name(task_pb2.Task.ValueType(task)).removeprefix("TASK_").lower().replace("_", " ")
    return words.replace("view invariance", "view-invariance")  # the one name with a dash


def _complete_masks(head: Head, side: int) -> None:
    """Masks on a small canvas are made at a finer level: what is on it is thinner than a coarse cell."""
    parameters = head.WhichOneof("parameters")
    if parameters in MASKED and not getattr(head, parameters).HasField("mask_level"):
        getattr(head, parameters).mask_level = 1 if side <= SMALL_CANVAS_SIDE_PIXELS else 2


def _complete_head(head: Head) -> None:
    if head.task not in TASKS:
        return
    head.id = head.id or task_name(head.task).replace(" ", "-")
    if head.WhichOneof("parameters") is None:
        getattr(head, _parameters_of(head.task)).SetInParent()


def _complete_trainer(trainer: Trainer, model: Model) -> None:
    trainer.precision = trainer.precision or job_spec_pb2.PRECISION_FLOAT32
    if trainer.WhichOneof("optimizer") is None:
        trainer.adamw.SetInParent()
    if trainer.WhichOneof("schedule") is None:
        trainer.one_cycle.SetInParent()
    if trainer.WhichOneof("schedule") == "multi_step" and not trainer.multi_step.milestones:
        trainer.multi_step.milestones.extend(MILESTONES_DEFAULT)
    if not trainer.selection_metric:
        supervised = (f"{head.id}/{PRIMARY_METRICS[head.task]}" for head in model.heads if head.task in PRIMARY_METRICS)
        trainer.selection_metric = next(supervised, VALIDATION_LOSS)


def _in_identity(spec: JobSpec) -> Iterator[Violation]:
    yield from text_violations(spec.display_name, "display_name", characters_max=DISPLAY_NAME_CHARACTERS_MAX)
    if len(spec.labels) > LABELS_MAX:
        yield Violation(field="labels", description=f"has {len(spec.labels)} entries, but at most {LABELS_MAX} may be")
        return
    for key, value in sorted(spec.labels.items()):
        if not ID.fullmatch(key):
            yield Violation(field="labels", description=f"the key {key!r} must match {ID.pattern}")
        yield from text_violations(value, f"labels.{key}", characters_max=LABEL_VALUE_CHARACTERS_MAX)


def _in_resources(resources: Resources) -> Iterator[Violation]:
    if FIELDS["Resources.gpus"].holds(resources.gpus) and resources.gpus > GPUS_USED_MAX:
        description = f"is {resources.gpus}, but a job trains on one GPU in this version: ask for {GPUS_USED_MAX} or 0"
        yield Violation(field="resources.gpus", description=description)
    if resources.gpus == 0 and resources.gpu_memory_bytes > 0:
        description = (
            f"is {resources.gpu_memory_bytes}, but resources.gpus is 0: ask for a GPU, or for no memory of one"
        )
        yield Violation(field="resources.gpu_memory_bytes", description=description)


def _in_initialization(model: Model) -> Iterator[Violation]:
    path = "model.initialization"
    source = model.initialization
    if source.WhichOneof("source") == "checkpoint" and not CHECKPOINT.fullmatch(source.checkpoint.checkpoint):
        wanted = "must be projects/{project}/jobs/{job}/checkpoints/{checkpoint}"
        description = f"is {source.checkpoint.checkpoint!r}, but {wanted}"
        yield Violation(field=f"{path}.checkpoint.checkpoint", description=description)
    if source.WhichOneof("source") == "imagenet_pretrained" and (
        model.backbone.name in OWN_BACKBONES or TIMM.fullmatch(model.backbone.name)
    ):
        name = model.backbone.name
        description = f"there are no ImageNet weights for the backbone {name!r}: take `random`, or another backbone"
        yield Violation(field=f"{path}.imagenet_pretrained", description=description)


def _in_features(spec: JobSpec) -> Iterator[Violation]:
    """Backbone, neck, and the size that the neck asks for."""
    name = spec.model.backbone.name
    if not is_backbone(name):
        yield Violation(field="model.backbone.name", description=unknown_backbone(name))
        return
    yield from _in_sizes(spec)
    yield from _in_level_min(spec)
    yield from _in_columns(spec)
    has = levels(name)
    frozen = spec.model.backbone.frozen_levels
    if LEVEL_COARSEST >= frozen > has[-1]:
        description = f"is {frozen}, but {name} has levels {has[0]} to {has[-1]}"
        yield Violation(field="model.backbone.frozen_levels", description=description)
    if TIMM.fullmatch(name) and 0 < frozen < LEVEL_COARSEST:
        description = f"is {frozen}, but of a backbone of timm's all {LEVEL_COARSEST} levels are frozen, or 0"
        yield Violation(field="model.backbone.frozen_levels", description=description)
    if spec.model.neck.WhichOneof("kind") != "feature_pyramid":
        return
    path = "model.neck.feature_pyramid"
    pyramid = spec.model.neck.feature_pyramid
    if FIELDS["FeaturePyramid.level_min"].holds(pyramid.level_min) and pyramid.level_min not in has:
        description = f"is {pyramid.level_min}, but {name} has levels {has[0]} to {has[-1]}"
        yield Violation(field=f"{path}.level_min", description=description)
    if pyramid.level_min > pyramid.level_max:
        description = f"is {pyramid.level_min}, but must not be above level_max, which is {pyramid.level_max}"
        yield Violation(field=f"{path}.level_min", description=description)
    if not FIELDS["FeaturePyramid.level_max"].holds(pyramid.level_max):
        return
    stride = 2**pyramid.level_max
    for field, size in (("height", spec.data.height), ("width", spec.data.width)):
        if size % stride:
            description = (
                f"is {size}, but must be a multiple of {stride}, as the neck reaches level {pyramid.level_max}"
            )
            yield Violation(field=f"data.{field}", description=description)


def _in_sizes(spec: JobSpec) -> Iterator[Violation]:
    name = spec.model.backbone.name
    for field, size in (("height", spec.data.height), ("width", spec.data.width)):
        if FIELDS[f"Data.{field}"].holds(size) and size < size_min(name):
            description = f"is {size}, but must be at least {size_min(name)} for {name}"
            yield Violation(field=f"data.{field}", description=description)


def _in_level_min(spec: JobSpec) -> Iterator[Violation]:
    """Heads that ask for levels finer than a coarsest one that is too fine for them."""
    pyramid = spec.model.neck.feature_pyramid
    has_neck = spec.model.neck.WhichOneof("kind") == "feature_pyramid"
    coarsest = pyramid.level_max if has_neck else levels(spec.model.backbone.name)[-1]
    for index, head in enumerate(spec.model.heads):
        parameters = head.WhichOneof("parameters")
        level_min = getattr(getattr(head, parameters), "level_min", 0) if parameters else 0
        if level_min > coarsest:
            description = f"is {level_min}, but the coarsest level of features is {coarsest}"
            yield Violation(field=f"model.heads[{index}].{parameters}.level_min", description=description)


def _in_columns(spec: JobSpec) -> Iterator[Violation]:
    """Heads that read columns of features: as many as the longest text needs, a blank between any two tokens."""
    pyramid = spec.model.neck.feature_pyramid
    has_neck = spec.model.neck.WhichOneof("kind") == "feature_pyramid"
    there = range(pyramid.level_min, pyramid.level_max + 1) if has_neck else levels(spec.model.backbone.name)
    readers = ((i, h.scene_text_recognition) for i, h in enumerate(spec.model.heads) if h.HasField(TEXT))
    for index, text in readers:
        finest = next((level for level in (0, *there) if level >= text.level_min), LEVEL_COARSEST)
        needed = (2 * text.tokens_max - 1) * 2**finest
        if FIELDS["SceneTextRecognition.tokens_max"].holds(text.tokens_max) and spec.data.width < needed:
            description = (
                f"is {text.tokens_max}, which needs a data.width of at least {needed} where columns are read at level"
                f" {finest}, but it is {spec.data.width}: make the canvas wider, or lower tokens_max or level_min"
            )
            yield Violation(field=f"model.heads[{index}].{TEXT}.tokens_max", description=description)


def _in_heads(model: Model) -> Iterator[Violation]:
    if not model.heads:
        yield Violation(field="model.heads", description="is empty, but a job needs at least one head")
    if len(model.heads) > HEADS_MAX:
        description = f"has {len(model.heads)} heads, but at most {HEADS_MAX} may be"
        yield Violation(field="model.heads", description=description)
        return
    uses = Counter([head.id for head in model.heads])
    for index, head in enumerate(model.heads):
        path = f"model.heads[{index}]"
        if uses[head.id] > 1 and head.id:
            description = f"is {head.id!r} for {uses[head.id]} heads: give each an id of its own"
            yield Violation(field=f"{path}.id", description=description)
        yield from _in_head(head, path)


def _in_head(head: Head, path: str) -> Iterator[Violation]:
    known = head.task in TASKS
    if not known:
        found = "is missing" if head.task == task_pb2.TASK_UNSPECIFIED else f"is {head.task}, which is no task"
        yield Violation(field=f"{path}.task", description=f"{found}: name one of {_task_names()}")
    if head.id in RESERVED_HEAD_IDS:
        description = f"is {head.id!r}, which begins the names of other series: take another"
        yield Violation(field=f"{path}.id", description=description)
    elif (known or head.id) and not ID.fullmatch(head.id):
        yield Violation(field=f"{path}.id", description=f"is {head.id!r}, but must match {ID.pattern}")
    given = head.WhichOneof("parameters")
    if known and given != (wanted := _parameters_of(head.task)):
        description = f"does not belong to the task {task_name(head.task)!r}: give {wanted}, or nothing"
        yield Violation(field=f"{path}.{given}", description=description)
    if given is not None and given in WEIGHTS:
        yield from _in_weights(getattr(getattr(head, given), WEIGHTS[given]), f"{path}.{given}.{WEIGHTS[given]}")
    yield from text_violations(head.annotation_set, f"{path}.annotation_set", characters_max=NAME_CHARACTERS_MAX)
    yield from _in_via(head, path)
    yield from _in_conversion_options(head, path)


def _in_weights(weights: Mapping[str, float], field: str) -> Iterator[Violation]:
    if len(weights) > WEIGHTS_MAX:
        yield Violation(field=field, description=f"has {len(weights)} entries, but at most {WEIGHTS_MAX} may be")
        return
    for category, weight in sorted(weights.items()):
        for found in text_violations(category, field, characters_max=NAME_CHARACTERS_MAX):
            yield Violation(field=field, description=f"a name {found.description}")
        if not CATEGORY_WEIGHT.holds(weight):
            description = f"is {weight:.15g}, but must be {CATEGORY_WEIGHT}"
            yield Violation(field=f"{field}[{category[:NAME_CHARACTERS_MAX]}]", description=description)


def _in_via(head: Head, path: str) -> Iterator[Violation]:
    if len(head.via) > VIA_MAX:
        yield Violation(field=f"{path}.via", description=f"has {len(head.via)} tasks, but at most {VIA_MAX} may be")
        return
    for index, task in enumerate(head.via):
        if task not in TASKS:
            description = f"is {task}, which is no task: name one of {_task_names()}"
            yield Violation(field=f"{path}.via[{index}]", description=description)
        elif task in head.via[:index] or task == head.task:
            description = f"is {task_name(task)!r} again: a conversion passes each task once"
            yield Violation(field=f"{path}.via[{index}]", description=description)


def _in_conversion_options(head: Head, path: str) -> Iterator[Violation]:
    seen: set[str] = set()
    if len(head.conversion_options.steps) > VIA_MAX:
        description = f"has {len(head.conversion_options.steps)} steps, but at most {VIA_MAX} may be"
        yield Violation(field=f"{path}.conversion_options.steps", description=description)
        return
    for index, step in enumerate(head.conversion_options.steps):
        kind = step.WhichOneof("step")
        here = f"{path}.conversion_options.steps[{index}]"
        if kind is None:
            yield Violation(field=here, description="names no step: give its options, or leave it out")
            continue
        if kind in seen:
            yield Violation(field=here, description=f"is for {kind} again: give one entry for each kind of step")
        seen.add(kind)
        name = step.keypoint_to_detection.category_name
        if kind == "keypoint_to_detection":
            field = f"{here}.keypoint_to_detection.category_name"
            yield from text_violations(name, field, characters_max=NAME_CHARACTERS_MAX)
            if not name:
                yield Violation(field=field, description="is empty: give a name, or leave it out")


def _in_choice(field: str, value: int, kind: Any) -> Iterator[Violation]:
    if value not in kind.DESCRIPTOR.values_by_number:
        yield Violation(field=field, description=f"is {value}, but must be one of {', '.join(kind.keys()[1:])}")


def _in_trainer(trainer: Trainer, model: Model) -> Iterator[Violation]:
    yield from _in_choice("trainer.precision", trainer.precision, job_spec_pb2.Precision)
    if trainer.sgd.nesterov and trainer.sgd.momentum == 0:
        yield Violation(field="trainer.sgd.nesterov", description="is true, but needs a momentum above 0")
    if FIELDS["Trainer.batch_size"].holds(trainer.batch_size) and trainer.micro_batches > trainer.batch_size:
        description = f"is {trainer.micro_batches}, but a batch of {trainer.batch_size} has no more parts than images"
        yield Violation(field="trainer.micro_batches", description=description)
    if trainer.WhichOneof("schedule") == "multi_step":
        yield from _in_multi_step(trainer)
    head_id, slash, metric = trainer.selection_metric.rpartition("/")
    head_ids = [head.id for head in model.heads]
    if slash and head_id not in head_ids:
        description = f"is {trainer.selection_metric!r}, but the job's heads are {', '.join(head_ids) or 'none'}"
        yield Violation(field="trainer.selection_metric", description=description)
    elif not METRIC.fullmatch(metric) or len(metric) > NAME_CHARACTERS_MAX or not (slash or metric == VALIDATION_LOSS):
        description = f"is {trainer.selection_metric!r}, but must be {{head}}/{{metric}}, or {VALIDATION_LOSS!r}"
        yield Violation(field="trainer.selection_metric", description=description)


def _in_multi_step(trainer: Trainer) -> Iterator[Violation]:
    path = "trainer.multi_step"
    schedule = trainer.multi_step
    if schedule.warmup_iterations > trainer.iterations_max:
        description = f"is {schedule.warmup_iterations}, but the job has {trainer.iterations_max} iterations"
        yield Violation(field=f"{path}.warmup_iterations", description=description)
    if len(schedule.milestones) > MILESTONES_MAX:
        description = f"has {len(schedule.milestones)} entries, but at most {MILESTONES_MAX} may be"
        yield Violation(field=f"{path}.milestones", description=description)
        return
    before = 0.0
    for index, share in enumerate(schedule.milestones):
        if not before < share < 1:
            description = f"is {share:.15g}, but must be above {before:.15g} and below 1: shares, rising"
            yield Violation(field=f"{path}.milestones[{index}]", description=description)
        else:
            before = share


def _task_names() -> str:
    return ", ".join(task_name(task) for task in TASKS)


@cache
def _parameters_of(task: int) -> str:
    """The member of the oneof `parameters` that belongs to a task."""
    return task_name(task).replace(" ", "_").replace("-", "_")
