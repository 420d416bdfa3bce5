"""From an assignment to what the trainer needs on this disk: converted, downloaded, and written down in attempt.json.

Can be cancelled at any await. Whatever it raises says why the attempt cannot begin; `ending_of_provision` turns that
into the attempt's end.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.logs.v1 import log_line_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2, job_spec_pb2

from runner.agent.config import Device
from runner.agent.conversion import Conversion
from runner.agent.download import (
    CheckpointDamaged,
    Downloaded,
    Downloads,
    IndexedImage,
    Wanted,
    check_name,
)
from runner.agent.ending import Ending, failure
from runner.agent.recorder import Recorder
from services.chassis.errors import Cancelled, DeadlineExceeded, Internal, RetryableError, SihlaiError

ATTEMPT_FILE = "attempt.json"
DATASET = "dataset"
RESUME = "resume"
INITIALIZATION = "initialization"
CHECKPOINTS = "checkpoints"
PROGRESS_LINE_SECONDS = 10.0
"""How often a long conversion or download says in the log how far it is."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How far the provision is: what it does in words, and how much of it is done (`total` 0: unknown)."""

    phase: str
    done: int = 0
    total: int = 0


class Provision:
    """One attempt's provision, in the attempt's own folder. `on_work` is called often, and must be cheap.

    `on_converted` gets the split, the head and the result of each conversion.
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
        on_converted: Callable[[str, str, conversion.ConversionResult], None],
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
        self._said_at = 0.0

    async def run(self) -> Path:
        """Fetch everything; the attempt file."""
        assignment = self._assignment
        dataset = self._folder / DATASET
        training = await self._dataset(assignment.training_dataset, dataset / "training", is_training=True)
        validation = None
        if assignment.HasField("validation_dataset"):
            validation = await self._dataset(assignment.validation_dataset, dataset / "validation", is_training=False)
        resume_folder = initialization_folder = None
        if assignment.HasField("resume_from"):
            resume_folder = await self._checkpoint(assignment.resume_from, self._folder / RESUME)
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
            "device": self._device.value,
        }
        (self._folder / CHECKPOINTS).mkdir(exist_ok=True)
        path = self._folder / ATTEMPT_FILE
        path.write_text(json.dumps(content, indent=1))
        return path

    async def _dataset(
        self, source: dataset_pb2.DatasetSource, folder: Path, *, is_training: bool
    ) -> dict[str, object]:
        """Convert and fetch one dataset for all heads; its folders, as attempt.json names them."""
        images: dict[str, IndexedImage] = {}
        images_uri = ""
        maps: list[Wanted] = []
        heads: dict[str, str] = {}
        for head in self._assignment.spec.model.heads:
            check_name(head.id)
            result = await self._converted(source, head, is_training=is_training)
            found = await self._downloads.head(result.dataset, folder / "heads" / head.id)
            images |= {image.name: image for image in found.images}
            images_uri = found.images_uri
            maps += found.maps
            heads[head.id] = str(folder / "heads" / head.id)
        wanted = [*self._downloads.images(source, images_uri, images.values(), folder / "images"), *maps]
        what = f"{folder.name} images and maps" if maps else f"{folder.name} images"
        fetched = await self._downloads.files(
            wanted, folder, on_progress=lambda done, total: self._work("downloading", done, total, what)
        )
        self._recorder.line(f"downloaded {fetched.files} {what}, {_amount(fetched)}")
        return {"images": str(folder / "images"), "heads": heads}

    async def _converted(
        self, source: dataset_pb2.DatasetSource, head: job_spec_pb2.Head, *, is_training: bool
    ) -> conversion.ConversionResult:
        assignment = self._assignment
        split = "training" if is_training else "validation"
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
        )
        self._work("converting", 0, 0, head.id)
        result = await self._conversion.convert(
            request,
            on_progress=lambda work: self._work("converting", work.done, work.total, head.id),
            on_unavailable=lambda error: self._recorder.line(
                f"conversion does not answer, it is asked again: {error.message}", level=log_line_pb2.LOG_LEVEL_WARNING
            ),
        )
        self._recorder.line(conversion_line(head, split, result), source="conversion")
        self._on_converted(split, head.id, result)
        if is_training:
            self._on_fingerprint(result.source_fingerprint)
        return result

    async def _checkpoint(self, checkpoint: job_pb2.Checkpoint, folder: Path) -> Path:
        self._work("downloading", 0, len(checkpoint.files), "checkpoint")
        fetched = await self._downloads.checkpoint(checkpoint, folder)
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
        case Internal() | Cancelled() | DeadlineExceeded():
            return failure(job_pb2.JOB_REASON_INTERNAL, error.message)
        case RetryableError():
            return failure(job_pb2.JOB_REASON_DATASET_ERROR, f"the dataset could not be fetched: {error.message}")
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
