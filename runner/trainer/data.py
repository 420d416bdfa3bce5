"""The images to train and to validate on, with a target for each head, and where their batches come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Vocabulary
from runner.trainer.attempt_file import Attempt, DatasetFolders
from runner.trainer.checkpoint import Position
from runner.trainer.collation import Collation
from runner.trainer.config import TrainerConfig
from runner.trainer.dataset import Dataset, Example, labelled_counts, read_dataset
from runner.trainer.failure import dataset_failure
from runner.trainer.image import canvas_from_data
from runner.trainer.loader import Loader
from runner.trainer.machine import free_memory_bytes, loader_threads
from runner.trainer.order import Order, groups_of
from runner.trainer.reporter import Reporter
from runner.trainer.samples import HeadTruth, Samples
from runner.trainer.store import ImageStore
from services.split.choice import validation_names


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """The images to validate on."""

    collation: Collation
    batch_size: int
    loader_threads: int
    truths: Mapping[str, HeadTruth]
    """Their annotations, by head."""

    def samples(self) -> Samples:
        """What a validation shall show, with nothing in it yet."""
        return Samples([example.name for example in self.collation.examples], self.truths)

    def batches(self) -> Loader:
        """Every image once."""
        return self.collation.validation_loader(batch_size=self.batch_size, threads=self.loader_threads)


@dataclass(frozen=True, kw_only=True)
class Data:
    """All images of a training."""

    vocabularies: Sequence[Vocabulary]
    training: Collation
    validation: ValidationData
    augmentations: job_spec_pb2.Augmentations
    """Those of the specification that every head allows."""
    seed: int
    batch_size: int
    groups: Sequence[Sequence[int]] | None
    """Positions of training images that are seen equally often; None where it is every image that is."""
    loader_threads: int
    start: Position
    """Where the training goes on in the order of the images."""

    def training_batches(self, iterations: range) -> Loader:
        """The batches of the steps that follow these numbers of steps."""
        order = Order(
            self.training.examples,
            len(self.training.tasks),
            self.batch_size,
            self.seed,
            first_iteration=self.start.iteration,
            first_place=self.start.places,
            groups=self.groups,
        )
        return self.training.training_loader(
            order,
            augmentations=self.augmentations,
            seed=self.seed,
            iterations=iterations,
            threads=self.loader_threads,
        )


def prepare_data(attempt: Attempt, config: TrainerConfig, device: torch.device, reporter: Reporter) -> Data:
    """Read and split the datasets. Raises Failure where there is nothing to learn."""
    spec = attempt.spec
    heads = list(spec.model.heads)
    assert attempt.training is not None, "who trains has something to train on"
    dataset = read_dataset(attempt.training, heads)
    if attempt.validation is None:
        training, validation = _split(dataset, spec)
        found, folders = dataset, attempt.training
    else:
        found, folders = read_dataset(attempt.validation, heads, dataset.vocabularies), attempt.validation
        training, validation = dataset.examples, found.examples
    if not training:
        raise dataset_failure("no image of the training dataset has an annotation: there is nothing to learn from")
    _tell_counts(dataset, training, validation, spec, reporter)
    cache_bytes_max = _cache_bytes_max(config)
    names = [example.name for example in training]
    store = ImageStore(dataset.image_folder, names, canvas_from_data(spec.data), cache_bytes_max)
    pinned = device.type == "cuda"
    return Data(
        vocabularies=dataset.vocabularies,
        training=Collation(training, heads, store, pinned=pinned, micro_batches=spec.trainer.micro_batches),
        validation=_validation_data(
            spec, found, folders, validation, config, device, cache_bytes_max - store.cache_bytes
        ),
        augmentations=_fitting(spec, dataset.vocabularies, reporter),
        seed=spec.trainer.seed,
        batch_size=spec.trainer.batch_size,
        groups=groups_of(training, dataset.annotations) if spec.data.balanced_sampling else None,
        loader_threads=loader_threads(config.loader_threads, device),
        start=Position(),
    )


def evaluation_data(
    attempt: Attempt,
    vocabularies: Sequence[Vocabulary],
    config: TrainerConfig,
    device: torch.device,
    reporter: Reporter,
) -> ValidationData:
    """What an evaluation validates on.

    Names are looked up in the vocabularies of the model. Raises Failure where there is nothing to validate on.
    """
    spec = attempt.spec
    heads = list(spec.model.heads)
    folders = attempt.validation
    assert folders is not None, "who evaluates has something to do it on"
    dataset = read_dataset(folders, heads, vocabularies)
    examples = dataset.examples
    if not examples:
        raise dataset_failure("no image of the dataset has an annotation for a head: there is nothing to validate on")
    for head, count in zip(heads, labelled_counts(examples, len(heads)), strict=True):
        reporter.line(f"head {head.id}: {task_of(head.task).name}, {count} annotated images to validate on")
        if not count:
            reporter.warning(f"head {head.id} has no annotated image to validate on: it will have no metrics")
    return _validation_data(spec, dataset, folders, examples, config, device, _cache_bytes_max(config))


def _validation_data(
    spec: job_spec_pb2.JobSpec,
    dataset: Dataset,
    folders: DatasetFolders,
    examples: Sequence[Example],
    config: TrainerConfig,
    device: torch.device,
    cache_bytes_max: int,
) -> ValidationData:
    names = [example.name for example in examples]
    store = ImageStore(dataset.image_folder, names, canvas_from_data(spec.data), cache_bytes_max)
    heads = list(spec.model.heads)
    return ValidationData(
        collation=Collation(examples, heads, store, pinned=device.type == "cuda"),
        batch_size=math.ceil(spec.trainer.batch_size / max(1, spec.trainer.micro_batches)),
        loader_threads=loader_threads(config.loader_threads, device),
        truths={
            head.id: HeadTruth(folder=folders.heads[head.id], annotations=found.annotations)
            for head, found in zip(heads, dataset.annotations, strict=True)
        },
    )


def _cache_bytes_max(config: TrainerConfig) -> int:
    return int(free_memory_bytes() * min(1.0, config.image_cache_share))


def _fitting(
    spec: job_spec_pb2.JobSpec, vocabularies: Sequence[Vocabulary], reporter: Reporter
) -> job_spec_pb2.Augmentations:
    """The augmentations that make no head's targets wrong; says which are left out."""
    fitting = job_spec_pb2.Augmentations()
    fitting.CopyFrom(spec.data.augmentations)
    for head, vocabulary in zip(spec.model.heads, vocabularies, strict=True):
        for name, why in task_of(head.task).unfit_augmentations(vocabulary).items():
            if getattr(fitting, name):
                reporter.warning(f"data.augmentations.{name} is left out: {why} (head {head.id})")
                fitting.ClearField(name)  # type: ignore[arg-type] # a task names fields, a test compares them
    return fitting


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
