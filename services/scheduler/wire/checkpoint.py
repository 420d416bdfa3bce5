"""Checkpoints ↔ protos, and from the manifests of the object store."""

from __future__ import annotations

import math

from sihlai.scheduler.v1 import job_pb2

from services.scheduler.checkpoints import CheckpointManifest
from services.scheduler.job import Checkpoint, CheckpointFile, CheckpointKey
from services.scheduler.wire.times import time_us, timestamp

FILES_MAX = 100
"""Files of one checkpoint that are recorded."""


def checkpoint_name(job_name: str, key: CheckpointKey) -> str:
    """The resource name."""
    return f"{job_name}/checkpoints/{key.epoch}-{key.iteration}"


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


def checkpoint_from_proto(proto: job_pb2.Checkpoint, job_uid: str) -> Checkpoint:
    """The checkpoint that a runner reports."""
    cause = proto.cause if proto.cause in job_pb2.CheckpointCause.values() else job_pb2.CHECKPOINT_CAUSE_UNSPECIFIED
    value = proto.selection_value if proto.HasField("selection_value") else math.nan
    return Checkpoint(
        key=CheckpointKey(job_uid=job_uid, epoch=proto.epoch, iteration=proto.iteration),
        uri=proto.uri,
        create_time_us=time_us(proto.create_time),
        cause=job_pb2.CheckpointCause.Name(cause).removeprefix("CHECKPOINT_CAUSE_"),
        files=tuple(
            CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in proto.files[:FILES_MAX]
        ),
        selection_value=None if math.isnan(value) else value,
        best=proto.best,
    )


def checkpoint_from_manifest(manifest: CheckpointManifest, job_uid: str) -> Checkpoint:
    """The checkpoint that was found in the object store."""
    known = f"CHECKPOINT_CAUSE_{manifest.cause}" in job_pb2.CheckpointCause.DESCRIPTOR.values_by_name
    return Checkpoint(
        key=CheckpointKey(job_uid=job_uid, epoch=manifest.epoch, iteration=manifest.iteration),
        uri=manifest.uri,
        create_time_us=manifest.create_time_unix_us,
        cause=manifest.cause if known else "UNSPECIFIED",
        files=tuple(
            CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in manifest.files[:FILES_MAX]
        ),
        selection_value=manifest.selection_value,
        best=manifest.best,
    )
