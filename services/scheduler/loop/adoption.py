"""Checkpoints of ended attempts are looked for in the object store, so that a lost report loses no model.

A job that waits for them is let go after a while, however long a look takes; the looking goes on for days, in growing
pauses, because a store that is away for an hour would otherwise cost the model of every attempt that ended in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.scheduler.domain.lease import AttemptKey, Orphan
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.committed import Committed
from services.scheduler.store.orphans import OrphanRows
from services.scheduler.wire.checkpoint import checkpoint_from_manifest

log = get_logger(__name__)

PAUSE_SHARE = 1 / 8
"""Of what has been waited: the pause between two looks."""


@dataclass(frozen=True, kw_only=True)
class AdoptionLimits:
    """How checkpoints are looked for."""

    looks_max: int = 16
    """Attempts whose checkpoints are looked for at once."""
    look_seconds: float = 20.0
    """How long one look may take."""
    retry_seconds: float = 5.0
    """The first pause between two looks, and how often it is seen which jobs have waited for long enough."""
    retry_seconds_max: float = 3_600.0
    seconds_max: float = 120.0
    """After this long a job goes on without the checkpoints that could not be looked for."""
    days_max: float = 7.0
    """After so long nobody looks for them any more."""


class Adoption:
    """One for each process. `monotonic` is in seconds."""

    def __init__(
        self,
        orphans: OrphanRows,
        checkpoints: CheckpointStore,
        *,
        limits: AdoptionLimits,
        monotonic: Callable[[], float],
    ) -> None:
        self._orphans = orphans
        self._checkpoints = checkpoints
        self._limits = limits
        self._monotonic = monotonic
        self._looks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._waited_for: dict[AttemptKey, float] = {}
        """Attempts for whose checkpoints jobs wait, and since when this process knows it: no clock that is set, and no
        difference of two clocks, makes the wait longer or shorter."""
        self._seen_seconds = float("-inf")
        """When that was asked last."""
        self._has_changed = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """An attempt ended: look for its checkpoints at once."""
        if committed.adoptions:
            self._has_changed.set()

    async def turn(self) -> None:
        """Look for all that is due and let jobs go in time, until no look is under way; then wait for more."""
        try:
            await self._let_go()
            await self._begin_looks()
            while self._looks:
                await self._wait()
                self._end_looks()
                await self._let_go()
                await self._begin_looks()
        finally:
            await self._cancel_looks()
        await self._wait()

    async def _wait(self) -> None:
        """Until an attempt or a look has ended, or for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.retry_seconds):
                await self._has_changed.wait()
        self._has_changed.clear()

    async def _let_go(self) -> None:
        """Let jobs go that have waited for long enough, whatever becomes of the looks."""
        limits, now_seconds = self._limits, self._monotonic()
        if now_seconds - self._seen_seconds < limits.retry_seconds:
            return
        self._seen_seconds = now_seconds
        keys = await self._orphans.waited_for()
        self._waited_for = {key: self._waited_for.get(key, now_seconds) for key in keys}
        late = [key for key, since in self._waited_for.items() if now_seconds - since >= limits.seconds_max]
        self._waited_for |= dict.fromkeys(late, now_seconds)  # one that cannot be let go waits again
        for key in await self._orphans.let_go(late):
            log.error("job_goes_on_without_checkpoints", job_uid=key.job_uid, epoch=key.epoch)

    async def _begin_looks(self) -> None:
        """Look for what is due, as far as there are slots."""
        under_way = set(self._looks)
        free = self._limits.looks_max - len(under_way)
        if not free:
            return
        due = await self._orphans.due(self._limits.looks_max)
        for orphan in [each for each in due if each.key not in under_way][:free]:
            look = asyncio.create_task(self._look(orphan))
            look.add_done_callback(lambda _: self._has_changed.set())
            self._looks[orphan.key] = look

    def _end_looks(self) -> None:
        """Forget looks that are done. Raises where what came of one could not be written down."""
        for key in [key for key, look in self._looks.items() if look.done()]:
            self._looks.pop(key).result()

    async def _cancel_looks(self) -> None:
        looks = list(self._looks.values())
        self._looks.clear()
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def _look(self, orphan: Orphan) -> None:
        """Look for the attempt's checkpoints. Whatever is wrong with one attempt, the others are looked for."""
        key = orphan.key
        ids = {"job_uid": key.job_uid, "epoch": key.epoch}
        try:
            async with asyncio.timeout(self._limits.look_seconds):
                manifests = await self._checkpoints.adopt(key.job_uid, key.epoch)
            sound = (checkpoint_from_manifest(manifest, key.job_uid) for manifest in manifests)
            found = [checkpoint for checkpoint in sound if checkpoint is not None]
            await self._orphans.adopt(key, found)
        except (SihlaiError, TimeoutError) as error:
            log.warning("adoption_failed", **ids, problem=str(error) or type(error).__name__)
            await self._look_later(orphan)
        except Exception:
            log.exception("adoption_failed", **ids)
            await self._look_later(orphan)

    async def _look_later(self, orphan: Orphan) -> None:
        limits, key = self._limits, orphan.key
        if orphan.ended_seconds > limits.days_max * 86_400:
            log.error("adoption_given_up", job_uid=key.job_uid, epoch=key.epoch)
            await self._orphans.give_up(key)
            return
        # While its job waits the store is asked often, also where the clock was set forward since the attempt's end.
        longest_seconds = PAUSE_SHARE * limits.seconds_max if orphan.waits else limits.retry_seconds_max
        pause_seconds = max(limits.retry_seconds, min(PAUSE_SHARE * orphan.ended_seconds, longest_seconds))
        await self._orphans.look_later(key, seconds=pause_seconds)
