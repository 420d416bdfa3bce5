"""ClickHouse's clients. The only place that knows whether the engine is embedded (chDB) or a server over HTTP.

A connection is used by one thread at a time. An insert that failed is over when the error is raised: nothing of it can
still arrive, so that who reads max(seq) afterwards reads the truth. Nobody else may open a client.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver import exceptions

from services.chassis.errors import ConfigurationError, DeadlineExceeded, Reason, SihlaiError, Unavailable
from services.chassis.log import get_logger

log = get_logger(__name__)

EMBEDDED_DATABASE = "sihlai"
LOCK_RETRY_SECONDS = 0.05
SETTLE_RETRY_SECONDS = 0.5
SETTINGS: Mapping[str, Any] = {
    # Set what is relied on: newer engines have other defaults.
    "async_insert": 0,
    # One insert is one block is one part: far above any block of ours.
    "max_insert_block_size": 1_048_576,
    "min_insert_block_size_rows": 1_048_576,
    "min_insert_block_size_bytes": 2**30,
    "optimize_use_projections": 1,
}
TIMEOUT_CODES = frozenset({159, 160})
"""TIMEOUT_EXCEEDED, TOO_SLOW."""
AWAY_CODES = frozenset({202, 203, 209, 210, 236, 241, 242, 243, 252, 279, 319, 425, 999})
"""Too many queries, network, memory, disk, read-only replica, too many parts: the same call may succeed later."""


class Connection(Protocol):
    """One client."""

    def read(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """A query's rows. `{name:Type}` in the text takes a parameter."""

    def insert(self, table: str, rows: pa.Table) -> None:
        """Insert the rows as one block; they are stored when this returns."""

    def command(self, sql: str) -> None:
        """Anything that answers nothing."""

    def close(self) -> None:
        """Give the client back."""


class Engine(Protocol):
    """What clients are opened at."""

    def connect(self) -> Connection:
        """A new connection to the service's database, which is made where it is missing."""

    def close(self) -> None:
        """After the last connection. An insert that waits for a lost engine gives up."""


def open_engine(url: str, *, lock_seconds: float, query_seconds: float, insert_seconds: float) -> Engine:
    """The engine at `chdb:///folder` or `http(s)://user:password@host:port/database`, or ConfigurationError."""
    parts = urlsplit(url)
    settings = {**SETTINGS, "max_execution_time": query_seconds}
    if parts.scheme == "chdb" and not parts.netloc and parts.path not in ("", "/"):
        return EmbeddedEngine(Path(parts.path), lock_seconds=lock_seconds, settings=settings)
    if parts.scheme in ("http", "https") and parts.hostname and parts.path.strip("/"):
        return ServerEngine(url, settings=settings, wait_seconds=insert_seconds)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    raise ConfigurationError([f"clickhouse is {shown}, but must be chdb:///folder or http://host:port/database"])


class EmbeddedEngine:
    """chDB in this process. One folder per process, and one process per folder."""

    def __init__(self, folder: Path, *, lock_seconds: float, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock", lock_seconds)
        # Inserts pass through a temporary file: on the data's own disk, and what a killed process left goes.
        temporary = folder / "temporary"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        # Keeps the engine alive for as long as this object is.
        self._keeper = self._open(deadline=time.monotonic() + lock_seconds)
        self._keeper.command(f"CREATE DATABASE IF NOT EXISTS {EMBEDDED_DATABASE}")

    def connect(self) -> Connection:
        """A handle of its own: chDB's client has one lock per handle."""
        client = clickhouse_connect.get_client(
            interface="chdb",
            path=str(self._folder / "engine"),
            database=EMBEDDED_DATABASE,
            settings=self._settings,
        )
        return ClientConnection(client)

    def close(self) -> None:
        """Let go of the folder."""
        self._keeper.close()
        self._lock.close()

    def _open(self, *, deadline: float) -> Any:
        while True:
            try:
                return clickhouse_connect.get_client(interface="chdb", path=str(self._folder / "engine"))
            except exceptions.ProgrammingError as error:
                # The kernel releases a killed process's locks one by one: ours may be free before the engine's.
                if time.monotonic() > deadline:
                    raise ConfigurationError([f"chDB cannot open {self._folder}: {error}"]) from error
                time.sleep(LOCK_RETRY_SECONDS)


class ServerEngine:
    """A ClickHouse server, over HTTP."""

    def __init__(self, url: str, *, settings: Mapping[str, Any], wait_seconds: float) -> None:
        parts = urlsplit(url)
        self._database = parts.path.strip("/")
        self._closed = threading.Event()
        self._settings = dict(settings)
        self._arguments: dict[str, Any] = {
            "host": parts.hostname,
            "port": parts.port or (8443 if parts.scheme == "https" else 8123),
            "secure": parts.scheme == "https",
            "username": parts.username or "default",
            "password": parts.password or "",
            "send_receive_timeout": wait_seconds,
            "autogenerate_session_id": False,
        }
        try:
            client = clickhouse_connect.get_client(**self._arguments)
            client.command(f"CREATE DATABASE IF NOT EXISTS `{self._database}`")
            client.close()
        except exceptions.Error as error:
            shown = f"{parts.scheme}://{parts.hostname}:{self._arguments['port']}"
            raise ConfigurationError([f"ClickHouse at {shown} cannot be used: {error}"]) from error

    def connect(self) -> Connection:
        """A client of its own: queries of one session must not overlap."""
        client = clickhouse_connect.get_client(**self._arguments, database=self._database, settings=self._settings)
        return ClientConnection(client, settle=self._settled)

    def close(self) -> None:
        """Let inserts that wait for the server give up."""
        self._closed.set()

    def _settled(self, client: Any, query_id: str) -> None:
        """Return when the insert cannot take effect any more. With the server away that is when it is back."""
        while not self._closed.is_set():
            try:
                client.command("KILL QUERY WHERE query_id = {query_id:String} SYNC", parameters={"query_id": query_id})
            except exceptions.Error:
                self._closed.wait(SETTLE_RETRY_SECONDS)
            else:
                return


def _nothing_to_settle(_client: Any, _query_id: str) -> None:
    """An embedded insert that raised is over."""


@dataclass(frozen=True)
class ClientConnection:
    """A clickhouse-connect client of either kind: the same calls from here on."""

    client: Any
    settle: Callable[[Any, str], None] = _nothing_to_settle

    def read(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Rows as an Arrow table. Settings would cost chDB five more queries a call, so none are given here."""
        try:
            data = self.client.raw_query(sql, parameters=dict(parameters), fmt="ArrowStream")
        except exceptions.Error as error:
            translated = _translated(error)
            if translated is None:
                raise
            raise translated from error
        return pa.ipc.open_stream(data).read_all()

    def insert(self, table: str, rows: pa.Table) -> None:
        """One Arrow block."""
        query_id = str(uuid.uuid4())
        try:
            self.client.insert_arrow(table, rows.combine_chunks(), settings={"query_id": query_id})
        except (exceptions.Error, OSError) as error:
            log.error("insert_failed", table=table, rows=rows.num_rows, error=str(error)[:1000])
            self.settle(self.client, query_id)
            raise _unavailable() from error

    def command(self, sql: str) -> None:
        """Run it; used by migrations."""
        self.client.command(sql)

    def close(self) -> None:
        """Close the client."""
        self.client.close()


def _translated(error: exceptions.Error) -> SihlaiError | None:
    if error.code in TIMEOUT_CODES:
        return DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "the query took longer than the server allows: ask for less")
    if error.code in AWAY_CODES or isinstance(error, exceptions.OperationalError):
        log.warning("clickhouse_unavailable", error=str(error)[:1000])
        return _unavailable()
    return None


def _unavailable() -> Unavailable:
    return Unavailable(Reason.METRICS_STORE_UNAVAILABLE, "ClickHouse does not answer or does not take rows now")


def _locked(path: Path, wait_seconds: float) -> IO[str]:
    """The file, locked until it is closed or the process ends, however it ends."""
    file = path.open("a+")
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                problem = f"{path.parent} is in use by another process (id {holder}): stop it, or give another folder"
                raise ConfigurationError([problem]) from None
            time.sleep(LOCK_RETRY_SECONDS)
        else:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return file
