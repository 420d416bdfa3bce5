"""Events from the outbox to the bus: one publisher, in order for each job and each runner.

With the bus away nothing else stops; the events wait in the database. After a (re)connect it skips what the stream has
already, because the stream itself knows a message's id again for two minutes only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from services.chassis.bus import Bus
from services.chassis.errors import InvalidArgument
from services.chassis.log import get_logger
from services.scheduler.store.committed import Committed
from services.scheduler.store.outbox import OutboxEvent, OutboxStore

log = get_logger(__name__)

STREAM = "SIHLAI"
SUBJECTS = ("sihlai.v1.>",)
"""The stream of all services' events; it is made where it is missing, and its settings are its administrator's."""


@dataclass(frozen=True, kw_only=True)
class OutboxLimits:
    """How events are sent."""

    batch_max: int = 64
    """Events in flight at most."""
    stream_replicas: int = 1
    """Of the stream, where this scheduler makes it."""


class Publisher:
    """Sends what the outbox holds."""

    def __init__(self, outbox: OutboxStore, bus: Bus, *, limits: OutboxLimits) -> None:
        self._outbox = outbox
        self._bus = bus
        self._limits = limits
        self._filled = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """Wake the publisher if there is something to send."""
        if committed.events:
            self._filled.set()

    async def turn(self) -> None:
        """Publish for as long as one connection lasts."""
        connection = await self._bus.wait_connected()
        await self._bus.ensure_stream(STREAM, SUBJECTS, replicas=self._limits.stream_replicas)
        await self._skip_what_is_stored()
        while self._bus.connections == connection:
            self._filled.clear()
            if not await self._publish_batch():
                await self._filled.wait()

    async def _skip_what_is_stored(self) -> None:
        """A batch that was sent without an answer may have arrived: it is among the newest messages of the stream."""
        events = await self._outbox.oldest(self._limits.batch_max)
        if not events:
            return
        stored = set(await self._bus.last_message_ids(STREAM, messages_max=2 * self._limits.batch_max))
        arrived = [event.position for event in events if event.event_id in stored]
        if arrived:
            log.info("events_were_stored", events=len(arrived))
            await self._outbox.remove(arrived)

    async def _publish_batch(self) -> bool:
        """Send the oldest events; whether there were any. Raises where one could not be sent."""
        events = await self._outbox.oldest(self._limits.batch_max)
        if not events:
            return False
        results = await asyncio.gather(*(self._publish_in_order(each) for each in _by_subject(events)))
        sent = [position for positions, _ in results for position in positions]
        if sent:
            await self._outbox.remove(sent)
        for _, error in results:
            if error is not None:
                raise error
        return True

    async def _publish_in_order(self, events: Iterable[OutboxEvent]) -> tuple[list[int], Exception | None]:
        """Send events one after the other; return the positions of those that are done with, and what went wrong.

        An event that the bus can never take is parked: it stays in the log alone, and the ones behind it are sent.
        """
        done: list[int] = []
        for event in events:
            try:
                await self._bus.publish(event.subject, event.payload, event.event_id)
            except InvalidArgument as error:
                ids = {"event_id": event.event_id, "subject": event.subject, "size_bytes": len(event.payload)}
                log.error("event_parked", **ids, problem=error.message)
            except Exception as error:  # noqa: BLE001  # raised by who called, when the other subjects are through
                return done, error
            done.append(event.position)
        return done, None


def _by_subject(events: Iterable[OutboxEvent]) -> list[list[OutboxEvent]]:
    """The events by what they are about (the subject without its last word), each in order."""
    found: dict[str, list[OutboxEvent]] = {}
    for event in events:
        found.setdefault(event.subject.rpartition(".")[0], []).append(event)
    return list(found.values())
