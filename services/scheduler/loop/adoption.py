"""Checkpoints of ended attempts are looked for in the object store, so that a lost report loses no model.

A job that waits for them is let go of after a while; the looking goes on for days, in growing pauses, because a store
that is away for an hour would otherwise cost the model of every attempt that ended in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.scheduler.domain.job import SECOND_US, Attempt
from services.scheduler.domain.lease import key_of
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.transaction import Committed
from services.scheduler.store.upkeep import Upkeep
from services.scheduler.wire.checkpoint import checkpoint_from_manifest

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdoptionLimits:
    """How checkpoints are looked for."""

    attempts_max: int = 16
    """Attempts whose checkpoints are looked for at once."""
    look_seconds: float = 20.0
    """How long one look may take."""
    retry_seconds: float = 5.0
    """The first pause between two looks; later ones are as long as an eighth of what has been waited."""
    retry_seconds_max: float = 3_600.0
    seconds_max: float = 120.0
    """After this long a job goes on without the checkpoints that could not be looked for."""
    days_max: float = 7.0
    """After so long nobody looks for them any more."""


class Adoption:
    """One for each process. `now_us` is the time in microseconds."""

    def __init__(
        self, upkeep: Upkeep, checkpoints: CheckpointStore, *, limits: AdoptionLimits, now_us: Callable[[], int]
    ) -> None:
        self._upkeep = upkeep
        self._checkpoints = checkpoints
        self._limits = limits
        self._now_us = now_us
        self._to_adopt = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """An attempt ended: look for its checkpoints at once."""
        if committed.adoptions:
            self._to_adopt.set()

    async def turn(self) -> None:
        """Look for what is due, then wait for more."""
        self._to_adopt.clear()
        due = await self._upkeep.attempts_to_adopt(self._limits.attempts_max)
        if due:
            await asyncio.gather(*(self._adopt(attempt, waits=waits) for attempt, waits in due))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.retry_seconds):
                await self._to_adopt.wait()

    async def _adopt(self, attempt: Attempt, *, waits: bool) -> None:
        """Look for the attempt's checkpoints. Whatever is wrong with one attempt, the others are looked for."""
        ids = {"job_uid": attempt.job_uid, "epoch": attempt.epoch}
        try:
            async with asyncio.timeout(self._limits.look_seconds):
                manifests = await self._checkpoints.adopt(attempt.job_uid, attempt.epoch)
            sound = (checkpoint_from_manifest(manifest, attempt.job_uid) for manifest in manifests)
            found = [checkpoint for checkpoint in sound if checkpoint is not None]
            await self._upkeep.adopt(key_of(attempt), found)
        except (SihlaiError, TimeoutError) as error:
            log.warning("adoption_failed", **ids, problem=str(error) or type(error).__name__)
            await self._look_later(attempt, waits=waits)
        except Exception:
            log.exception("adoption_failed", **ids)
            await self._look_later(attempt, waits=waits)

    async def _look_later(self, attempt: Attempt, *, waits: bool) -> None:
        limits, key = self._limits, key_of(attempt)
        waited_seconds = (self._now_us() - (attempt.end_time_us or 0)) / SECOND_US
        if waited_seconds > limits.days_max * 86_400:
            log.error("adoption_given_up", job_uid=attempt.job_uid, epoch=attempt.epoch)
            await self._upkeep.give_up(key)
            return
        pause_seconds = min(max(limits.retry_seconds, waited_seconds / 8), limits.retry_seconds_max)
        let_go = waits and waited_seconds >= limits.seconds_max
        if let_go:
            log.error("job_goes_on_without_checkpoints", job_uid=attempt.job_uid, epoch=attempt.epoch)
        await self._upkeep.look_later(key, seconds=pause_seconds, let_go=let_go)
