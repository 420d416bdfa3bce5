"""Checkpoints ↔ protos, and from the manifests of the object store."""

from __future__ import annotations

import math
import re

from google.protobuf.message import DecodeError
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.log import get_logger
from services.chassis.text import text_violations
from services.scheduler.domain.job import Checkpoint, CheckpointFile, CheckpointKey
from services.scheduler.objects.checkpoints import CheckpointManifest
from services.scheduler.wire.times import TIME_US_MAX, known_time_us, timestamp

log = get_logger(__name__)

FILES_MAX = 100
"""Files of one checkpoint that are recorded."""
FILE_NAME_CHARACTERS_MAX = 200
URI_CHARACTERS_MAX = 2_000
ITERATION_MAX = 10**12
"""Above what a specification may ask for; `{epoch}-{iteration}` is part of names."""
COUNT_MAX = 2**53 - 1
"""The largest whole number that a JSON reader in any language keeps exactly."""
_SHA256 = re.compile("[0-9a-fA-F]{0,64}")


def checkpoint_name(job_name: str, key: CheckpointKey) -> str:
    """The resource name."""
    return f"{job_name}/checkpoints/{key.epoch}-{key.iteration}"


def pinned_checkpoint(spec: bytes) -> str | None:
    """The name of the checkpoint that a job with this specification begins with; None where it begins with none, or
    cannot be read, as then it never begins.
    """
    try:
        source = JobSpec.FromString(spec).model.initialization
    except DecodeError:
        return None
    return source.checkpoint.checkpoint if source.WhichOneof("source") == "checkpoint" else None


def checkpoint_to_proto(checkpoint: Checkpoint, job_name: str) -> job_pb2.Checkpoint:
    """The proto of a recorded checkpoint."""
    return job_pb2.Checkpoint(
        name=checkpoint_name(job_name, checkpoint.key),
        uri=checkpoint.uri,
        epoch=checkpoint.key.epoch,
        iteration=checkpoint.key.iteration,
        create_time=timestamp(checkpoint.create_time_us),
        cause=job_pb2.CheckpointCause.Value(f"CHECKPOINT_CAUSE_{checkpoint.cause}"),
        files=[
            job_pb2.CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in checkpoint.files
        ],
        selection_value=checkpoint.selection_value,
        best=checkpoint.best,
    )


def checkpoint_from_proto(proto: job_pb2.Checkpoint, job_uid: str) -> Checkpoint | None:
    """The checkpoint that a runner reports; None, and a line in the log, where it cannot be one."""
    cause = proto.cause if proto.cause in job_pb2.CheckpointCause.values() else job_pb2.CHECKPOINT_CAUSE_UNSPECIFIED
    checkpoint = Checkpoint(
        key=CheckpointKey(job_uid=job_uid, epoch=proto.epoch, iteration=proto.iteration),
        uri=proto.uri,
        create_time_us=known_time_us(proto.create_time),
        cause=job_pb2.CheckpointCause.Name(cause).removeprefix("CHECKPOINT_CAUSE_"),
        files=tuple(
            CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in proto.files[:FILES_MAX]
        ),
        selection_value=_finite(proto.selection_value if proto.HasField("selection_value") else None),
        best=proto.best,
    )
    return _sound(checkpoint)


def checkpoint_from_manifest(manifest: CheckpointManifest, job_uid: str) -> Checkpoint | None:
    """The checkpoint that was found in the object store; None, and a line in the log, where it cannot be one."""
    known = f"CHECKPOINT_CAUSE_{manifest.cause}" in job_pb2.CheckpointCause.DESCRIPTOR.values_by_name
    checkpoint = Checkpoint(
        key=CheckpointKey(job_uid=job_uid, epoch=manifest.epoch, iteration=manifest.iteration),
        uri=manifest.uri,
        create_time_us=manifest.create_time_unix_us if 0 <= manifest.create_time_unix_us <= TIME_US_MAX else 0,
        cause=manifest.cause if known else "UNSPECIFIED",
        files=tuple(
            CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in manifest.files[:FILES_MAX]
        ),
        selection_value=_finite(manifest.selection_value),
        best=manifest.best,
    )
    return _sound(checkpoint)


def _sound(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint, if it can be kept as it is: numbers that a database holds, names and digests that are some."""
    key = checkpoint.key
    problem = ""
    if not (0 < key.epoch <= COUNT_MAX and 0 <= key.iteration <= ITERATION_MAX):
        problem = f"it is of epoch {key.epoch}, iteration {key.iteration}"
    elif text_violations(checkpoint.uri, "", characters_max=URI_CHARACTERS_MAX):
        problem = "its uri is none"
    for file in checkpoint.files:
        if text_violations(file.name, "", characters_max=FILE_NAME_CHARACTERS_MAX) or not file.name:
            problem = f"a file's name is {file.name[:FILE_NAME_CHARACTERS_MAX]!r}"
        elif not 0 <= file.size_bytes <= COUNT_MAX or not _SHA256.fullmatch(file.sha256):
            problem = f"the file {file.name} has {file.size_bytes} bytes and the sha256 {file.sha256[:100]!r}"
    if problem:
        log.error("checkpoint_not_sound", uri=checkpoint.uri, job_uid=key.job_uid, problem=problem)
        return None
    return checkpoint


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
