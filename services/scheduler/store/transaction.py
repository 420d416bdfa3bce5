"""One transaction of the writer: what the units in it share.

Events, revisions and wake-ups are collected here and written once at its end; a unit that fails takes back its own. The
revision is read under a lock of its row, so that revisions become visible in their order, whoever commits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, update

from services.scheduler.fact import Fact
from services.scheduler.lease import AttemptKey
from services.scheduler.store.tables import counters, outbox

REVISION = "revision"


@dataclass(frozen=True, kw_only=True)
class EncodedFact:
    """An event as it goes to the bus."""

    subject: str
    payload: bytes


EncodeFact = Callable[..., EncodedFact]
"""encode(fact, event_id=…, time_us=…, trace_parent=…)."""


@dataclass(kw_only=True)
class Committed:
    """What a transaction changed, for those who wait. `adoptions`: attempts whose checkpoints are to be looked for."""

    revision: int | None = None
    runners: list[str] = field(default_factory=list)
    events: int = 0
    adoptions: list[AttemptKey] = field(default_factory=list)


class Transaction:
    """Passed to each unit. `now_us` is one time for all of them."""

    def __init__(self, connection: Connection, now_us: int, encode_fact: EncodeFact, new_id: Callable[[], str]) -> None:
        self.connection = connection
        self.now_us = now_us
        self.new_id = new_id
        self.trace_parent = ""
        self.touched_projects: list[str] = []
        """Projects that may have become servable; placement looks at them before the commit."""
        self.place_everywhere = False
        """Every idle runner is to be looked at again."""
        self.committed = Committed()
        self._encode_fact = encode_fact
        self._revision: int | None = None
        self._stored_revision: int | None = None
        self._events: list[dict[str, object]] = []

    def next_revision(self) -> int:
        """A number above every one that was given before, in any transaction that commits."""
        if self._revision is None:
            query = select(counters.c.value).where(counters.c.name == REVISION).with_for_update()
            self._revision = self._stored_revision = int(self.connection.execute(query).scalar_one())
        self._revision += 1
        return self._revision

    def emit(self, fact: Fact) -> None:
        """Write the event of `fact` into the outbox, with this transaction."""
        event_id = self.new_id()
        encoded = self._encode_fact(fact, event_id=event_id, time_us=self.now_us, trace_parent=self.trace_parent)
        row = {
            "event_id": event_id,
            "subject": encoded.subject,
            "payload": encoded.payload,
            "create_time_us": self.now_us,
        }
        self._events.append(row)

    def wake_runner(self, runner_id: str) -> None:
        """What this runner should do may have changed."""
        self.committed.runners.append(runner_id)

    def adopt(self, key: AttemptKey) -> None:
        """The attempt ended: its checkpoints are to be looked for."""
        self.committed.adoptions.append(key)

    def touch_project(self, project_uid: str) -> None:
        """The project may have become servable."""
        self.touched_projects.append(project_uid)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing of what is done inside. Revisions that were given in it are lost, which harms nobody."""
        lists: tuple[list[Any], ...] = (
            self._events,
            self.committed.runners,
            self.committed.adoptions,
            self.touched_projects,
        )
        lengths = [len(each) for each in lists]
        self.connection.exec_driver_sql("SAVEPOINT unit")
        try:
            yield
        except BaseException:
            for each, length in zip(lists, lengths, strict=True):
                del each[length:]
            self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT unit")
            self.connection.exec_driver_sql("RELEASE SAVEPOINT unit")
            raise
        self.connection.exec_driver_sql("RELEASE SAVEPOINT unit")

    def flush(self) -> None:
        """Write what was collected; the last thing before the commit."""
        if self._revision != self._stored_revision:
            query = update(counters).where(counters.c.name == REVISION).values(value=self._revision)
            self.connection.execute(query)
            self.committed.revision = self._revision
        if self._events:
            self.connection.execute(insert(outbox), self._events)
            self.committed.events = len(self._events)
