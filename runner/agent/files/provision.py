"""From an assignment to what the trainer needs on this disk: converted, downloaded, and written down in attempt.json.

Can be cancelled at any await. Whatever it raises says why the attempt cannot begin; `ending_of_provision` turns that
into the attempt's end.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from google.protobuf import json_format
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.logs.v1 import log_line_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2, job_spec_pb2

from runner.agent.config import Device
from runner.agent.disk import on_disk
from runner.agent.fault import RunnerFault, fault_of
from runner.agent.files.conversion import Conversion
from runner.agent.files.download import (
    CheckpointDamaged,
    Downloaded,
    Downloads,
    IndexedImage,
    Wanted,
    check_name,
)
from runner.agent.files.left_out import check_share, finding, forget, skips, told
from runner.agent.files.set_aside import SetAside, set_aside
from runner.agent.telemetry.recorder import Recorder
from runner.agent.trainer.ending import Ending, ending_of_fault, ending_of_outage, failure
from services.chassis.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    Reason,
    RetryableError,
    SihlaiError,
    Unauthenticated,
)

ATTEMPT_FILE = "attempt.json"
DATASET = "dataset"
RESUME = "resume"
INITIALIZATION = "initialization"
CHECKPOINTS = "checkpoints"
AGAIN = {
    Reason.OBJECT_STORE_UNAVAILABLE: "a store that conversion needs cannot be reached, it is tried again",
    Reason.DATASET_CHANGED: "the dataset is read anew",
}
"""Why conversion is asked again, where it is not conversion that is away."""
TRAINING, VALIDATION = "training", "validation"
MODEL_FILES = frozenset({"model.safetensors", "config.json"})
"""What an evaluation needs of a checkpoint."""
PROGRESS_LINE_SECONDS = 10.0
"""How often a long conversion or download says in the log how far it is."""


OnConverted: TypeAlias = Callable[[str, str, conversion.ConversionResult, Sequence[dataset_pb2.Finding]], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """How far the provision is: what it does in words, and how much of it is done (`total` 0: unknown)."""

    phase: str
    done: int = 0
    total: int = 0


class Provision:
    """One attempt's provision, in the attempt's own folder. `on_work` is called often, and must be cheap.

    `on_converted` gets the split, the head and the result of each conversion once its images are here, or cannot be
    had, with what was left out of them; `on_problem` what is waited for, in words, and nothing once that is over.
    """

    def __init__(
        self,
        assignment: wire.Assignment,
        folder: Path,
        *,
        device: Device,
        conversion_service: Conversion,
        downloads: Downloads,
        recorder: Recorder,
        on_work: Callable[[Work], None],
        on_fingerprint: Callable[[str], None],
        on_converted: OnConverted,
        on_problem: Callable[[str], None],
    ) -> None:
        self._assignment = assignment
        self._folder = folder
        self._device = device
        self._conversion = conversion_service
        self._downloads = downloads
        self._recorder = recorder
        self._on_work = on_work
        self._on_fingerprint = on_fingerprint
        self._on_converted = on_converted
        self._on_problem = on_problem
        self._fingerprint = assignment.dataset_fingerprint
        self._validated_fingerprint = ""
        self._said_at = 0.0

    async def run(self) -> Path:
        """Fetch everything; the attempt file."""
        assignment = self._assignment
        dataset = self._folder / DATASET
        training = validation = None
        has_validation = assignment.HasField("validation_dataset")
        if not (assignment.evaluation and has_validation):
            training = await self._dataset(assignment.training_dataset, dataset / TRAINING, is_training=True)
        if has_validation:
            validation = await self._dataset(assignment.validation_dataset, dataset / VALIDATION, is_training=False)
        resume_folder = initialization_folder = None
        if assignment.HasField("resume_from"):
            only = MODEL_FILES if assignment.evaluation else None
            resume_folder = await self._checkpoint(assignment.resume_from, self._folder / RESUME, only)
        if assignment.HasField("initialization"):
            initialization_folder = await self._checkpoint(assignment.initialization, self._folder / INITIALIZATION)
        content = {
            "job": assignment.job,
            "job_uid": assignment.job_uid,
            "attempt": assignment.attempt,
            "epoch": assignment.epoch,
            "spec": json_format.MessageToDict(assignment.spec, preserving_proto_field_name=True),
            "training": training,
            "validation": validation,
            "resume_folder": None if resume_folder is None else str(resume_folder),
            "initialization_folder": None if initialization_folder is None else str(initialization_folder),
            "checkpoint_folder": str(self._folder / CHECKPOINTS),
            "checkpoint_uri": assignment.checkpoint_uri,
            "device": self._device.value,
            "dataset_fingerprint": self._fingerprint,
        }
        if assignment.evaluation:
            evaluated = assignment.resume_from
            content["training"], content["validation"] = None, validation or training
            content["evaluates"] = {"checkpoint": evaluated.name, "iteration": evaluated.iteration}
            content["dataset_fingerprint"] = self._validated_fingerprint or self._fingerprint
        await on_disk((self._folder / CHECKPOINTS).mkdir, exist_ok=True)
        path = self._folder / ATTEMPT_FILE
        await on_disk(path.write_text, json.dumps(content, indent=1))
        return path

    async def _dataset(
        self, source: dataset_pb2.DatasetSource, folder: Path, *, is_training: bool
    ) -> dict[str, object]:
        """Convert and fetch one dataset for all heads; its folders, as attempt.json names them."""
        images: dict[str, IndexedImage] = {}
        images_uri = ""
        maps: list[Wanted] = []
        heads: dict[str, Path] = {}
        results: dict[str, conversion.ConversionResult] = {}
        left_out: Mapping[str, SihlaiError] = {}
        try:
            for head in self._assignment.spec.model.heads:
                check_name(head.id)
                results[head.id] = result = await self._converted(source, head, is_training=is_training)
                heads[head.id] = target = folder / "heads" / head.id
                found = await self._downloads.head(result.dataset, target, on_problem=self._on_problem)
                images |= {image.name: image for image in found.images}
                images_uri = found.images_uri
                maps += found.maps
            if is_training and self._assignment.evaluation:
                kept = await on_disk(self._set_aside, list(heads.values()))
                images = {name: image for name, image in images.items() if name in kept.images}
                maps = [each for each in maps if each.path in kept.maps]
            wanted = [*self._downloads.images(source, images_uri, images.values(), folder / "images"), *maps]
            what = f"{folder.name} images and maps" if maps else f"{folder.name} images"
            fetched = await self._downloads.files(
                wanted,
                folder,
                on_progress=lambda done, total: self._work("downloading", done, total, what),
                on_problem=self._on_problem,
                skip=skips(self._assignment.spec),
            )
            left_out = fetched.left_out
            self._recorder.line(f"downloaded {fetched.files} {what}, {_amount(fetched)}")
            for head_id, target in heads.items() if left_out else ():
                annotations = await on_disk(forget, target, left_out)
                results[head_id] = told(results[head_id], left_out, annotations)
        finally:
            found_later = [finding(*each) for each in sorted(left_out.items())]
            for head_id, result in results.items():
                self._on_converted(folder.name, head_id, result, found_later)
        self._tell_left_out(folder.name, left_out, len(images))
        return {"images": str(folder / "images"), "heads": {head_id: str(path) for head_id, path in heads.items()}}

    def _tell_left_out(self, split: str, left_out: Mapping[str, SihlaiError], images: int) -> None:
        """Name in the log what is left out. Raises FailedPrecondition where it is too much."""
        for name, error in sorted(left_out.items()):
            text = f"{split} image {name} is left out: {error.message}"
            self._recorder.line(text, level=log_line_pb2.LOG_LEVEL_WARNING)
        check_share(self._assignment.spec.data, len(left_out), images, f"{split} images cannot be had as converted")

    def _set_aside(self, heads: Sequence[Path]) -> SetAside:
        split = self._assignment.spec.data.validation_split
        return set_aside(heads, share=split.share, seed=split.seed)

    async def _converted(
        self, source: dataset_pb2.DatasetSource, head: job_spec_pb2.Head, *, is_training: bool
    ) -> conversion.ConversionResult:
        assignment = self._assignment
        split = TRAINING if is_training else VALIDATION
        # The same for every try of this attempt, so that a repeat joins what the call before it began.
        request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{assignment.job_uid}/{assignment.epoch}/{split}/{head.id}")
        request = conversion.ConvertDatasetRequest(
            source=source,
            annotation_set=head.annotation_set,
            to=head.task,
            via=head.via,
            options=head.conversion_options,
            request_id=str(request_id),
            fingerprint=assignment.dataset_fingerprint if is_training else "",
            lenient=skips(assignment.spec),
        )
        self._work("converting", 0, 0, head.id)
        result = await self._conversion.convert(
            request,
            on_progress=lambda work: self._converting(work, head.id),
            on_unavailable=self._conversion_away,
        )
        self._on_problem("")
        self._recorder.line(conversion_line(head, split, result), source="conversion")
        if is_training:
            self._fingerprint = result.source_fingerprint
            self._on_fingerprint(result.source_fingerprint)
        else:
            self._validated_fingerprint = result.source_fingerprint
        bad, images = result.images_with_errors, result.images_in
        check_share(assignment.spec.data, bad, images, f"{split} images have errors, see the job's conversion report")
        return result

    def _converting(self, work: conversion.WorkProgress, head_id: str) -> None:
        self._on_problem("")
        self._work("converting", work.done, work.total, head_id)

    def _conversion_away(self, error: SihlaiError) -> None:
        why = AGAIN.get(error.reason, "conversion does not answer, it is asked again")
        problem = f"{why}: {error.message}"
        self._recorder.line(problem, level=log_line_pb2.LOG_LEVEL_WARNING)
        self._on_problem(problem)

    async def _checkpoint(
        self, checkpoint: job_pb2.Checkpoint, folder: Path, only: frozenset[str] | None = None
    ) -> Path:
        """Fetch a checkpoint, or of its files only those of these names."""
        wanted = job_pb2.Checkpoint()
        wanted.CopyFrom(checkpoint)
        if only is not None:
            del wanted.files[:]
            wanted.files.extend(file for file in checkpoint.files if file.name in only)
        self._work("downloading", 0, len(wanted.files), "checkpoint")
        fetched = await self._downloads.checkpoint(wanted, folder, on_problem=self._on_problem)
        self._recorder.line(f"downloaded {checkpoint.name}, {_amount(fetched)}")
        return folder

    def _work(self, phase: str, done: int, total: int, what: str) -> None:
        self._on_work(Work(phase=phase, done=done, total=total))
        now = time.monotonic()
        if not done:
            self._said_at = now
        elif now - self._said_at >= PROGRESS_LINE_SECONDS:
            self._said_at = now
            source = "conversion" if phase == "converting" else "agent"
            self._recorder.line(f"{phase} {what}: {done} of {total or 'an unknown number'}", source=source)


def ending_of_provision(error: Exception) -> Ending:
    """How an attempt ends that could not begin. What a service refused is told in the service's own words."""
    match error:
        case CheckpointDamaged():
            return failure(job_pb2.JOB_REASON_CHECKPOINT_ERROR, str(error))
        case RunnerFault():
            return ending_of_fault(str(error))
        case OSError():
            return ending_of_fault(f"the runner could not prepare the attempt: {fault_of(error)}")
        case Unauthenticated() | PermissionDenied(reason=Reason.PERMISSION_DENIED):
            return ending_of_fault(f"conversion does not take this runner's token: {error.message}")
        case Internal():
            return failure(job_pb2.JOB_REASON_INTERNAL, error.message)
        case RetryableError() | Aborted() | Cancelled() | DeadlineExceeded():
            return ending_of_outage(f"what the job needs could not be fetched: {error.message}")
        case SihlaiError():
            return failure(job_pb2.JOB_REASON_DATASET_ERROR, error.message)
        case _:
            return failure(job_pb2.JOB_REASON_INTERNAL, f"the runner could not prepare the attempt: {error}")


def conversion_line(head: job_spec_pb2.Head, split: str, result: conversion.ConversionResult) -> str:
    """What a conversion gave, for the log."""
    path = " → ".join(_task_name(step.to) for step in result.steps) or "as annotated"
    dropped = ", ".join(f"{each.annotations} for {each.rule}" for each in result.dropped) or "nothing"
    reused = ", made earlier" if result.reused else ""
    return (
        f"{head.id} ({split}): {_task_name(head.task)}, {path}{reused}: {result.labelled_out} of "
        f"{result.images_in} images are labelled, {dropped} dropped"
    )


def _task_name(task: task_pb2.Task.ValueType) -> str:
    return task_pb2.Task.Name(task).removeprefix("TASK_").replace("_", " ").lower()


def _amount(fetched: Downloaded) -> str:
    megabytes = fetched.size_bytes / 1e6
    return f"{megabytes:.1f} MB in {fetched.seconds:.1f} s ({megabytes / max(fetched.seconds, 1e-3):.1f} MB/s)"
