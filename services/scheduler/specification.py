"""A job's specification at the wire layer: its defaults, what may be wrong with it, and changes at a resume.

Works on `sihlai.scheduler.v1.JobSpec` itself, so that no field has a second home. Everything is a pure function of its
arguments; whether a head's task can be reached from the dataset is conversion's to say. torch must not be imported: a
scheduler has none, and a test of the runner compares the names of backbones with torchvision's own.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec, Model, Trainer

from services.chassis.errors import Violation
from services.scheduler.fields import FIELDS, LEVEL_COARSEST

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs know two classes for it, one of them private."""

DISPLAY_NAME_CHARACTERS_MAX = 200
LABELS_MAX = 64
LABEL_VALUE_CHARACTERS_MAX = 63
HEADS_MAX = 32
VIA_MAX = 8
MILESTONES_MAX = 64
NAME_CHARACTERS_MAX = 200
"""Of annotation sets, categories and metrics."""
LEVEL_COARSEST_TINY = 3

ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
METRIC = re.compile(r"[a-z0-9_]+")
CHECKPOINT = re.compile(rf"projects/{ID.pattern}/jobs/{ID.pattern}/checkpoints/([0-9]+-[0-9]+|last|best|final)")
RESERVED_HEAD_IDS = frozenset({"system", "train", "valid"})
"""First parts of other series' names: `system/…` goes by time, `train/loss` and `valid/loss` are the job's."""
VALIDATION_LOSS = "loss"
"""The selection metric where no supervised head has one; `{head}/loss` is a head's own."""

BACKBONE_DEFAULT = "resnet18"
TINY = "tiny"
MILESTONES_DEFAULT = (0.6, 0.85)

# The classification models of torchvision with convolutional features, and Swin's.
BACKBONES = frozenset(
    f"""{TINY} alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
    resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vgg19 vgg19_bn wide_resnet101_2 wide_resnet50_2""".split()
)
REFUSED_BACKBONES = frozenset({"maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"})
FIXED_SIZE_PREFIXES = ("maxvit", "vit_")
# Level i has stride 2^i. (finest, coarsest) by the name's beginning; the first that fits counts.
LEVELS: Mapping[str, tuple[int, int]] = {
    TINY: (1, LEVEL_COARSEST_TINY),
    "alexnet": (2, LEVEL_COARSEST),
    "convnext": (2, LEVEL_COARSEST),
    "squeezenet": (1, 4),
    "swin": (2, LEVEL_COARSEST),
    "": (1, LEVEL_COARSEST),
}

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
    """The specification with every default of job_spec.proto written into it. The input stays; twice is as once."""
    full = JobSpec()
    full.CopyFrom(spec)
    full.model.backbone.name = full.model.backbone.name or BACKBONE_DEFAULT
    if full.model.initialization.WhichOneof("source") is None:
        full.model.initialization.random.SetInParent()
    if full.model.neck.WhichOneof("kind") is None:
        full.model.neck.none.SetInParent()
    for head in full.model.heads:
        _complete_head(head)
    _complete_trainer(full.trainer, full.model)
    _fill(full)
    return full


def violations(spec: JobSpec) -> list[Violation]:
    """Everything that is wrong with the specification once it is complete; empty where nothing is."""
    spec = complete(spec)
    return [
        *_in_identity(spec),
        *_out_of_range(spec, ""),
        *_in_initialization(spec.model),
        *_in_features(spec),
        *_in_heads(spec.model),
        *_in_trainer(spec.trainer, spec.model),
    ]


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


def levels(backbone: str) -> range:
    """The levels of features that a backbone of BACKBONES has, finest first."""
    finest, coarsest = next(found for prefix, found in LEVELS.items() if backbone.startswith(prefix))
    return range(finest, coarsest + 1)


def task_name(task: int) -> str:
    """The task as metadata.yaml writes it."""
    return task_pb2.Task.Name(task_pb2.Task.ValueType(task)).removeprefix("TASK_").lower().replace("_", " ")


def _complete_head(head: Head) -> None:
    if not _is_task(head.task):
        return
    head.id = head.id or task_name(head.task).replace(" ", "-")
    if head.WhichOneof("parameters") is None:
        getattr(head, _parameters_of(head.task)).SetInParent()


def _complete_trainer(trainer: Trainer, model: Model) -> None:
    if trainer.precision == job_spec_pb2.PRECISION_UNSPECIFIED:
        trainer.precision = job_spec_pb2.PRECISION_FLOAT32
    if trainer.WhichOneof("optimizer") is None:
        trainer.adamw.SetInParent()
    if trainer.WhichOneof("schedule") is None:
        trainer.one_cycle.SetInParent()
    if trainer.WhichOneof("schedule") == "multi_step" and not trainer.multi_step.milestones:
        trainer.multi_step.milestones.extend(MILESTONES_DEFAULT)
    if not trainer.selection_metric:
        supervised = (f"{head.id}/{PRIMARY_METRICS[head.task]}" for head in model.heads if head.task in PRIMARY_METRICS)
        trainer.selection_metric = next(supervised, VALIDATION_LOSS)


def _fill(message: Message) -> None:
    """Write the defaults of FIELDS into a message and all below it; messages outside a oneof come into being."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            for child, _ in _children(message, field, make=field.containing_oneof is None):
                _fill(child)
            continue
        interval = FIELDS.get(_key(field))
        if interval is not None and interval.default is not None and not message.HasField(field.name):
            setattr(message, field.name, interval.default)


def _out_of_range(message: Message, path: str) -> Iterator[Violation]:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            for child, part in _children(message, field, make=False):
                yield from _out_of_range(child, f"{path}{part}.")
            continue
        interval = FIELDS.get(_key(field))
        if interval is None or field.type in (FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_STRING):
            continue
        value = getattr(message, field.name)
        if message.HasField(field.name) and not interval.holds(value):
            yield Violation(field=f"{path}{field.name}", description=f"is {value:.15g}, but must be {interval}")


def _children(message: Message, field: Field, *, make: bool) -> list[tuple[Message, str]]:
    """The messages in a field, each with its part of the path; maps have none."""
    if field.message_type.GetOptions().map_entry:
        return []
    value = getattr(message, field.name)
    if field.is_repeated:
        return [(each, f"{field.name}[{index}]") for index, each in enumerate(value)]
    if make:
        value.SetInParent()
    return [(value, field.name)] if message.HasField(field.name) else []


def _key(field: Field) -> str:
    return f"{field.containing_type.name}.{field.name}"


def _in_identity(spec: JobSpec) -> Iterator[Violation]:
    name = spec.display_name
    if len(name) > DISPLAY_NAME_CHARACTERS_MAX or not name.isprintable():
        wanted = f"at most {DISPLAY_NAME_CHARACTERS_MAX} printable characters"
        yield Violation(field="display_name", description=f"has {len(name)} characters, but must be {wanted}")
    if len(spec.labels) > LABELS_MAX:
        yield Violation(field="labels", description=f"has {len(spec.labels)} entries, but at most {LABELS_MAX} may be")
    for key, value in sorted(spec.labels.items()):
        if not ID.fullmatch(key):
            yield Violation(field="labels", description=f"the key {key!r} must match {ID.pattern}")
        if len(value) > LABEL_VALUE_CHARACTERS_MAX:
            description = f"is {len(value)} characters long, but at most {LABEL_VALUE_CHARACTERS_MAX} may be"
            yield Violation(field=f"labels.{key}", description=description)


def _in_initialization(model: Model) -> Iterator[Violation]:
    path = "model.initialization"
    source = model.initialization
    if source.WhichOneof("source") == "checkpoint" and not CHECKPOINT.fullmatch(source.checkpoint.checkpoint):
        wanted = "must be projects/{project}/jobs/{job}/checkpoints/{checkpoint}"
        description = f"is {source.checkpoint.checkpoint!r}, but {wanted}"
        yield Violation(field=f"{path}.checkpoint.checkpoint", description=description)
    if source.WhichOneof("source") == "imagenet_pretrained" and model.backbone.name == TINY:
        description = f"there are no ImageNet weights for the backbone {TINY!r}: take `random`, or another backbone"
        yield Violation(field=f"{path}.imagenet_pretrained", description=description)


def _in_features(spec: JobSpec) -> Iterator[Violation]:
    """Backbone, neck, and the size that the neck asks for."""
    name = spec.model.backbone.name
    if name not in BACKBONES:
        yield Violation(field="model.backbone.name", description=_unknown_backbone(name))
        return
    has = levels(name)
    frozen = spec.model.backbone.frozen_levels
    if LEVEL_COARSEST >= frozen > has[-1]:
        description = f"is {frozen}, but {name} has levels {has[0]} to {has[-1]}"
        yield Violation(field="model.backbone.frozen_levels", description=description)
    if spec.model.neck.WhichOneof("kind") != "feature_pyramid":
        return
    path = "model.neck.feature_pyramid"
    pyramid = spec.model.neck.feature_pyramid
    for field, level in (("level_min", pyramid.level_min), ("level_max", pyramid.level_max)):
        if FIELDS[f"FeaturePyramid.{field}"].holds(level) and level not in has:
            description = f"is {level}, but {name} has levels {has[0]} to {has[-1]}"
            yield Violation(field=f"{path}.{field}", description=description)
    if pyramid.level_min > pyramid.level_max:
        description = f"is {pyramid.level_min}, but must not be above level_max, which is {pyramid.level_max}"
        yield Violation(field=f"{path}.level_min", description=description)
    if pyramid.level_max not in has:
        return
    stride = 2**pyramid.level_max
    for field, size in (("height", spec.data.height), ("width", spec.data.width)):
        if size % stride:
            description = (
                f"is {size}, but must be a multiple of {stride}, as the neck reaches level {pyramid.level_max}"
            )
            yield Violation(field=f"data.{field}", description=description)


def _unknown_backbone(name: str) -> str:
    if name in REFUSED_BACKBONES or name.startswith(FIXED_SIZE_PREFIXES):
        return f"is {name!r}, which takes images of one size only: take a convolutional backbone or Swin"
    close = difflib.get_close_matches(name, sorted(BACKBONES), n=1, cutoff=0)
    return f"is {name!r}, which is no backbone: did you mean {close[0]!r}?"


def _in_heads(model: Model) -> Iterator[Violation]:
    if not model.heads:
        yield Violation(field="model.heads", description="is empty, but a job needs at least one head")
    if len(model.heads) > HEADS_MAX:
        description = f"has {len(model.heads)} heads, but at most {HEADS_MAX} may be"
        yield Violation(field="model.heads", description=description)
    uses = Counter(head.id for head in model.heads)
    for index, head in enumerate(model.heads):
        path = f"model.heads[{index}]"
        if uses[head.id] > 1 and head.id:
            description = f"is {head.id!r} for {uses[head.id]} heads: give each an id of its own"
            yield Violation(field=f"{path}.id", description=description)
        yield from _in_head(head, path)


def _in_head(head: Head, path: str) -> Iterator[Violation]:
    known = _is_task(head.task)
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
    if len(head.annotation_set) > NAME_CHARACTERS_MAX:
        description = f"is {len(head.annotation_set)} characters long, but at most {NAME_CHARACTERS_MAX} may be"
        yield Violation(field=f"{path}.annotation_set", description=description)
    yield from _in_via(head, path)
    yield from _in_conversion_options(head, path)


def _in_via(head: Head, path: str) -> Iterator[Violation]:
    if len(head.via) > VIA_MAX:
        yield Violation(field=f"{path}.via", description=f"has {len(head.via)} tasks, but at most {VIA_MAX} may be")
    for index, task in enumerate(head.via):
        if not _is_task(task):
            description = f"is {task}, which is no task: name one of {_task_names()}"
            yield Violation(field=f"{path}.via[{index}]", description=description)
        elif task in head.via[:index] or task == head.task:
            description = f"is {task_name(task)!r} again: a conversion passes each task once"
            yield Violation(field=f"{path}.via[{index}]", description=description)


def _in_conversion_options(head: Head, path: str) -> Iterator[Violation]:
    seen: set[str] = set()
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
        if kind == "keypoint_to_detection" and not 0 < len(name) <= NAME_CHARACTERS_MAX:
            description = f"has {len(name)} characters, but must have 1 to {NAME_CHARACTERS_MAX}"
            yield Violation(field=f"{here}.keypoint_to_detection.category_name", description=description)


def _in_trainer(trainer: Trainer, model: Model) -> Iterator[Violation]:
    if trainer.precision not in job_spec_pb2.Precision.values():
        yield Violation(field="trainer.precision", description=f"is {trainer.precision}, which is no precision")
    if trainer.sgd.nesterov and trainer.sgd.momentum == 0:
        description = "is true, but needs a momentum above 0"
        yield Violation(field="trainer.sgd.nesterov", description=description)
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
    before = 0.0
    for index, share in enumerate(schedule.milestones):
        if not before < share < 1:
            wanted = f"above {before:.15g} and below 1: shares of iterations_max, rising"
            description = f"is {share:.15g}, but must be {wanted}"
            yield Violation(field=f"{path}.milestones[{index}]", description=description)
        else:
            before = share


def _is_task(task: int) -> bool:
    return task != task_pb2.TASK_UNSPECIFIED and task in task_pb2.Task.values()


def _task_names() -> str:
    return ", ".join(task_name(task) for task in task_pb2.Task.values() if task != task_pb2.TASK_UNSPECIFIED)


def _parameters_of(task: int) -> str:
    """The member of the oneof `parameters` that belongs to a task."""
    return task_name(task).replace(" ", "_").replace("-", "_")
