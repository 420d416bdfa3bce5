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
from services.scheduler.domain.job import SECOND_US
from services.scheduler.domain.lease import Orphan
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.committed import Committed
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
            await asyncio.gather(*(self._adopt(orphan) for orphan in due))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.retry_seconds):
                await self._to_adopt.wait()

    async def _adopt(self, orphan: Orphan) -> None:
        """Look for the attempt's checkpoints. Whatever is wrong with one attempt, the others are looked for."""
        key = orphan.key
        ids = {"job_uid": key.job_uid, "epoch": key.epoch}
        try:
            async with asyncio.timeout(self._limits.look_seconds):
                manifests = await self._checkpoints.adopt(key.job_uid, key.epoch)
            sound = (checkpoint_from_manifest(manifest, key.job_uid) for manifest in manifests)
            found = [checkpoint for checkpoint in sound if checkpoint is not None]
            await self._upkeep.adopt(key, found)
        except (SihlaiError, TimeoutError) as error:
            log.warning("adoption_failed", **ids, problem=str(error) or type(error).__name__)
            await self._look_later(orphan)
        except Exception:
            log.exception("adoption_failed", **ids)
            await self._look_later(orphan)

    async def _look_later(self, orphan: Orphan) -> None:
        limits, key = self._limits, orphan.key
        waited_seconds = (self._now_us() - orphan.end_time_us) / SECOND_US
        if waited_seconds > limits.days_max * 86_400:
            log.error("adoption_given_up", job_uid=key.job_uid, epoch=key.epoch)
            await self._upkeep.give_up(key)
            return
        pause_seconds = min(max(limits.retry_seconds, waited_seconds / 8), limits.retry_seconds_max)
        let_go = orphan.waits and waited_seconds >= limits.seconds_max
        if let_go:
            log.error("job_goes_on_without_checkpoints", job_uid=key.job_uid, epoch=key.epoch)
        await self._upkeep.look_later(key, seconds=pause_seconds, let_go=let_go)
