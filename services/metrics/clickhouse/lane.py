"""Lanes: readers of ClickHouse that are kept apart by what they serve, so that no slow query holds up another kind.

A lane has its own clients and threads. Who finds them all busy waits in turn, for a limited time. A query whose caller
has gone away is killed: it would keep its reader from others.
"""

from __future__ import annotations

import asyncio
import enum
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from clickhouse_connect.driver import exceptions

from services.chassis.errors import Reason, SihlaiError, Unavailable
from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import Connection
from services.metrics.clickhouse.engine import Engine

log = get_logger(__name__)

Made = TypeVar("Made")

KILL = "KILL QUERY WHERE startsWith(query, '{mark}') ASYNC"
KILL_TRIES_MAX = 10
KILL_PAUSE_SECONDS = 0.2
"""A query that has only just been sent is not to be found yet."""


class Lane(enum.StrEnum):
    """What a read serves."""

    INGEST = "ingest"
    """Openings and ends of writers."""
    FOLLOW = "follow"
    """Tails and watches."""
    QUERY = "query"
    """Answers that users wait for."""


@dataclass(frozen=True, kw_only=True)
class LaneLimits:
    """How many reads of each lane run at once, and how long one waits for its turn."""

    readers: Mapping[Lane, int]
    wait_seconds: float


class Readers:
    """The clients of one lane. Used from one event loop."""

    def __init__(self, engine: Engine, lane: Lane, *, readers: int, wait_seconds: float) -> None:
        self._lane = lane
        self._count = readers
        self._wait_seconds = wait_seconds
        self._free = asyncio.Semaphore(readers)
        self._threads = ThreadPoolExecutor(max_workers=readers, thread_name_prefix=f"read-{lane.value}")
        self._connections: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for _ in range(readers):
            self._connections.put(engine.connect(limited=lane is not Lane.INGEST))
        self._killer = engine.connect()
        self._killing = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"kill-{lane.value}")

    async def read(self, make: Callable[[pa.Table], Made], sql: str, parameters: Mapping[str, Any]) -> Made:
        """What `make` makes of a query's rows, in the reader's thread: thousands of rows would hold the loop up.

        Unavailable (METRICS_STORE_UNAVAILABLE) where no reader is free in time.
        """
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        loop = asyncio.get_running_loop()
        query = MarkedQuery(f"/* {uuid.uuid4().hex} */")
        reading = self._threads.submit(self._read, make, query, sql, parameters)
        # Not when the caller goes away: a query that runs keeps its reader.
        reading.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        try:
            return await asyncio.wrap_future(reading)
        except asyncio.CancelledError:
            self._killing.submit(self._kill, query, reading)
            raise

    def close(self) -> None:
        """After the last call. Waits for what is running."""
        self._threads.shutdown()
        self._killing.shutdown(cancel_futures=True)
        self._killer.close()
        for _ in range(self._count):
            self._connections.get().close()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            setting = f"{self._lane.value}_readers"
            message = f"all readers were busy for {self._wait_seconds:g} s ({setting} is {self._count}): ask later"
            metadata = {"what": setting, "limit": str(self._count)}
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message, metadata) from None

    def _read(
        self, make: Callable[[pa.Table], Made], query: MarkedQuery, sql: str, parameters: Mapping[str, Any]
    ) -> Made:
        connection = self._connections.get()
        try:
            rows = connection.read(f"{query.mark} {sql}", parameters)
        finally:
            if query.end():
                connection.clear()
            self._connections.put(connection)
        return make(rows)

    def _kill(self, query: MarkedQuery, reading: Future[Any]) -> None:
        """Have the engine stop a query that nobody waits for. With the engine away it is over anyway."""
        for _ in range(KILL_TRIES_MAX):
            try:
                if not query.kill(self._killer):
                    return
            except (SihlaiError, exceptions.Error):
                return
            wait([reading], timeout=KILL_PAUSE_SECONDS)
        if not reading.done():
            log.warning("query_not_killed", lane=self._lane.value)


class MarkedQuery:
    """A query that can be found among those that run. It is never killed after its end: that would hit the next one."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._lock = threading.Lock()
        self._ended = False
        self._killed = False

    def kill(self, killer: Connection) -> bool:
        """Stop it; False where it has ended by itself."""
        with self._lock:
            if self._ended:
                return False
            self._killed = True
            killer.command(KILL.format(mark=self.mark))
            return True

    def end(self) -> bool:
        """It has ended; whether somebody tried to stop it."""
        with self._lock:
            self._ended = True
            return self._killed
