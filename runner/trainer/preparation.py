"""What stands before the first step: the datasets read and split, model and optimizer built, weights loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Vocabulary
from runner.trainer.attempt_file import Attempt
from runner.trainer.backbone import load_imagenet_weights
from runner.trainer.checkpoint import Position, initialize_from, read_weights, resume_checkpoint, software_versions
from runner.trainer.config import TrainerConfig
from runner.trainer.data import Collation, ImageStore, Loader, Order, training_loader, validation_loader
from runner.trainer.dataset import Dataset, Example, labelled_counts, read_dataset
from runner.trainer.failure import dataset_failure, trainer_failure
from runner.trainer.image import canvas_from_data
from runner.trainer.model import Model, build_model, check_size
from runner.trainer.optimizer import build_optimizer
from runner.trainer.reporter import Reporter
from runner.trainer.split import validation_names
from runner.trainer.validation import Selection, selection_of


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images to train and to validate on, and where their batches come from."""

    training_images: int
    validation_images: int
    vocabularies: Sequence[Vocabulary]
    training: Collation
    order: Order
    validation: Collation
    loader_threads: int

    def training_batches(self, spec: job_spec_pb2.JobSpec, iterations: range) -> Loader:
        """The batches of the steps that follow these numbers of steps."""
        return training_loader(self.training, self.order, spec=spec, iterations=iterations, threads=self.loader_threads)

    def validation_batches(self, batch_size: int) -> Loader:
        """Every validation image once."""
        return validation_loader(
            self.validation, self.validation_images, batch_size=batch_size, threads=self.loader_threads
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training works with, ready for its next step."""

    spec: job_spec_pb2.JobSpec
    data: Data
    model: Model
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: torch.autocast
    selection: Selection
    start: Position


def prepare(attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> Training:
    """Build all parts of an attempt. Raises Failure for whatever is wrong before the first step."""
    spec = attempt.spec
    device = choose_device(attempt.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    reporter.line(f"attempt {attempt.number} of {attempt.job}: {versions}, {_described(device)}")
    selection = selection_of(spec)
    data = prepare_data(attempt, config, reporter)

    torch.manual_seed(spec.trainer.seed)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape, so measuring kernels once pays
    model = build_model(spec.model, data.vocabularies)
    if attempt.resume_folder is None:
        _initialize(model, attempt, config, reporter)
    model.to(device)
    check_size(model, spec.data.height, spec.data.width)
    optimizer = build_optimizer(model, spec.trainer)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(parameter.numel() for parameter in model.parameters())
    reporter.line(f"model: backbone {spec.model.backbone.name}, {weights} weights, {learning} of them learn")

    start = Position()
    if attempt.resume_folder is not None:
        resumed = resume_checkpoint(attempt.resume_folder, model=model, optimizer=optimizer, device=device)
        start = resumed.position
        reporter.line(f"goes on after step {start.iteration}")
        for difference in resumed.differences:
            reporter.warning(f"not as in the checkpoint: {difference}")
    bfloat16 = spec.trainer.precision == job_spec_pb2.PRECISION_BFLOAT16_MIXED
    return Training(
        spec=spec,
        data=data,
        model=model,
        optimizer=optimizer,
        device=device,
        autocast=torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16),
        selection=selection,
        start=start,
    )


def choose_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. Raises Failure where there is no GPU and one is wanted."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise trainer_failure(
            "the runner's device is cuda, but torch finds no GPU: take auto or cpu, or look after CUDA"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def prepare_data(attempt: Attempt, config: TrainerConfig, reporter: Reporter) -> Data:
    """Read and split the datasets. Raises Failure where there is nothing to learn."""
    spec = attempt.spec
    heads = list(spec.model.heads)
    dataset = read_dataset(attempt.training, heads)
    if attempt.validation is None:
        training, validation = _split(dataset, spec)
        validation_folder = dataset.image_folder
    else:
        found = read_dataset(attempt.validation, heads, dataset.vocabularies)
        training, validation, validation_folder = dataset.examples, found.examples, found.image_folder
    if not training:
        raise dataset_failure("no image of the training dataset has an annotation: there is nothing to learn from")
    _tell_counts(dataset, training, validation, spec, reporter)
    canvas = canvas_from_data(spec.data)
    store = partial(ImageStore, canvas=canvas)
    names = [example.name for example in training]
    training_store = store(dataset.image_folder, names, cache_bytes_max=config.image_cache_bytes_max)
    names = [example.name for example in validation]
    cache_bytes_left = config.image_cache_bytes_max - training_store.cache_bytes
    validation_store = store(validation_folder, names, cache_bytes_max=cache_bytes_left)
    return Data(
        training_images=len(training),
        validation_images=len(validation),
        vocabularies=dataset.vocabularies,
        training=Collation(training, heads, training_store, canvas),
        order=Order(training, len(heads), spec.trainer.batch_size, spec.trainer.seed),
        validation=Collation(validation, heads, validation_store, canvas),
        loader_threads=config.loader_threads,
    )


def _split(dataset: Dataset, spec: job_spec_pb2.JobSpec) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Images to train and to validate on."""
    chosen = validation_names(dataset.annotations, spec.data.validation_split.share, spec.data.validation_split.seed)
    training = tuple(example for example in dataset.examples if example.name not in chosen)
    return training, tuple(example for example in dataset.examples if example.name in chosen)


def _tell_counts(
    dataset: Dataset,
    training: Sequence[Example],
    validation: Sequence[Example],
    spec: job_spec_pb2.JobSpec,
    reporter: Reporter,
) -> None:
    heads = spec.model.heads
    reporter.line(f"{len(training)} images to train on, {len(validation)} to validate on")
    counts = zip(labelled_counts(training, len(heads)), labelled_counts(validation, len(heads)), strict=True)
    for head, (to_train, to_validate) in zip(heads, counts, strict=True):
        reporter.line(
            f"head {head.id}: {task_of(head.task).name}, {to_train} annotated images to train on,"
            f" {to_validate} to validate on"
        )
        if not to_train:
            reporter.warning(f"head {head.id} has no annotated image to train on: it will learn nothing")
        if not to_validate and spec.trainer.validations:
            reporter.warning(f"head {head.id} has no annotated image to validate on: it will have no metrics")


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
