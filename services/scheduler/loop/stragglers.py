"""Files that came after their job was deleted: a runner that was cut off trains on, and uploads what it kept later.

Only those of jobs that are known to have been deleted are touched, never those of a job that the scheduler does not
know: a database that was lost, or restored, would have what may be the only copy deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from services.chassis.log import get_logger
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.committed import Committed
from services.scheduler.store.projects import ProjectStore

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class StragglerLimits:
    """How late files are deleted."""

    jobs_max: int = 1_000
    """Jobs that are remembered; of more of them the files stay."""
    jobs_at_once: int = 4
    """Jobs whose files are deleted at once."""
    job_seconds: float = 60.0
    """How long the deletion of one job's files may take before it is left for later."""
    retry_seconds: float = 120.0
    """How long what could not be deleted is left alone."""


class Stragglers:
    """One for each process."""

    def __init__(self, projects: ProjectStore, checkpoints: CheckpointStore, *, limits: StragglerLimits) -> None:
        self._projects = projects
        self._checkpoints = checkpoints
        self._limits = limits
        self._late: set[str] = set()
        self._has_come = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """A runner reported late: look for what it brought."""
        for job_uid in committed.late:
            if len(self._late) < self._limits.jobs_max:
                self._late.add(job_uid)
                self._has_come.set()
            elif job_uid not in self._late:
                log.error("late_files_left", job_uid=job_uid, jobs_max=self._limits.jobs_max)

    async def turn(self) -> None:
        """Wait for late reports, then delete the files of those jobs that were deleted. What fails is tried again."""
        if not self._late:
            self._has_come.clear()
            await self._has_come.wait()
        self._has_come.clear()
        late = sorted(self._late)
        deleted = await self._projects.deleted(late)
        self._late -= {*late} - deleted
        for start in range(0, len(late), self._limits.jobs_at_once):
            some = [uid for uid in late[start : start + self._limits.jobs_at_once] if uid in deleted]
            await asyncio.gather(*(self._delete_files(uid) for uid in some))
        if self._late.intersection(deleted):
            with contextlib.suppress(TimeoutError):  # what comes meanwhile does not wait for what failed
                async with asyncio.timeout(self._limits.retry_seconds):
                    await self._has_come.wait()

    async def _delete_files(self, job_uid: str) -> None:
        if await self._checkpoints.delete_job(job_uid, seconds_max=self._limits.job_seconds):
            log.info("late_files_deleted", job_uid=job_uid)
            self._late.discard(job_uid)
