"""Leases are renewed and run out, once a second. Whether the clocks are to be believed is `upkeep`'s to say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.chassis.log import get_logger
from services.scheduler.desk import RunnerDesk
from services.scheduler.store.upkeep import Upkeep

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class TickLimits:
    """How often the clock ticks."""

    tick_seconds: float = 1.0


class Clock:
    """One for each process."""

    def __init__(self, upkeep: Upkeep, desk: RunnerDesk, *, limits: TickLimits) -> None:
        self._upkeep = upkeep
        self._desk = desk
        self._limits = limits

    async def turn(self) -> None:
        """One tick. `Upkeep.restart_clocks` is to be called before the first call is served."""
        await asyncio.sleep(self._limits.tick_seconds)
        renewals = self._desk.take_renewals()
        try:
            closed = await self._upkeep.renew_and_expire(renewals)
        except BaseException:
            self._desk.give_back(renewals)  # they were heard of all the same
            raise
        for attempt in closed:
            log.warning("attempt_expired", job_uid=attempt.job_uid, attempt=attempt.number)
