"""`attempt.json`: what the agent asks the trainer to do. No torch, no grpc.

The agent writes the file and lays the dataset beside it; the trainer reads it once. The specification in it is
complete: the scheduler has filled in every default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import json_format
from sihlai.scheduler.v1 import job_spec_pb2

from runner.trainer.failure import trainer_failure


@dataclass(frozen=True, kw_only=True)
class DatasetFolders:
    """Where a dataset lies: the images once, and by head its metadata.json and annotations.json."""

    images: Path
    heads: Mapping[str, Path]


class _Folders(msgspec.Struct, frozen=True, kw_only=True):
    images: str
    heads: dict[str, str]


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is evaluated: its name, and the steps that its model has learned."""

    checkpoint: str
    iteration: int


class _AttemptFile(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    job_uid: str
    attempt: int
    epoch: int
    spec: dict[str, Any]
    checkpoint_folder: str
    training: _Folders | None = None
    validation: _Folders | None = None
    resume_folder: str | None = None
    initialization_folder: str | None = None
    evaluates: Evaluated | None = None
    device: str = "auto"
    dataset_fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job."""

    job: str
    job_uid: str
    number: int
    epoch: int
    spec: job_spec_pb2.JobSpec
    training: DatasetFolders | None
    """None of an evaluation."""
    validation: DatasetFolders | None
    """The project's validation dataset; without one a share of the training images is taken. Of an evaluation, what it
    validates on."""
    resume_folder: Path | None
    """The checkpoint to go on from, or to evaluate."""
    evaluates: Evaluated | None
    """What is validated, where nothing is trained."""
    initialization_folder: Path | None
    """The checkpoint whose weights begin a fresh start, where the specification names one."""
    checkpoint_folder: Path
    device: str
    """`auto`, `cpu` or `cuda`."""
    dataset_fingerprint: str
    """Of the training dataset as conversion found it; of an evaluation, that of what it validates on."""


def read_attempt(path: Path) -> Attempt:
    """Read the file; relative folders in it are relative to its own. Raises Failure where it is not what it must be."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_AttemptFile)
        spec = json_format.ParseDict(found.spec, job_spec_pb2.JobSpec())
    except (OSError, msgspec.DecodeError, json_format.ParseError) as error:
        raise trainer_failure(f"an attempt file was wanted at {path}: {error}") from error
    folder = path.parent
    dataset = found.training if found.evaluates is None else found.validation
    if dataset is None or (found.evaluates is not None and found.resume_folder is None):
        raise trainer_failure(f"the attempt file {path} names no dataset, or no checkpoint to evaluate")
    return Attempt(
        job=found.job,
        job_uid=found.job_uid,
        number=found.attempt,
        epoch=found.epoch,
        spec=spec,
        training=None if found.training is None else _below(folder, found.training),
        validation=None if found.validation is None else _below(folder, found.validation),
        resume_folder=None if found.resume_folder is None else folder / found.resume_folder,
        evaluates=found.evaluates,
        initialization_folder=None if found.initialization_folder is None else folder / found.initialization_folder,
        checkpoint_folder=folder / found.checkpoint_folder,
        device=found.device,
        dataset_fingerprint=found.dataset_fingerprint,
    )


def _below(folder: Path, folders: _Folders) -> DatasetFolders:
    heads = {head: folder / path for head, path in folders.heads.items()}
    return DatasetFolders(images=folder / folders.images, heads=heads)
