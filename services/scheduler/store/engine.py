"""The engines of a database. SQLite is known from PostgreSQL in few places: here, and where a docstring says so."""

from __future__ import annotations

import select
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError

from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.store.leader import Leader
from services.scheduler.store.statement import from_json, to_json

READ_CACHE_KIB = 16 * 1024
WRITE_CACHE_KIB = 64 * 1024
_JSON = {"json_serializer": to_json, "json_deserializer": from_json}


def make_engine(
    url: URL, leader: Leader, *, readers: int | None, lists: bool = False, limits: DatabaseLimits
) -> Engine:
    """The writer's engine (`readers` is None), that of so many readers, or of those of `lists`."""
    if url.get_backend_name() != "sqlite":
        level = "READ COMMITTED" if readers is None else "REPEATABLE READ"
        options: dict[str, Any] = {"pool_size": readers or 1, "max_overflow": 1, "isolation_level": level}
        arguments = leader.connect_args(writes=readers is None, lists=lists)
        engine = create_engine(url, connect_args=arguments, **options, **_JSON)
        event.listen(engine, "checkout", _refuse_cut)
        return engine
    options = {"connect_args": {"timeout": limits.busy_seconds, "check_same_thread": False}}
    if readers is not None:
        options |= {"pool_size": readers, "max_overflow": 0}
    engine = create_engine(url, **options, **_JSON)
    if readers is None:
        _prepare_sqlite(engine, begin="BEGIN IMMEDIATE", cache_kib=WRITE_CACHE_KIB, log_bytes_max=limits.log_bytes_max)
    else:
        _prepare_sqlite(engine, begin="BEGIN", cache_kib=READ_CACHE_KIB, log_bytes_max=limits.log_bytes_max)
    return engine


def _prepare_sqlite(engine: Engine, *, begin: str, cache_kib: int, log_bytes_max: int) -> None:
    """WAL, every commit synced to disk, and transactions that begin where we say so. A log that begins anew is cut."""
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"cache_size=-{cache_kib}",
        "temp_store=MEMORY",
        f"journal_size_limit={log_bytes_max}",
    )

    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 would begin transactions by its own rules, and late: writers that read first get SQLITE_BUSY.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
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
