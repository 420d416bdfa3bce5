"""Checkpoints on their way from the trainer's disk to the object store, one after the other, in the background.

A checkpoint's files are written create-only, its manifest last: without a manifest it does not exist. Only this
attempt ever writes under its prefix, so a file that is there already is our own, from a try whose answer was lost; it
is compared all the same. The local folder is removed once the manifest stands. There is no limit for a whole upload:
what counts is how long nothing has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sihlai.scheduler.v1 import job_pb2

from runner.agent.disk import Disk, DiskStandsStill, Moved, delete_tree, on_disk
from runner.agent.files.download import sha256_of
from runner.report import CheckpointWritten
from services.chassis.backoff import Backoff
from services.chassis.errors import PermissionDenied, RetryableError, SihlaiError
from services.chassis.log import get_logger
from services.chassis.objects.store import ObjectAlreadyExists, ObjectFolder, ObjectNotFound, open_store
from services.chassis.objects.uri import local_path

log = get_logger(__name__)

MANIFEST = "manifest.json"
RETRY_SECONDS_FIRST = 0.5
RETRY_SECONDS_MAX = 30.0
RESTARTS_MAX = 5
"""So often what arrives once more, in a file that has to begin anew, counts as movement; then only what gets further
than that many tries before."""


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

    `before_upload` is awaited before anything of a checkpoint is written: what must be on disk by then. `on_change` is
    called when `done_bytes` or `problem` is another one, with whether that is urgent.
    """

    def __init__(
        self,
        target: UploadTarget,
        *,
        disk: Disk,
        waiting_max: int,
        before_upload: Callable[[], Awaitable[None]],
        now_unix_us: Callable[[], int],
        randomness: random.Random,
        on_uploaded: Callable[[job_pb2.Checkpoint], None],
        on_change: Callable[[bool], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._target = target
        self._disk = disk
        self._waiting_max = waiting_max
        self._before_upload = before_upload
        self._now_unix_us = now_unix_us
        self._random = randomness
        self._on_uploaded = on_uploaded
        self._on_change = on_change
        self._on_problem = on_problem
        self._waiting: list[CheckpointWritten] = []
        self._removals: set[asyncio.Task[bool]] = set()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._moved_at = time.monotonic()
        self._reached: deque[int] = deque(maxlen=RESTARTS_MAX + 1)
        """How far the last tries came in which anything arrived."""
        self.patient = True
        """Whether a disk of this machine that stands still is waited for as a store that is away; else a checkpoint
        that it does not give is given up."""
        self.done_bytes = 0
        """Of the checkpoint that is being uploaded, in the try that is under way."""
        self.total_bytes = 0
        self.problem = ""
        """What the upload waits for, in words; empty while it waits for nothing."""
        self.failures: list[str] = []
        """Why checkpoints were given up, oldest first."""
        self.runner_failed = False
        """Whether this machine is why the last of them was: its disk, or its rights in the store."""

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
                self._remove(each)
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
                    self.runner_failed = isinstance(error, (PermissionDenied, OSError))
                    self._on_problem(self.failures[-1])
                else:
                    self._remove(written)
                    self._on_uploaded(checkpoint)
                self._waiting.remove(written)
                self._moved_at = time.monotonic()
            self._idle.set()
            await self._changed.wait()
            self._changed.clear()

    async def finished(self) -> None:
        """Wait until nothing is left to upload."""
        await self._idle.wait()

    async def finished_or_stuck(self, still_seconds_max: float) -> bool:
        """Wait until nothing is left to upload (True), or until nothing has moved for so long from now on (False)."""
        began = time.monotonic()
        while not self._idle.is_set():
            still_seconds = time.monotonic() - max(began, self._moved_at)
            if still_seconds >= still_seconds_max:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(still_seconds_max - still_seconds):
                    await self._idle.wait()
        return True

    async def _upload(self, written: CheckpointWritten) -> job_pb2.Checkpoint:
        """Try for as long as the object store is away."""
        backoff = Backoff(seconds_first=RETRY_SECONDS_FIRST, seconds_max=RETRY_SECONDS_MAX, randomness=self._random)
        await self._before_upload()
        checkpoint: job_pb2.Checkpoint | None = None
        while True:
            try:
                if checkpoint is None:
                    checkpoint = await described(written, self._target, self._now_unix_us(), disk=self._disk)
                    self._reached.clear()
                    self.done_bytes, self.total_bytes = 0, sum(file.size_bytes for file in checkpoint.files)
                await write_checkpoint(checkpoint, Path(written.folder), on_progress=self._on_progress)
            except (RetryableError, ObjectNotFound) as error:  # a folder or bucket that is missing may come back
                waits = f"the object store: {error.message}"
            except TimeoutError as error:  # of this machine's disk: no other waits without our errors
                if not self.patient:
                    raise DiskStandsStill from error
                waits = f"this runner's disk: {error}"
            else:
                self._set_problem("")
                return checkpoint
            if self.done_bytes:
                self._reached.append(self.done_bytes)
                self.done_bytes = 0
            self._on_problem(f"checkpoint {written.iteration} waits for {waits}")
            self._set_problem(f"checkpoint {written.iteration} waits for {waits}")
            await asyncio.sleep(backoff.next_seconds())

    def _remove(self, written: CheckpointWritten) -> None:
        """Delete it here, without anybody waiting for it: all of the attempt's folder goes in the end."""
        removal = asyncio.create_task(on_disk(delete_tree, lambda: None, Path(written.folder)))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _on_progress(self, done_bytes: int) -> None:
        """Whatever arrives counts, but who begins again and again without getting further gets nowhere."""
        self.done_bytes = done_bytes
        if done_bytes > max(self._reached, default=0):
            self._reached.clear()
        elif len(self._reached) > RESTARTS_MAX:
            return
        self._moved_at = time.monotonic()
        self._set_problem("")
        self._on_change(False)

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_change(True)


async def described(
    written: CheckpointWritten, target: UploadTarget, now_unix_us: int, *, disk: Disk
) -> job_pb2.Checkpoint:
    """A checkpoint of this disk as it is recorded, with the checksums of its files. Raises OSError."""
    checkpoint = job_pb2.Checkpoint(
        name=f"{target.job}/checkpoints/{target.epoch}-{written.iteration}",
        uri=f"{target.uri.rstrip('/')}/{written.iteration}",
        epoch=target.epoch,
        iteration=written.iteration,
        cause=_cause_of(written),
        selection_value=written.selection_value,
        best=written.best,
    )
    checkpoint.create_time.FromMicroseconds(now_unix_us)
    checkpoint.files.extend(await disk.run_long(_files_in, Path(written.folder)))
    return checkpoint


def _files_in(moved: Moved, folder: Path) -> list[job_pb2.CheckpointFile]:
    return [
        job_pb2.CheckpointFile(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of(path, moved))
        for path in sorted(folder.iterdir())
    ]


async def write_checkpoint(
    checkpoint: job_pb2.Checkpoint, folder: Path, *, on_progress: Callable[[int], None] = lambda done_bytes: None
) -> None:
    """Write the checkpoint's files, then its manifest; `on_progress` gets bytes of all files together.

    Raises UploadFailed where something else is there, our errors where the store does not take it.
    """
    store = open_store(checkpoint.uri)
    await on_disk(remove_torn, checkpoint.uri)
    done_bytes = 0
    for file in checkpoint.files:
        before_bytes = done_bytes
        await write_once(
            store,
            file.name,
            folder / file.name,
            file.sha256,
            on_progress=lambda size_bytes, before=before_bytes: on_progress(before + size_bytes),  # type: ignore[misc]  # a loop's lambda
        )
        done_bytes += file.size_bytes
        on_progress(done_bytes)
    manifest = json.dumps(manifest_of(checkpoint), indent=1).encode()
    await write_once(store, MANIFEST, manifest, hashlib.sha256(manifest).hexdigest())


def remove_torn(uri: str) -> None:
    """Remove what a killed agent left of files that it wrote under a uri of its own; nobody may write there meanwhile.

    In a folder of this machine alone: obstore calls a file that is not whole `name#1`, and shows it in no list.
    """
    folder = local_path(uri)
    if folder is None:
        return
    try:
        for path in folder.glob("**/*#[0-9]*"):
            path.unlink(missing_ok=True)
            log.info("torn_file_removed", path=str(path))
    except OSError as error:  # of the store, which says so itself to whoever writes
        log.warning("torn_files_left", folder=str(folder), problem=str(error))


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


async def write_once(
    store: ObjectFolder,
    name: str,
    content: bytes | Path,
    sha256: str,
    *,
    on_progress: Callable[[int], None] = lambda size_bytes: None,
) -> None:
    """Write what is nobody else's to write. UploadFailed where something else is there already."""
    try:
        await store.write(name, content, create_only=True, on_progress=on_progress)
    except ObjectAlreadyExists:
        digest, size_bytes = hashlib.sha256(), 0
        async for chunk in store.stream(name):
            digest.update(chunk)
            size_bytes += len(chunk)
            on_progress(size_bytes)
        if digest.hexdigest() != sha256:
            raise UploadFailed(f"{store.uri}/{name} is there already, with another content") from None
