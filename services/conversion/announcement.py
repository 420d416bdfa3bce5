"""Tells the bus that a dataset was converted. Best effort: the truth is in the store, and nothing waits for NATS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime

from sihlai.event.v1 import event_pb2

from services.chassis.bus import Bus
from services.chassis.errors import Unavailable
from services.chassis.log import get_contextvars, get_logger

log = get_logger(__name__)

WAITING_MAX = 64
"""Announcements that wait for the bus; beyond that they are dropped, with a line in the log."""


class Announcer:
    """Publishes in the background. `now` is the time, with its zone."""

    def __init__(self, bus: Bus, now: Callable[[], datetime]) -> None:
        self._bus = bus
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Announcements that wait for the bus."""
        return len(self._tasks)

    async def announce(self, digest: str, uri: str, images: int) -> None:
        """Announce one result. Its id follows from the digest, so that a fact that is sent twice shows."""
        if self.waiting >= WAITING_MAX:
            log.warning("dataset_not_announced", uri=uri, problem=f"{WAITING_MAX} announcements wait already")
            return
        task = asyncio.create_task(self._publish(self._event(digest, uri, images)), name=f"announce {digest[:16]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what waits."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _event(self, digest: str, uri: str, images: int) -> event_pb2.Event:
        event = event_pb2.Event(
            id=str(uuid.UUID(hex=digest[:32])),
            subject=f"sihlai.v1.dataset.{digest}.converted",
            traceparent=str(get_contextvars().get("trace_parent", "")),
            dataset_converted=event_pb2.DatasetConverted(digest=digest, uri=uri, images=images),
        )
        event.time.FromDatetime(self._now())
        return event

    async def _publish(self, event: event_pb2.Event) -> None:
        try:
            await self._bus.publish(event.subject, event.SerializeToString(), event.id)
        except Unavailable as error:
            log.warning("dataset_not_announced", uri=event.dataset_converted.uri, problem=error.message)


async def announce_nothing(digest: str, uri: str, images: int) -> None:
    """For a service without a bus."""
