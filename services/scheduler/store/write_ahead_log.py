"""SQLite's write-ahead log, kept from growing without end.

What is committed goes there first, and the log begins anew only where nobody reads in it. Lists that always overlap
leave no such moment. So where it has grown large, new lists wait until those before them have ended, and the writer has
let it begin anew; nobody else waits. Where another process reads on, or a list takes longer than the others wait, it
grows until they are done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from services.chassis.log import get_logger

log = get_logger(__name__)

LOOK_EVERY = 64
"""Transactions between two looks at its size."""
LIST_WAIT_SECONDS = 5.0
"""A list waits no longer than this: the writer may have nothing to do."""
READER_WAIT_MS = 20
"""How long the writer waits for readers that are in the middle of something short."""
PAUSE_SECONDS = 10.0
"""How long nobody waits for anything after somebody read on for longer: a backup, a shell."""


class WriteAheadLog:
    """`writing` is the writer's engine, which `look` is called with between its transactions. None but on SQLite."""

    def __init__(self, writing: Engine, *, bytes_max: int) -> None:
        self._writing = writing
        self._bytes_max = bytes_max
        is_sqlite = writing.url.get_backend_name() == "sqlite"
        self._path = Path(f"{writing.url.database}-wal") if is_sqlite else None
        self._driver_error: type[Exception] = writing.dialect.loaded_dbapi.Error
        self._changed = threading.Condition()
        self._lists = 0
        self._is_large = False
        self._transactions = 0
        self._again_at = 0.0

    @contextmanager
    def listing(self) -> Iterator[None]:
        """What may read for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_large, timeout=LIST_WAIT_SECONDS)
            self._lists += 1
        try:
            yield
        finally:
            with self._changed:
                self._lists -= 1

    def look(self) -> None:
        """A transaction has ended: begin the log anew where that is needed and can be done."""
        self._transactions += 1
        if self._path is None or not (self._is_large or self._transactions % LOOK_EVERY == 0):
            return
        if time.monotonic() < self._again_at:
            return
        with self._changed:
            try:
                self._is_large = self._path.stat().st_size > self._bytes_max
                if self._is_large and not self._lists:
                    self._is_large = False
                    if not self._begins_anew():
                        self._again_at = time.monotonic() + PAUSE_SECONDS
            except (OSError, self._driver_error) as error:
                log.warning("log_not_begun_anew", problem=f"{type(error).__name__}: {error}")
            self._changed.notify_all()

    def _begins_anew(self) -> bool:
        connection = self._writing.raw_connection()
        try:
            cursor = connection.cursor()
            (busy_ms,) = cursor.execute("PRAGMA busy_timeout").fetchone()
            cursor.execute(f"PRAGMA busy_timeout = {READER_WAIT_MS}")
            try:
                is_busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {busy_ms}")
            return not is_busy
        finally:
            connection.close()
