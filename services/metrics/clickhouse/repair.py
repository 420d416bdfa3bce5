"""Tables of an embedded engine with a part that cannot be read: proven, or attached anew without it.

chDB does not notice when the small files of a part find no room on the disk: an insert or a merge ends as if all were
well, and the part cannot be read, at the latest by the next process. It only counts the writes that failed. So where
there were some, who has inserted looks at the part before anybody is told that it is stored, and `upkeep` looks at what
was merged. What a merge was made of stays on the disk for a while (`old_parts_lifetime`).

When a table is attached each of its parts is looked at: a broken one is set aside (in the table's folder `detached`),
and what it was made of takes its place again.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from clickhouse_connect.driver import exceptions

from services.chassis.log import get_logger

log = get_logger(__name__)

DATABASE = "sihlai"
BROKEN_TABLE = re.compile(rf"in table {DATABASE}\.(\w+)")
REPAIR_SECONDS_MIN = 5.0
"""Many readers may meet one broken part: the table is attached anew for the first."""
WRITE_FAILURES = """
SELECT toInt64(sum(value)) AS failures FROM system.events WHERE event = 'WriteBufferFromFileDescriptorWriteFailed'
"""
NEWEST_PART = """
SELECT argMax(name, max_block_number) AS name FROM system.parts
WHERE database = currentDatabase() AND table = {table:String} AND level = 0
"""
ACTIVE_PART = """
SELECT count() AS parts FROM system.parts
WHERE database = currentDatabase() AND table = {table:String} AND name = {name:String} AND active
"""
CHECK_PART = "CHECK TABLE {table} PART '{name}' SETTINGS check_query_single_value_result = 0"


class Asked(Protocol):
    """A connection, as it is: without another try where a part is broken."""

    def ask(self, sql: str, **parameters: Any) -> list[Mapping[str, Any]]:
        """The rows of a query."""

    def command(self, sql: str) -> None:
        """Anything that answers nothing."""


class Repairs:
    """Of one engine. Safe for threads. All raise what the engine answers (`exceptions.Error`)."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._repaired_at: dict[str, float] = {}
        self._detached: set[str] = set()
        self._doubted: set[str] = set()

    @property
    def in_doubt(self) -> bool:
        """Whether something was inserted of which nobody knows whether it can be read: then nothing must be read,
        because who asks how far a writer is stored would be told of rows that may be gone soon."""
        return bool(self._doubted)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else inserts or attaches a table anew meanwhile: who inserts looks at its part before that is gone."""
        with self._lock:
            yield

    def is_whole(self, connection: Asked, table: str) -> bool:
        """Whether what was inserted last into a table can be read; else it is gone when this returns.

        In the same `alone` as the insert. Where it raises, the table is in doubt until `settle`.
        """
        with self._lock:
            self._doubted.add(table)
            (newest,) = connection.ask(NEWEST_PART, table=table)
            whole = is_sound(connection, table, newest["name"])
            if not whole:
                self._attach_anew(connection, table)
                # One whose projection alone is broken is still there: its rows are whole.
                whole = bool(connection.ask(ACTIVE_PART, table=table, name=newest["name"])[0]["parts"])
            self._doubted.discard(table)
            return whole

    def repair_named(self, connection: Asked, error: str) -> None:
        """Repair the table that an error of the engine tells of, where it tells of one."""
        if (found := BROKEN_TABLE.search(error)) is not None:
            self.repair(connection, found[1])

    def repair(self, connection: Asked, table: str) -> bool:
        """Attach a table anew, unless that was done a moment ago; whether it was done now.

        Queries beside it find no table meanwhile, and are asked again by who sent them.
        """
        with self._lock:
            if self._monotonic() - self._repaired_at.get(table, -REPAIR_SECONDS_MIN) < REPAIR_SECONDS_MIN:
                return False
            self._attach_anew(connection, table)
            return True

    def settle(self, connection: Asked) -> None:
        """Attach what is in doubt, and what could not be attached when it was repaired."""
        if self._doubted or self._detached:
            with self._lock:
                for table in sorted(self._doubted | self._detached):
                    self._attach_anew(connection, table)
                    self._doubted.discard(table)

    def _attach_anew(self, connection: Asked, table: str) -> None:
        if table not in self._detached:
            connection.command(f"DETACH TABLE {table} SYNC")
            self._detached.add(table)
        connection.command(f"ATTACH TABLE {table}")
        self._detached.discard(table)
        self._repaired_at[table] = self._monotonic()
        log.warning("table_attached_anew", table=table)


def write_failures(connection: Asked) -> int:
    """How many writes of the engine have failed since it was opened."""
    ((failures,),) = [row.values() for row in connection.ask(WRITE_FAILURES)]
    return int(failures)


def is_sound(connection: Asked, table: str, name: str) -> bool:
    """Whether all of a part can be read; one that has been merged since is asked of no more."""
    try:
        found = connection.ask(CHECK_PART.format(table=table, name=name))
    except exceptions.Error as error:
        if not connection.ask(ACTIVE_PART, table=table, name=name)[0]["parts"]:
            return True
        log.error("part_not_checked", table=table, part=name, error=str(error)[:300])
        return False
    wrong = [row["message"] for row in found if not row["is_passed"]]
    if wrong:
        log.error("part_broken", table=table, part=name, problem=wrong[0][:300])
    return bool(found) and not wrong
