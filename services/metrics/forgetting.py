"""The rows of a deleted job go when the bus tells of its deletion: at once, and again for what comes late.

A job's deletion is the scheduler's to decide. A list of the jobs that it knows would not do: a scheduler whose database
was lost, or another one at the same address, would have everything deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from sihlai.event.v1 import event_pb2

from services.chassis.bus import Bus, ConsumerLimits, Message
from services.chassis.log import get_logger
from services.chassis.loop import keep_turning
from services.metrics.clickhouse.deletion import Deletions

log = get_logger(__name__)

STREAM = "SIHLAI"
"""The stream of all events, which the scheduler makes."""
DELETED = "sihlai.v1.job.*.*.deleted"
DURABLE = "metrics-deletions"


@dataclass(frozen=True, kw_only=True)
class ForgettingLimits:
    """How deletions are heard and carried out."""

    sweep_seconds: float = 600.0
    """Pause between looks for rows of deleted jobs that came late."""
    deliveries_max: int = 1_000_000
    """A deletion that could not be written down is told again, for as long as ClickHouse is away."""


class Forgetting:
    """One for each process; several share the work."""

    def __init__(self, bus: Bus, deletions: Deletions, *, limits: ForgettingLimits) -> None:
        self._bus = bus
        self._deletions = deletions
        self._limits = limits
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Hear and delete, until cancelled."""
        limits = ConsumerLimits(deliveries_max=self._limits.deliveries_max)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                keep_turning(
                    "deletions", lambda: self._bus.consume(STREAM, DURABLE, DELETED, self._hear, limits=limits)
                )
            )
            tasks.create_task(keep_turning("forgetting", self._turn))

    async def _hear(self, message: Message) -> None:
        try:
            event = event_pb2.Event.FromString(message.payload)
        except DecodeError:
            log.warning("event_not_understood", subject=message.subject)
            return
        if event.WhichOneof("fact") == "job_deleted":
            await self._deletions.write_down(event.job_deleted.job.uid)
            self._heard.set()

    async def _turn(self) -> None:
        self._heard.clear()
        gone = await self._deletions.sweep()
        if gone:
            log.info("jobs_forgotten", count=len(gone))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.sweep_seconds):
                await self._heard.wait()
