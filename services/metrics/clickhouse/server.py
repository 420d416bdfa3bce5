"""A ClickHouse server, over HTTP.

An insert carries its lease's deadline, and the engine looks at it when it has the rows in hand: one that was held up on
the way, by a proxy or a busy server, is refused and not stored late. The client library never sends it a second time.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver import exceptions

from services.chassis.errors import ConfigurationError
from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import ClientConnection, Connection, insert_error
from services.metrics.clickhouse.ownership import LeaseLimits, Ownership, SharedOwnership

log = get_logger(__name__)

SETTLE_RETRY_SECONDS = 0.5
QUERY_ID_PREFIX = "sihlai-insert-"
ACCESS_DENIED_CODES = frozenset({497})
KILL_ONE = "KILL QUERY WHERE query_id = {query_id:String} SYNC"
KILL_ALL = "KILL QUERY WHERE startsWith(query_id, {prefix:String}) SYNC"
ALIGNMENT = 64
"""Arrow's own: rows that begin elsewhere would be padded."""
NOW = "SELECT toUnixTimestamp64Micro(now64(6)) AS now"


class ServerEngine:
    """A server and a database in it. `opener` names this process among those that share it."""

    is_shared = True

    def __init__(
        self,
        url: str,
        *,
        settings: Mapping[str, Any],
        limits: Mapping[str, Any],
        insert_seconds: float,
        lease: LeaseLimits,
    ) -> None:
        parts = urlsplit(url)
        self._database = parts.path.strip("/")
        self._opener = uuid.uuid4().hex
        self._lease = lease
        self._closed = threading.Event()
        self._settings = dict(settings)
        self._limits = dict(limits)
        self._insert_seconds = insert_seconds
        self._arguments: dict[str, Any] = {
            "host": parts.hostname,
            "port": parts.port or (8443 if parts.scheme == "https" else 8123),
            "secure": parts.scheme == "https",
            "username": parts.username or "default",
            "password": parts.password or "",
            "send_receive_timeout": insert_seconds,
            "autogenerate_session_id": False,
        }
        try:
            client = clickhouse_connect.get_client(**self._arguments)
            client.command(f"CREATE DATABASE IF NOT EXISTS `{self._database}`")
            client.close()
        except exceptions.Error as error:
            shown = f"{parts.scheme}://{parts.hostname}:{self._arguments['port']}"
            raise ConfigurationError([f"ClickHouse at {shown} cannot be used: {error}"]) from error

    def connect(self, *, limited: bool = False) -> Connection:
        """A client of its own: queries of one session must not overlap."""
        return ServerConnection(
            self._client(limited=limited),
            self._opener,
            self._closed,
            insert_seconds=self._insert_seconds,
            lease=self._lease,
        )

    def ownership(self) -> Ownership:
        """A lease, renewed for as long as this process lives."""
        return SharedOwnership(self.connect, self._opener, limits=self._lease, kill=self._kill)

    async def upkeep(self) -> None:
        """A server's disk and merges are minded by who runs it."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """Let inserts that wait for the server give up."""
        self._closed.set()

    def _client(self, *, limited: bool = False) -> Any:
        settings = {**self._settings, **(self._limits if limited else {})}
        return clickhouse_connect.get_client(**self._arguments, database=self._database, settings=settings)

    def _kill(self, opener: str) -> bool:
        """End all inserts of a process, and wait for their end; False where that is not allowed."""
        client = self._client()
        try:
            client.command(KILL_ALL, parameters={"prefix": _prefix(opener)})
        except exceptions.Error as error:
            log.warning("inserts_not_killed", opener=opener, code=error.code, error=str(error)[:300])
            return False
        finally:
            client.close()
        return True


@dataclass(frozen=True)
class ServerConnection(ClientConnection):
    """A connection to the server. Inserts have query ids that tell whose they are."""

    opener: str
    closed: threading.Event
    insert_seconds: float = field(kw_only=True)
    lease: LeaseLimits = field(kw_only=True)
    structures: dict[str, dict[str, str]] = field(default_factory=dict, kw_only=True)

    def insert(self, table: str, rows: pa.Table, *, deadline_unix_us: int | None = None) -> None:
        """One Arrow block, which the engine refuses after the deadline."""
        query_id = f"{_prefix(self.opener)}{uuid.uuid4().hex}"
        settings = {"query_id": query_id, "max_execution_time": self.insert_seconds}
        try:
            self.client.raw_insert(
                insert_block=_body(self._sql(table, rows, deadline_unix_us), rows), settings=settings
            )
        except (exceptions.Error, OSError) as error:
            failure = insert_error(error, table, rows)
            if getattr(error, "code", None) is None:
                self._settle(query_id, deadline_unix_us)
            raise failure from error

    def _sql(self, table: str, rows: pa.Table, deadline_unix_us: int | None) -> str:
        columns = ", ".join(rows.column_names)
        if deadline_unix_us is None:
            return f"INSERT INTO {table} ({columns}) FORMAT ArrowStream"  # names of ours
        types = self._structure(table)
        structure = ", ".join(f"{name} {types[name]}" for name in rows.column_names).replace("'", "\\'")
        # nowInBlock64 and not now64: the clock at the rows' own time, not at the query's beginning.
        late = f"throwIf(toUnixTimestamp64Micro(nowInBlock64(6)) > {deadline_unix_us:d}, 'the lease is over')"
        source = f"SELECT {columns} FROM input('{structure}') WHERE {late} = 0"  # noqa: S608  # names of ours
        return f"INSERT INTO {table} ({columns}) {source} FORMAT ArrowStream"  # names of ours

    def _structure(self, table: str) -> dict[str, str]:
        """The types of a table's columns, as the engine writes them."""
        if table not in self.structures:
            sql = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
            found = self.read(sql, {"table": table}).to_pylist()
            self.structures[table] = {row["name"]: row["type"] for row in found}
        return self.structures[table]

    def _settle(self, query_id: str, deadline_unix_us: int | None) -> None:
        """Return when the insert cannot take effect any more. With the server away that is when it is back."""
        killable, told = True, False
        while not self.closed.is_set():
            try:
                if killable:
                    self.client.command(KILL_ONE, parameters={"query_id": query_id})
                    return
                if self._is_over(deadline_unix_us):
                    return
            except exceptions.Error as error:
                if not told:
                    log.warning("insert_not_settled", query_id=query_id, code=error.code, error=str(error)[:300])
                told = True
                killable = killable and error.code not in ACCESS_DENIED_CODES
            self.closed.wait(SETTLE_RETRY_SECONDS)

    def _is_over(self, deadline_unix_us: int | None) -> bool:
        """Whether the engine's clock says so, where nothing can be killed; what has begun may take its time."""
        if deadline_unix_us is None:
            return True
        (row,) = self.client.query(NOW).named_results()
        return bool(row["now"] > deadline_unix_us + round(self.lease.settle_seconds * 1e6))


def _prefix(opener: str) -> str:
    return f"{QUERY_ID_PREFIX}{opener}-"


def _body(sql: str, rows: pa.Table) -> memoryview:
    """The insert and its rows as a request, in one piece of memory that is no larger.

    A view, because the library sends bytes again when the connection breaks, and both may land; a command's data it
    makes a text of, in four times the memory.
    """
    rows = rows.combine_chunks()
    head = sql.encode()
    head += b" " * (-(len(head) + 1) % ALIGNMENT) + b"\n"
    counted = pa.MockOutputStream()
    _write(counted, rows)
    body = pa.allocate_buffer(len(head) + counted.size())
    with pa.FixedSizeBufferWriter(body) as sink:
        sink.write(head)
        _write(sink, rows)
    return memoryview(body)


def _write(sink: pa.NativeFile, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
