"""Events that wait for the bus, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select

from services.scheduler.store.database import Database
from services.scheduler.store.tables import outbox


@dataclass(frozen=True, kw_only=True)
class OutboxEvent:
    """One event as it goes to the bus."""

    position: int
    event_id: str
    subject: str
    payload: bytes


class OutboxStore:
    """For the one publisher."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def oldest(self, limit: int) -> list[OutboxEvent]:
        """The events to send next, in their order."""
        columns = (outbox.c.position, outbox.c.event_id, outbox.c.subject, outbox.c.payload)
        query = select(*columns).order_by(outbox.c.position).limit(limit)
        return await self._database.read(lambda c: [OutboxEvent(**row._mapping) for row in c.execute(query)])

    async def remove(self, positions: Sequence[int]) -> None:
        """Forget events that the bus has stored."""
        query = delete(outbox).where(outbox.c.position.in_(positions))
        await self._database.write(lambda transaction: transaction.connection.execute(query).rowcount)
