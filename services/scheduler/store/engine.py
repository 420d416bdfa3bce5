"""The engines of a database, and its clock: here and in `leader` alone SQLite is known from PostgreSQL."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError

from services.scheduler.store.leader import Leader
from services.scheduler.store.statement import to_json

Clock: TypeAlias = Callable[[Connection], int]
"""Microseconds since 1970. On PostgreSQL the database's own clock, on SQLite the machine's, which is the same."""

READ_CACHE_KIB = 16 * 1024
WRITE_CACHE_KIB = 64 * 1024


def make_engine(url: URL, leader: Leader, *, readers: int | None, lists: bool = False, busy_seconds: float) -> Engine:
    """The writer's engine (`readers` is None), that of so many readers, or of those of `lists`."""
    if url.get_backend_name() != "sqlite":
        size: dict[str, Any] = {"pool_size": readers or 1, "max_overflow": 1, "pool_pre_ping": readers is not None}
        level = "READ COMMITTED" if readers is None else "REPEATABLE READ"
        arguments = leader.connect_args(lists=lists)
        engine = create_engine(url, isolation_level=level, connect_args=arguments, json_serializer=to_json, **size)
        if readers is None:
            event.listen(engine, "checkout", _refuse_cut)
        return engine
    options: dict[str, Any] = {"connect_args": {"timeout": busy_seconds, "check_same_thread": False}}
    if readers is not None:
        options |= {"pool_size": readers, "max_overflow": 0}
    engine = create_engine(url, json_serializer=to_json, **options)
    begin = "BEGIN IMMEDIATE" if readers is None else "BEGIN"
    _prepare_sqlite(engine, begin=begin, cache_kib=WRITE_CACHE_KIB if readers is None else READ_CACHE_KIB)
    return engine


def clock_of(url: URL) -> Clock:
    """The clock that all who use the database go by."""
    return _machine_clock if url.get_backend_name() == "sqlite" else _postgresql_clock


def _prepare_sqlite(engine: Engine, *, begin: str, cache_kib: int) -> None:
    """WAL, every commit synced to disk, and transactions that begin where we say so."""

    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 would begin transactions by its own rules, and late: writers that read first get SQLITE_BUSY.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"cache_size=-{cache_kib}", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _refuse_cut(connection: Any, _record: Any, _proxy: Any) -> None:
    """Let the pool connect anew where the server has ended the connection; to ask it costs as much as a look-up."""
    poll = select.poll()
    if not connection.closed:
        poll.register(connection.fileno(), select.POLLRDHUP)
    if connection.closed or poll.poll(0):
        raise DisconnectionError


def _machine_clock(_connection: Connection) -> int:
    return time.time_ns() // 1000


def _postgresql_clock(connection: Connection) -> int:
    row = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))
    return int(row.scalar_one())
