"""What stands before the first step: the datasets read and split, model and optimizer built, weights loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks.task import Vocabulary
from runner.trainer.attempt_file import Attempt
from runner.trainer.average import WeightAverage
from runner.trainer.backbone import load_imagenet_weights
from runner.trainer.checkpoint import (
    Position,
    initialize_from,
    read_config,
    read_weights,
    require_room,
    resume_checkpoint,
    software_versions,
)
from runner.trainer.config import TrainerConfig
from runner.trainer.data import Data, ValidationData, evaluation_data, prepare_data
from runner.trainer.dataset import with_image_range
from runner.trainer.failure import checkpoint_failure, runner_failure, trainer_failure
from runner.trainer.model import Model, build_model
from runner.trainer.optimizer import build_optimizer
from runner.trainer.rehearsal import rehearse
from runner.trainer.reporter import Reporter
from runner.trainer.validation import Selection, selection_of
from services.chassis.machine import cores


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated: a model, and the images to do it on."""

    job: str
    dataset_fingerprint: str
    spec: job_spec_pb2.JobSpec
    vocabularies: Sequence[Vocabulary]
    shown_model: Model
    """What is validated and kept: in a training the average of the weights, where there is one."""
    validation: ValidationData
    device: torch.device
    selection: Selection
    start: Position


@dataclass(frozen=True, kw_only=True)
class Training(Subject):
    """What a training works with, ready for its next step."""

    data: Data
    model: Model
    average: WeightAverage | None
    """Of the weights, where the specification asks for one."""
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast


def prepare(attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> Training:
    """Build all parts of an attempt. Raises Failure for whatever is wrong before the first step."""
    assert attempt.training is not None, "who trains has something to train on"
    attempt = replace(attempt, spec=with_image_range(attempt.spec, attempt.training))
    spec = attempt.spec
    device = _begin(attempt, config, reporter)
    selection = selection_of(spec)
    data = prepare_data(attempt, config, device, reporter)

    torch.manual_seed(spec.trainer.seed)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape, so measuring kernels once pays
    model = build_model(spec.model, data.vocabularies)
    if attempt.resume_folder is None:
        _initialize(model, attempt, config, reporter)
        for head in model.heads.values():
            head.initialised(model)
    model.to(device)
    autocast = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=spec.trainer.precision == job_spec_pb2.PRECISION_BFLOAT16_MIXED
    )
    rehearse(model, spec, data.vocabularies, autocast)
    optimizer = build_optimizer(model, spec.trainer)
    average = WeightAverage(model, spec.trainer.ema_decay) if spec.trainer.ema_decay > 0 else None
    require_room(attempt.checkpoint_folder, model, average, optimizer)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(parameter.numel() for parameter in model.parameters())
    reporter.line(f"model: backbone {spec.model.backbone.name}, {weights} weights, {learning} of them learn")

    start = Position()
    if attempt.resume_folder is not None:
        resumed = resume_checkpoint(
            attempt.resume_folder,
            model=model,
            average=average,
            optimizer=optimizer,
            batch_size=spec.trainer.batch_size,
            device=device,
        )
        start = resumed.position
        reporter.line(f"goes on after step {start.iteration}")
        for difference in resumed.differences:
            reporter.warning(f"not as in the checkpoint: {difference}")
    return Training(
        job=attempt.job,
        dataset_fingerprint=attempt.dataset_fingerprint,
        spec=spec,
        vocabularies=data.vocabularies,
        shown_model=model if average is None else average.model,
        validation=data.validation,
        data=replace(data, start=start),
        model=model,
        average=average,
        optimizer=optimizer,
        device=device,
        autocast=autocast,
        selection=selection,
        start=start,
    )


def prepare_evaluation(attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> Subject:
    """Load the model of a checkpoint, and read what to validate it on. Raises Failure for whatever is wrong."""
    assert attempt.evaluates is not None, "an evaluation evaluates a checkpoint"
    assert attempt.resume_folder is not None, "the agent has brought it along"
    device = _begin(attempt, config, reporter)
    learned, vocabularies = read_config(attempt.resume_folder)
    spec = job_spec_pb2.JobSpec()
    spec.CopyFrom(attempt.spec)
    spec.data.CopyFrom(learned.data)  # images are seen as they were learned from, whatever this dataset says of them
    selection = selection_of(spec)
    data = evaluation_data(replace(attempt, spec=spec), vocabularies, config, device, reporter)
    model = build_model(spec.model, vocabularies)
    try:
        model.load_state_dict(read_weights(attempt.resume_folder))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise checkpoint_failure(f"the checkpoint's weights are not this model's: {reason:.500}") from error
    return Subject(
        job=attempt.job,
        dataset_fingerprint=attempt.dataset_fingerprint,
        spec=spec,
        vocabularies=vocabularies,
        shown_model=model.to(device),
        validation=data,
        device=device,
        selection=selection,
        start=Position(iteration=attempt.evaluates.iteration),
    )


def _begin(attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> torch.device:
    """Choose device and threads, and say so."""
    device = choose_device(attempt.device)
    torch.set_num_threads(config.threads or min(torch.get_num_threads(), cores()))  # torch knows no container's limit
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    reporter.line(f"attempt {attempt.number} of {attempt.job}: {versions}, {_described(device)}")
    return device


def choose_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. Raises Failure where there is no GPU and one is wanted."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise runner_failure(
            "the runner's device is cuda, but torch finds no GPU: take auto or cpu, or look after CUDA"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def _initialize(model: Model, attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> None:
    """Give a new model the weights that a fresh start begins with."""
    source = attempt.spec.model.initialization.WhichOneof("source")
    name = attempt.spec.model.backbone.name
    if source == "imagenet_pretrained":
        load_imagenet_weights(model.backbone, name, config.weights_folder)
        reporter.line(f"initialization: ImageNet weights for {name}, the rest from seed {attempt.spec.trainer.seed}")
    elif source == "checkpoint":
        wanted = attempt.spec.model.initialization.checkpoint.checkpoint
        if attempt.initialization_folder is None:
            raise trainer_failure(
                f"the model begins with the weights of {wanted}, which the runner did not bring along"
            )
        for line in initialize_from(model, read_weights(attempt.initialization_folder)):
            reporter.line(line)


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"on {torch.cuda.get_device_name(device)}"
    return f"on the CPU with {torch.get_num_threads()} threads"
