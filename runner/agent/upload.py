"""Checkpoints on their way from the trainer's disk to the object store, one after the other, in the background.

A checkpoint's files are written create-only, its manifest last: without a manifest it does not exist. Only this
attempt ever writes under its prefix, so a file that is there already is our own, from a try whose answer was lost; it
is compared all the same. The local folder is removed once the manifest stands.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sihlai.scheduler.v1 import job_pb2

from runner.agent.backoff import Backoff
from runner.agent.download import sha256_of
from runner.report import CheckpointWritten
from services.chassis.errors import RetryableError, SihlaiError
from services.chassis.log import get_logger
from services.chassis.objects import ObjectAlreadyExists, ObjectFolder, ObjectNotFound, open_store

log = get_logger(__name__)

MANIFEST = "manifest.json"
RETRY_SECONDS_FIRST = 0.5
RETRY_SECONDS_MAX = 30.0


class UploadFailed(Exception):  # noqa: N818  # what it is; the reason's name is CHECKPOINT_ERROR
    """A checkpoint cannot be written to the object store."""


@dataclass(frozen=True, kw_only=True)
class UploadTarget:
    """Where an attempt's checkpoints go. `job` is its full name."""

    job: str
    epoch: int
    uri: str


class Uploads:
    """An attempt's checkpoints that are not uploaded yet. `on_uploaded` gets each one that is.

    `before_upload` runs in a thread before anything of a checkpoint is written: what must be on disk by then.
    """

    def __init__(
        self,
        target: UploadTarget,
        *,
        waiting_max: int,
        before_upload: Callable[[], None],
        now_unix_us: Callable[[], int],
        randomness: random.Random,
        on_uploaded: Callable[[job_pb2.Checkpoint], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._target = target
        self._waiting_max = waiting_max
        self._before_upload = before_upload
        self._now_unix_us = now_unix_us
        self._random = randomness
        self._on_uploaded = on_uploaded
        self._on_problem = on_problem
        self._waiting: list[CheckpointWritten] = []
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.failures: list[str] = []
        """Why checkpoints were given up, oldest first."""

    def add(self, written: CheckpointWritten) -> None:
        """Upload it when the earlier ones are done. With too many waiting, the oldest that is not the best goes."""
        self._waiting.append(written)
        self._idle.clear()
        self._changed.set()
        if len(self._waiting) > self._waiting_max:
            # The first one is under way, the newest is what the job goes on from.
            droppable = [each for each in self._waiting[1:-1] if not each.best] or self._waiting[1:-1]
            for each in droppable[:1]:
                self._waiting.remove(each)
                shutil.rmtree(each.folder, ignore_errors=True)
                self._on_problem(f"checkpoint {each.iteration} was not uploaded: newer ones wait for the object store")

    async def run(self) -> None:
        """Upload whatever is added, until cancelled. A checkpoint that the store refuses is given up."""
        while True:
            while self._waiting:
                written = self._waiting[0]
                try:
                    checkpoint = await self._upload(written)
                except (UploadFailed, SihlaiError, OSError) as error:
                    self.failures.append(f"checkpoint {written.iteration} was not uploaded: {error}")
                    self._on_problem(self.failures[-1])
                else:
                    await asyncio.to_thread(shutil.rmtree, written.folder, True)
                    self._on_uploaded(checkpoint)
                self._waiting.remove(written)
            self._idle.set()
            await self._changed.wait()
            self._changed.clear()

    async def finished(self) -> None:
        """Wait until nothing is left to upload."""
        await self._idle.wait()

    async def _upload(self, written: CheckpointWritten) -> job_pb2.Checkpoint:
        """Try for as long as the object store is away."""
        backoff = Backoff(seconds_first=RETRY_SECONDS_FIRST, seconds_max=RETRY_SECONDS_MAX, randomness=self._random)
        await asyncio.to_thread(self._before_upload)
        checkpoint = await asyncio.to_thread(self._described, written)
        while True:
            try:
                await self._write(checkpoint, Path(written.folder))
                return checkpoint
            except (RetryableError, ObjectNotFound) as error:  # a folder or bucket that is missing may come back
                self._on_problem(f"checkpoint {written.iteration} waits for the object store: {error.message}")
                await asyncio.sleep(backoff.next_seconds())

    def _described(self, written: CheckpointWritten) -> job_pb2.Checkpoint:
        target = self._target
        checkpoint = job_pb2.Checkpoint(
            name=f"{target.job}/checkpoints/{target.epoch}-{written.iteration}",
            uri=f"{target.uri.rstrip('/')}/{written.iteration}",
            epoch=target.epoch,
            iteration=written.iteration,
            cause=_cause_of(written),
            selection_value=written.selection_value,
            best=written.best,
        )
        checkpoint.create_time.FromMicroseconds(self._now_unix_us())
        for path in sorted(Path(written.folder).iterdir()):
            checkpoint.files.add(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of(path))
        return checkpoint

    async def _write(self, checkpoint: job_pb2.Checkpoint, folder: Path) -> None:
        store = open_store(checkpoint.uri)
        for file in checkpoint.files:
            await write_once(store, file.name, folder / file.name, file.sha256)
        manifest = json.dumps(manifest_of(checkpoint), indent=1).encode()
        await write_once(store, MANIFEST, manifest, hashlib.sha256(manifest).hexdigest())


def manifest_of(checkpoint: job_pb2.Checkpoint) -> dict[str, object]:
    """What the manifest says; the scheduler adopts a checkpoint by it when nobody reported it."""
    files = [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in checkpoint.files]
    return {
        "files": files,
        "iteration": checkpoint.iteration,
        "epoch": checkpoint.epoch,
        "cause": job_pb2.CheckpointCause.Name(checkpoint.cause).removeprefix("CHECKPOINT_CAUSE_"),
        "create_time_unix_us": checkpoint.create_time.ToMicroseconds(),
        "selection_value": checkpoint.selection_value if checkpoint.HasField("selection_value") else None,
        "best": checkpoint.best,
    }


def _cause_of(written: CheckpointWritten) -> job_pb2.CheckpointCause.ValueType:
    known = job_pb2.CheckpointCause.DESCRIPTOR.values_by_name.get(f"CHECKPOINT_CAUSE_{written.cause}")
    return job_pb2.CheckpointCause.ValueType(known.number) if known else job_pb2.CHECKPOINT_CAUSE_UNSPECIFIED


async def write_once(store: ObjectFolder, name: str, content: bytes | Path, sha256: str) -> None:
    """Write what is nobody else's to write. UploadFailed where something else is there already."""
    try:
        await store.write(name, content, create_only=True)
    except ObjectAlreadyExists:
        digest = hashlib.sha256()
        async for chunk in store.stream(name):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise UploadFailed(f"{store.uri}/{name} is there already, with another content") from None
