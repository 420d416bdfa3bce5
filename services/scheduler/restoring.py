"""A database that was put back from a backup is made to fit what happened since the backup was made.

Others remember what it has forgotten: clients their cursors, runners their attempts, the object store the checkpoints.
So revisions and the numbers of attempts go on above all that can have been given, cursors of before are refused, and
jobs that have not ended go on from the newest checkpoint that lies in the object store. Attempts that were active when
the backup was made stay so: where their runners still hold them, they go on.

What cannot be known again: jobs that were submitted or stopped since, and tokens that were given or revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.restored import RestoredRows
from services.scheduler.wire.checkpoint import checkpoint_from_manifest

log = get_logger(__name__)

PAGE_JOBS = 1_000


@dataclass(frozen=True, kw_only=True)
class RestoringLimits:
    """How a restored database is gone through."""

    jobs_at_once: int = 16
    """Jobs whose checkpoints are looked for at once."""
    job_seconds: float = 60.0
    """How long that may take for one job."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was done: jobs that have not ended, checkpoints that the backup did not know, and that are not there."""

    jobs: int = 0
    checkpoints_found: int = 0
    checkpoints_gone: int = 0


class Restoring:
    """To be run once, after a backup was put back and before a scheduler starts. Another run does no harm."""

    def __init__(
        self,
        rows: RestoredRows,
        checkpoints: CheckpointStore,
        *,
        limits: RestoringLimits,
        on_progress: Callable[[Restored], None],
    ) -> None:
        self._rows = rows
        self._checkpoints = checkpoints
        self._limits = limits
        self._on_progress = on_progress

    async def run(self) -> Restored:
        """What was done. Unavailable, or TimeoutError, where the object store does not answer: run it again."""
        restored, last = Restored(), ""
        while uids := await self._rows.living_jobs(after=last, limit=PAGE_JOBS):
            last = uids[-1]
            for start in range(0, len(uids), self._limits.jobs_at_once):
                some = uids[start : start + self._limits.jobs_at_once]
                changes = await asyncio.gather(*(self._look(uid) for uid in some))
                restored = Restored(
                    jobs=restored.jobs + len(some),
                    checkpoints_found=restored.checkpoints_found + sum(found for found, _ in changes),
                    checkpoints_gone=restored.checkpoints_gone + sum(gone for _, gone in changes),
                )
                self._on_progress(restored)
        await self._rows.number_anew()
        return restored

    async def _look(self, job_uid: str) -> tuple[int, int]:
        """How many checkpoints of the job were found that were not known, and how many known ones are gone."""
        try:
            async with asyncio.timeout(self._limits.job_seconds):
                manifests = await self._checkpoints.of_job(job_uid)
        except TimeoutError as error:
            seconds = self._limits.job_seconds
            raise TimeoutError(f"no answer about the checkpoints of job {job_uid} within {seconds:g} s") from error
        checkpoints = [checkpoint_from_manifest(manifest, job_uid) for manifest in manifests]
        try:
            changes = await self._rows.set_checkpoints(job_uid, [each for each in checkpoints if each is not None])
        except SihlaiError:
            raise
        except Exception:  # one damaged row does not stand before the others
            log.exception("job_not_restored", job_uid=job_uid)
            return 0, 0
        return changes.found, changes.gone
