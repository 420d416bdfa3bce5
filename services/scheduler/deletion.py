"""What is left of deleted projects is taken out: of each job first its files, then its rows, then the project.

So whoever finds a row of a job can still delete its files, also after the process ended in between; and whoever is told
that a job is deleted finds none of it. Points and lines are deleted by metrics, which hears of it over the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import Reason, SihlaiError, Unavailable
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
    """How long the deletion of one job's files may take before it begins anew."""
    pause_seconds: float = 600.0
    """After so long it is looked again whether anything was left."""


class Deletion:
    """One for each process."""

    def __init__(self, projects: ProjectStore, checkpoints: CheckpointStore, *, limits: DeletionLimits) -> None:
        self._projects = projects
        self._checkpoints = checkpoints
        self._limits = limits
        self._asked = asyncio.Event()
        self._moved = asyncio.Event()

    async def turn(self) -> None:
        """Take out all that there is, then wait for more. Raises where nothing could be taken out."""
        self._asked.clear()
        while doomed := await self._projects.doomed():
            for start in range(0, len(doomed), self._limits.jobs_at_once):
                await self._take_out(doomed[start : start + self._limits.jobs_at_once])
        await self._projects.purge([])
        self._tell()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.pause_seconds):
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
        errors = await asyncio.gather(*(self._delete_files(uid) for uid in uids))
        gone = [uid for uid, error in zip(uids, errors, strict=True) if error is None]
        if gone:
            await self._projects.purge(gone)
            self._tell()
        elif error := next(iter(errors), None):
            raise error

    async def _delete_files(self, job_uid: str) -> SihlaiError | None:
        """Why they could not be deleted; None where they are gone."""
        try:
            async with asyncio.timeout(self._limits.job_seconds):
                await self._checkpoints.delete_job(job_uid)
        except SihlaiError as error:
            log.warning("job_files_not_deleted", job_uid=job_uid, problem=error.message)
            return error
        except TimeoutError:
            log.warning("job_files_not_deleted", job_uid=job_uid, problem="it takes long, and goes on")
            return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, f"the files of {job_uid} could not be deleted in time")
        return None

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
