"""What is left of deleted projects is taken out: of each job first its files, then its rows, then the project.

So whoever finds a row of a job can still delete its files, also after the process ended in between; and whoever is told
that a job is deleted finds none of it. Points and lines are deleted by metrics, which hears of it over the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chassis.log import get_logger
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.projects import ProjectStore

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DeletionLimits:
    """How jobs are taken out."""

    jobs_at_once: int = 16
    """Jobs whose files are deleted at once."""
    job_seconds: float = 60.0
    """How long the deletion of one job's files may take before it is left alone."""
    left_alone_seconds: float = 120.0
    """How long a job whose files could not be deleted is left alone, before it is tried, and logged, again."""
    pause_seconds: float = 600.0
    """After so long it is looked again whether anything was left."""


class Deletion:
    """One for each process. `monotonic` is in seconds."""

    def __init__(
        self,
        projects: ProjectStore,
        checkpoints: CheckpointStore,
        *,
        limits: DeletionLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._projects = projects
        self._checkpoints = checkpoints
        self._limits = limits
        self._monotonic = monotonic
        self._left_alone: dict[str, float] = {}
        """Uids of jobs whose files could not be deleted, and when that is tried again."""
        self._asked = asyncio.Event()
        self._moved = asyncio.Event()

    async def turn(self) -> None:
        """Try once to take out all that there is, then wait for more, or until what failed is to be tried again."""
        self._asked.clear()
        now_seconds = self._monotonic()
        self._left_alone = {uid: until for uid, until in self._left_alone.items() if until > now_seconds}
        last = None
        while doomed := await self._projects.doomed(after=last):
            last = doomed[-1]
            uids = [job.uid for job in doomed if job.uid not in self._left_alone]
            for start in range(0, len(uids), self._limits.jobs_at_once):
                await self._take_out(uids[start : start + self._limits.jobs_at_once])
        await self._projects.purge([])
        self._tell()
        pause_seconds = self._limits.pause_seconds
        if self._left_alone:
            log.warning("deletion_unfinished", jobs=len(self._left_alone))
            pause_seconds = max(0.0, min(self._left_alone.values()) - self._monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_seconds):
                await self._asked.wait()

    async def is_done(self, project_uid: str, *, seconds: float) -> bool:
        """Whether nothing is left of a deleted project; this is waited for so long."""
        self._asked.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    moved = self._moved
                    if await self._projects.is_gone(project_uid):
                        return True
                    await moved.wait()
        return False

    async def _take_out(self, uids: Sequence[str]) -> None:
        are_gone = await asyncio.gather(*(self._delete_files(uid) for uid in uids))
        gone = [uid for uid, is_gone in zip(uids, are_gone, strict=True) if is_gone]
        if gone:
            await self._projects.purge(gone)
            self._tell()

    async def _delete_files(self, job_uid: str) -> bool:
        """Whether they are gone. Where they could not be deleted the job is left alone for a while."""
        if await self._checkpoints.delete_job(job_uid, seconds_max=self._limits.job_seconds):
            return True
        self._left_alone[job_uid] = self._monotonic() + self._limits.left_alone_seconds
        return False

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
