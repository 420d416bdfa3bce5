"""What happens without a call: clocks run out, checkpoints of ended attempts are looked for, old things are forgotten.

It renews and expires leases once a second. Where it was itself held up (a stopped process, a machine that slept),
nobody could renew in the meantime, so the clocks restart instead of running out. With the database or the object store
away it goes on trying; it ends only when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from services.chassis.errors import RetryableError, SihlaiError
from services.chassis.log import get_logger
from services.scheduler.checkpoints import CheckpointStore
from services.scheduler.desk import RunnerDesk
from services.scheduler.job import SECOND_US, Attempt
from services.scheduler.lease import key_of
from services.scheduler.store.transaction import Committed
from services.scheduler.store.upkeep import Upkeep
from services.scheduler.wire.checkpoint import checkpoint_from_manifest

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReconcileLimits:
    """How often things are done, and for how long they are tried."""

    tick_seconds: float = 1.0
    outage_seconds: float = 8.0
    """A tick that comes so late means that the scheduler itself was away."""
    forget_seconds: float = 600.0
    adoptions_max: int = 16
    """Attempts whose checkpoints are looked for at once."""
    adoption_seconds: float = 20.0
    """How long one look may take."""
    adoption_retry_seconds: float = 5.0
    adoption_seconds_max: float = 120.0
    """After this long a job goes on without the checkpoints that could not be looked for."""


class Reconciler:
    """One for each process. `monotonic` is in seconds, `now_us` the time in microseconds."""

    def __init__(
        self,
        upkeep: Upkeep,
        desk: RunnerDesk,
        checkpoints: CheckpointStore,
        *,
        limits: ReconcileLimits,
        monotonic: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self._upkeep = upkeep
        self._desk = desk
        self._checkpoints = checkpoints
        self._limits = limits
        self._monotonic = monotonic
        self._now_us = now_us
        self._to_adopt = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """An attempt ended: look for its checkpoints at once."""
        if committed.adoptions:
            self._to_adopt.set()

    async def run(self) -> None:
        """Run until cancelled. `Upkeep.restart_clocks` is to be called before the first call is served."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_time())
            group.create_task(self._keep_adopting())
            group.create_task(self._keep_forgetting())

    async def _keep_time(self) -> None:
        last = self._monotonic()
        while True:
            await asyncio.sleep(self._limits.tick_seconds)
            try:
                if self._monotonic() - last > self._limits.tick_seconds + self._limits.outage_seconds:
                    log.warning("scheduler_was_away", seconds=round(self._monotonic() - last, 1))
                    await self._upkeep.restart_clocks()
                for attempt in await self._upkeep.renew_and_expire(self._desk.take_renewals()):
                    log.warning("attempt_expired", job_uid=attempt.job_uid, attempt=attempt.number)
            except RetryableError as error:
                log.error("upkeep_failed", problem=error.message)
                continue  # `last` stays: a long outage of the database is one of the scheduler, too
            last = self._monotonic()

    async def _keep_adopting(self) -> None:
        while True:
            self._to_adopt.clear()
            with contextlib.suppress(RetryableError):
                attempts = await self._upkeep.attempts_to_adopt(self._limits.adoptions_max)
                adopted = await asyncio.gather(*(self._adopt(attempt) for attempt in attempts))
                if any(adopted):
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.adoption_retry_seconds):
                    await self._to_adopt.wait()

    async def _adopt(self, attempt: Attempt) -> bool:
        """Look for the attempt's checkpoints; whether that is done, or given up."""
        try:
            async with asyncio.timeout(self._limits.adoption_seconds):
                manifests = await self._checkpoints.adopt(attempt.job_uid, attempt.epoch)
        except (SihlaiError, TimeoutError) as error:
            waited_us = self._now_us() - (attempt.end_time_us or 0)
            if waited_us < self._limits.adoption_seconds_max * SECOND_US:
                log.warning("adoption_failed", job_uid=attempt.job_uid, epoch=attempt.epoch, problem=str(error))
                return False
            log.error("adoption_given_up", job_uid=attempt.job_uid, epoch=attempt.epoch, problem=str(error))
            manifests = []
        found = [checkpoint_from_manifest(manifest, attempt.job_uid) for manifest in manifests]
        await self._upkeep.adopt(key_of(attempt), found)
        return True

    async def _keep_forgetting(self) -> None:
        while True:
            try:
                await self._upkeep.forget()
            except RetryableError as error:
                log.error("forgetting_failed", problem=error.message)
            await asyncio.sleep(self._limits.forget_seconds)
