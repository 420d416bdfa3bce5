"""The local dataset as the trainer sees it: images with a target for each head.

Reads the normalised form that conversion writes (metadata.json and annotations.json for each head) and nothing else. An
image that no head learns from is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Target, Vocabulary, WrongAnnotation
from runner.trainer.attempt_file import DatasetFolders
from runner.trainer.failure import Failure, dataset_failure
from services.split.choice import HeadAnnotations


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image. `targets` has an entry for each head, as it was read, None where the head does not learn from it."""

    name: str
    targets: tuple[Target | None, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images in the order of their names. `vocabularies` and `annotations` are by head, in the order of the heads."""

    image_folder: Path
    examples: tuple[Example, ...]
    vocabularies: tuple[Vocabulary, ...]
    annotations: tuple[HeadAnnotations, ...]


def read_dataset(
    folders: DatasetFolders, heads: Sequence[job_spec_pb2.Head], trained: Sequence[Vocabulary] | None = None
) -> Dataset:
    """Read a dataset for these heads. Raises Failure for a dataset that cannot be learned from.

    `trained` are the vocabularies of the training dataset, where this is the validation dataset: names are then looked
    up in them, and a name that they lack is refused, because the model has no output for it.
    """
    vocabularies = []
    annotations: list[HeadAnnotations] = []
    targets_by_head: list[dict[str, Target]] = []
    for index, head in enumerate(heads):
        if head.id not in folders.heads:
            raise dataset_failure(f"the dataset holds nothing for head {head.id!r}")
        folder = folders.heads[head.id]
        vocabulary = _vocabulary(head, folder)
        if trained is not None:
            vocabulary = _trained_vocabulary(head, trained[index], vocabulary)
        vocabularies.append(vocabulary)
        found = HeadAnnotations(task=task_of(head.task).name, annotations=_read_mapping(folder / "annotations.json"))
        annotations.append(found)
        targets_by_head.append(_targets(head, found.annotations, vocabulary, folder))
    names = sorted(set().union(*targets_by_head))
    examples = tuple(
        Example(name=name, targets=tuple(targets.get(name) for targets in targets_by_head)) for name in names
    )
    return Dataset(
        image_folder=folders.images,
        examples=examples,
        vocabularies=tuple(vocabularies),
        annotations=tuple(annotations),
    )


def with_image_range(spec: job_spec_pb2.JobSpec, folders: DatasetFolders) -> job_spec_pb2.JobSpec:
    """The specification with the image range of the dataset's metadata, where it names none of its own.

    So a checkpoint knows it, and whoever predicts with it sees images as they were learned from.
    """
    whole = job_spec_pb2.JobSpec()
    whole.CopyFrom(spec)
    if whole.data.HasField("image_range"):
        return whole
    for folder in folders.heads.values():  # all heads share their images
        if (found := _read_mapping(folder / "metadata.json").get("image_range")) is not None:
            whole.data.image_range.black, whole.data.image_range.white = found
            break
    return whole


def labelled_counts(examples: Sequence[Example], heads: int) -> list[int]:
    """How many images each head learns from."""
    return [sum(example.targets[index] is not None for example in examples) for index in range(heads)]


def _vocabulary(head: job_spec_pb2.Head, folder: Path) -> Vocabulary:
    task = task_of(head.task)
    metadata = _read_mapping(folder / "metadata.json")
    if metadata.get("task") != task.name:
        raise dataset_failure(
            f"head {head.id!r} learns {task.name}, its dataset is annotated for {metadata.get('task')!r}"
        )
    try:
        return task.vocabulary(metadata)
    except WrongAnnotation as error:
        raise dataset_failure(f"metadata.json of head {head.id!r}: {error}") from error


def _trained_vocabulary(head: job_spec_pb2.Head, trained: Vocabulary, found: Vocabulary) -> Vocabulary:
    unknown = task_of(head.task).unknown(trained, found)
    if unknown:
        raise dataset_failure(
            f"the validation dataset of head {head.id!r} names {_some(unknown)}, which the training dataset lacks:"
            " give both the same vocabulary"
        )
    return trained


def _targets(
    head: job_spec_pb2.Head, annotations: Mapping[str, Any], vocabulary: Vocabulary, folder: Path
) -> dict[str, Target]:
    """The targets of the images that the head learns from."""
    task = task_of(head.task)
    read = task.reader(vocabulary, folder)
    targets: dict[str, Target] = {}
    wrong: list[str] = []
    for name, annotation in annotations.items():
        if PurePosixPath(name).name != name or "\\" in name:
            raise dataset_failure(f"annotations.json of head {head.id!r}: {name!r} is no plain file name")
        if annotation is None and not task.images_alone:
            continue
        try:
            targets[name] = read(annotation)
        except WrongAnnotation as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise dataset_failure(f"annotations.json of head {head.id!r}: {_some(wrong, shown=1)}")
    return targets


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Failure:
    return dataset_failure(f"{path.parent.name}/{path.name} must be a JSON mapping: {error}")


def _some(words: Sequence[str], shown: int = 3) -> str:
    listed = ", ".join(words[:shown])
    return listed if len(words) <= shown else f"{listed} and {len(words) - shown} more"
