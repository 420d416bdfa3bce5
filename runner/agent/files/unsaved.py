"""Last checkpoints that the object store did not take while their attempt lasted: kept on this disk, uploaded later.

Each has a folder of its own: its files, and the attempt's end with what is recorded of it. Once it is in the store,
that end is reported once more, with the checkpoint. What was kept before it had an end belongs to nobody and is swept.

Of a job the newest attempt's alone is kept: the scheduler records no checkpoint of an attempt that another followed.
The number of the others, their bytes and their time are limited, and none of them is given up untried. How long one has
waited is counted while an agent runs, and written down beside it: a clock that was set makes nothing old.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import AttemptKey
from runner.agent.disk import Disk, on_disk
from runner.agent.files.upload import UploadFailed, UploadTarget, described, write_checkpoint
from runner.agent.ledger import key_of, read_closed
from runner.report import CheckpointWritten
from services.chassis.backoff import Backoff
from services.chassis.errors import SihlaiError
from services.chassis.files import replace_file
from services.chassis.log import get_logger

log = get_logger(__name__)

FILES = "files"
END = "end"
WAITED = "waited"
"""For how many seconds it has."""
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class UnsavedLimits:
    """How many are kept, how long, and how often they are tried; the configuration has a setting for each."""

    checkpoints_max: int
    bytes_max: int
    days_max: float
    retry_seconds_first: float
    retry_seconds_max: float


class Unsaved:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, *, disk: Disk, limits: UnsavedLimits, randomness: random.Random) -> None:
        self._folder = folder
        self._disk = disk
        self._limits = limits
        self._random = randomness
        self._added = asyncio.Event()
        self._counted_at: dict[Path, float] = {}
        self._kept_now: set[Path] = set()
        """Those that have no end yet and will have one."""

    def place(self, key: AttemptKey) -> Path:
        """Where an attempt's checkpoint is kept."""
        return self._folder / str(key)

    async def keep(
        self, key: AttemptKey, written: CheckpointWritten, target: UploadTarget, now_unix_us: int
    ) -> job_pb2.Checkpoint:
        """Take a checkpoint's files; what is recorded of it. Raises OSError, and then it is not kept."""
        place = self.place(key)
        self._kept_now.add(place)
        try:
            checkpoint = await described(written, target, now_unix_us, disk=self._disk)
            await self._disk.run(_take, Path(written.folder), place)
        except BaseException:
            self._forget(place)
            raise
        return checkpoint

    async def conclude(self, key: AttemptKey, closed: wire.ClosedAttempt, checkpoint: job_pb2.Checkpoint) -> None:
        """The end of the attempt whose checkpoint was taken: from now on it is tried. Raises OSError, and then it is
        not kept.
        """
        end = wire.ClosedAttempt()
        end.CopyFrom(closed)
        del end.checkpoints[:]
        end.checkpoints.append(checkpoint)
        try:
            await self._disk.run(replace_file, self.place(key) / END, end.SerializeToString())
        finally:
            self._forget(self.place(key))

    def _forget(self, place: Path) -> None:
        """It is kept, or never will be: what a slow disk does later is swept, or tried."""
        self._kept_now.discard(place)
        self._added.set()

    def sweep(self) -> None:
        """Remove what never had an end: an agent died, or a disk did not take it in time."""
        for place in self._folder.glob("*"):
            if place in self._kept_now:
                continue
            try:
                is_concluded = (place / END).exists()
            except OSError as error:  # it is kept: it may hold the only copy
                log.error("unsaved_checkpoint_unreadable", folder=str(place), problem=str(error))
                continue
            if not is_concluded:
                shutil.rmtree(place, ignore_errors=True)

    async def run(self, on_uploaded: Callable[[wire.ClosedAttempt], Awaitable[None]]) -> None:
        """Upload what is there, until cancelled. `on_uploaded` gets the attempt's end, with the checkpoint in it."""
        backoff = Backoff(
            seconds_first=self._limits.retry_seconds_first,
            seconds_max=self._limits.retry_seconds_max,
            randomness=self._random,
        )
        while True:
            self._added.clear()
            await on_disk(self.sweep)
            await on_disk(self._give_up_followed)
            for end in await on_disk(lambda: sorted(self._ends())):
                closed = await self._uploaded(end)
                if closed is None:
                    continue
                backoff.reset()
                await on_uploaded(closed)
                await on_disk(shutil.rmtree, end.parent, True)
            await on_disk(self._give_up)
            left = await on_disk(lambda: any(True for _ in self._ends()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_seconds() if left else None):
                    await self._added.wait()

    async def _uploaded(self, end: Path) -> wire.ClosedAttempt | None:
        """The end of the attempt whose checkpoint is stored now; None where the store did not take it."""
        try:
            closed = await on_disk(read_closed, end, end.parent.name)
            (checkpoint,) = closed.checkpoints
            await write_checkpoint(checkpoint, end.parent / FILES)
        except (UploadFailed, SihlaiError, OSError, ValueError) as error:
            log.warning("unsaved_checkpoint_waits", folder=str(end.parent), problem=str(error))
            return None
        log.info("unsaved_checkpoint_uploaded", checkpoint=checkpoint.name, uri=checkpoint.uri)
        return closed

    def _give_up_followed(self) -> None:
        """Remove those of which a newer attempt's is here, where that can be read."""
        found = [key for end in self._ends() if (key := _attempt_of(end)) is not None]
        newest: dict[str, int] = {}
        for key in found:
            newest[key.job_uid] = max(key.epoch, newest.get(key.job_uid, key.epoch))
        for key in found:
            if key.epoch < newest[key.job_uid]:
                self._remove(
                    self.place(key), f"that of a newer attempt of its job is kept, of epoch {newest[key.job_uid]}"
                )

    def _give_up(self) -> None:
        """Remove what was tried for too long, and of what is too much those that have waited longest."""
        limits = self._limits
        waited = {end.parent: self._waited_seconds(end.parent) for end in self._ends()}
        kept, kept_bytes = 0, 0
        for place in sorted(waited, key=lambda place: waited[place]):
            size_bytes = _size_bytes(place / FILES)
            if waited[place] > limits.days_max * SECONDS_PER_DAY:
                self._remove(place, f"it has waited for {waited[place] / SECONDS_PER_DAY:.1f} days")
            elif kept >= limits.checkpoints_max:
                self._remove(place, f"{kept} of other jobs have not waited for so long")
            elif kept and kept_bytes + size_bytes > limits.bytes_max:
                self._remove(place, f"{kept} of other jobs take {kept_bytes} bytes, and it takes {size_bytes}")
            else:
                kept, kept_bytes = kept + 1, kept_bytes + size_bytes
        self._counted_at = {place: at for place, at in self._counted_at.items() if os.path.lexists(place)}

    def _remove(self, place: Path, why: str) -> None:
        log.error("unsaved_checkpoint_given_up", folder=str(place), why=why)
        shutil.rmtree(place, ignore_errors=True)

    def _waited_seconds(self, place: Path) -> float:
        """How long it has waited by now, written down for the next time."""
        now = time.monotonic()
        seconds = now - self._counted_at.get(place, now)
        self._counted_at[place] = now
        path = place / WAITED
        try:
            seconds += float(path.read_text()) if path.exists() else 0.0
            replace_file(path, str(seconds).encode(), synced=False)
        except (OSError, ValueError) as error:  # a full disk, or one that lost the file's content
            log.warning("unsaved_checkpoint_age_unknown", folder=str(place), problem=str(error))
        return seconds

    def _ends(self) -> list[Path]:
        return list(self._folder.glob(f"*/{END}"))


def _take(files: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    files.rename(place / FILES)


def _attempt_of(end: Path) -> AttemptKey | None:
    """None where it cannot be read."""
    try:
        return key_of(read_closed(end, end.parent.name))
    except (OSError, ValueError):
        return None


def _size_bytes(folder: Path) -> int:
    """What its files take, as far as that can be seen."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
