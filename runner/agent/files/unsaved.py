"""Last checkpoints that the object store did not take while their attempt lasted: kept on this disk, uploaded later.

Each has a folder of its own: its files, and the attempt's end with what is recorded of it. Once it is in the store,
that end is reported once more, with the checkpoint. What was kept before it had an end belongs to nobody and is swept.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import AttemptKey
from runner.agent.files.upload import UploadFailed, write_checkpoint
from services.chassis.backoff import Backoff
from services.chassis.errors import SihlaiError
from services.chassis.files import replace_file
from services.chassis.log import get_logger

log = get_logger(__name__)

FILES = "files"
END = "end"
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class UnsavedLimits:
    """How many are kept, how long, and how often they are tried; the configuration has a setting for each."""

    checkpoints_max: int
    days_max: float
    retry_seconds_first: float
    retry_seconds_max: float


class Unsaved:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, *, limits: UnsavedLimits, randomness: random.Random) -> None:
        self._folder = folder
        self._limits = limits
        self._random = randomness
        self._added = asyncio.Event()

    def place(self, key: AttemptKey) -> Path:
        """Where an attempt's checkpoint is kept."""
        return self._folder / str(key)

    def keep(self, key: AttemptKey, files: Path) -> None:
        """Take the folder of a checkpoint's files. Raises OSError."""
        place = self.place(key)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        files.rename(place / FILES)

    def conclude(self, key: AttemptKey, closed: wire.ClosedAttempt, checkpoint: job_pb2.Checkpoint) -> None:
        """The end of the attempt whose checkpoint was taken: from now on it is tried. Raises OSError. In any thread."""
        end = wire.ClosedAttempt()
        end.CopyFrom(closed)
        del end.checkpoints[:]
        end.checkpoints.append(checkpoint)
        replace_file(self.place(key) / END, end.SerializeToString())

    def notify(self) -> None:
        """There is another one."""
        self._added.set()

    def sweep(self) -> None:
        """Remove what an agent that died left without an end, what is too old, and the oldest of too many."""
        known = sorted(self._ends(), key=lambda end: end.stat().st_mtime)
        too_old = time.time() - self._limits.days_max * SECONDS_PER_DAY
        late = [end for end in known if end.stat().st_mtime < too_old]
        crowded = known[: max(0, len(known) - self._limits.checkpoints_max)]
        for place in {end.parent for end in (*late, *crowded)}:
            log.error("unsaved_checkpoint_given_up", folder=str(place))
            shutil.rmtree(place, ignore_errors=True)
        for place in self._folder.glob("*"):
            if not (place / END).exists():
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
            for end in await asyncio.to_thread(lambda: sorted(self._ends())):
                closed = await self._uploaded(end)
                if closed is None:
                    continue
                backoff.reset()
                await on_uploaded(closed)
                await asyncio.to_thread(shutil.rmtree, end.parent, True)
            left = await asyncio.to_thread(lambda: any(True for _ in self._ends()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_seconds() if left else None):
                    await self._added.wait()

    async def _uploaded(self, end: Path) -> wire.ClosedAttempt | None:
        """The end of the attempt whose checkpoint is stored now; None where the store did not take it."""
        try:
            closed = wire.ClosedAttempt.FromString(await asyncio.to_thread(end.read_bytes))
            (checkpoint,) = closed.checkpoints
            await write_checkpoint(checkpoint, end.parent / FILES)
        except (UploadFailed, SihlaiError, OSError, DecodeError, ValueError) as error:
            log.warning("unsaved_checkpoint_waits", folder=str(end.parent), problem=str(error))
            return None
        log.info("unsaved_checkpoint_uploaded", checkpoint=checkpoint.name, uri=checkpoint.uri)
        return closed

    def _ends(self) -> list[Path]:
        return list(self._folder.glob(f"*/{END}"))
