"""The engine: embedded (chDB) here, or a server over HTTP (`server`). The only place that knows which of the two it is.

Nobody else may open a client.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

import clickhouse_connect
from clickhouse_connect.driver import exceptions

from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError
from services.chassis.tls import require_encrypted
from services.metrics.clickhouse.connection import Connection, EmbeddedConnection
from services.metrics.clickhouse.disk import Disk, DiskLimits
from services.metrics.clickhouse.ownership import LEASE, LeaseLimits, Ownership, SoleOwnership
from services.metrics.clickhouse.repair import DATABASE, Repairs
from services.metrics.clickhouse.server import ServerEngine
from services.metrics.clickhouse.upkeep import Upkeep

LOCK_RETRY_SECONDS = 0.05
NO_DISK_LIMITS = DiskLimits()
SETTINGS: Mapping[str, Any] = {
    # Set what is relied on: newer engines have other defaults.
    "async_insert": 0,
    # One insert is one block is one part: far above any block of ours.
    "max_insert_block_size": 1_048_576,
    "min_insert_block_size_rows": 1_048_576,
    "min_insert_block_size_bytes": 2**30,
    "optimize_use_projections": 1,
}


class Engine(Protocol):
    """What clients are opened at."""

    is_shared: bool
    """Other processes may write there too."""

    def connect(self, *, limited: bool = False) -> Connection:
        """A new connection to the service's database. `limited`: with what memory and threads a query may have."""

    def ownership(self) -> Ownership:
        """How this process and others agree on who stores what; once."""

    async def upkeep(self) -> None:
        """See to what is stored, until cancelled."""

    def close(self) -> None:
        """After the last connection. An insert that waits for a lost engine gives up."""


def open_engine(
    url: str,
    *,
    lock_seconds: float,
    query_seconds: float,
    insert_seconds: float,
    query_memory_bytes: int = 0,
    query_threads: int = 0,
    lease: LeaseLimits = LEASE,
    disk: DiskLimits = NO_DISK_LIMITS,
) -> Engine:
    """The engine at `chdb:///folder` or `http(s)://user:password@host:port/database`, or ConfigurationError.

    A folder is quoted as in any url. 0 bytes or threads of a query: as many as the engine likes.
    """
    parts = urlsplit(url)
    settings = {
        **SETTINGS,
        "max_execution_time": query_seconds,
        "min_free_disk_bytes_to_perform_insert": disk.insert_bytes_min,
    }
    limits = {"max_memory_usage": query_memory_bytes, "max_threads": query_threads}
    if parts.scheme == "chdb" and not parts.netloc and parts.path not in ("", "/"):
        folder = Path(os.fsdecode(unquote_to_bytes(parts.path)))
        if "?" in str(folder):  # the engine would cut it off there, and its files would lie in another folder
            raise ConfigurationError([f"clickhouse is the folder {folder}, but the engine takes none with '?' in it"])
        return EmbeddedEngine(
            folder, lock_seconds=lock_seconds, settings=settings, limits=limits, disk=Disk(folder=folder, limits=disk)
        )
    if parts.scheme in ("http", "https") and parts.hostname and parts.path.strip("/"):
        return ServerEngine(url, settings=settings, limits=limits, insert_seconds=insert_seconds, lease=lease)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    raise ConfigurationError([f"clickhouse is {shown}, but must be chdb:///folder or http://host:port/database"])


def require_encrypted_engine(config: ServerConfig, url: str) -> None:
    """ConfigurationError where ClickHouse lies on another machine and would be called without TLS (see `tls`)."""
    parts = urlsplit(url)
    hosts = [parts.hostname or ""] if parts.scheme == "http" else []
    require_encrypted(config, "clickhouse", hosts, encrypted=False, way="begin it with https://")


class EmbeddedEngine:
    """chDB in this process. One folder per process, and one process per folder."""

    is_shared = False

    def __init__(
        self,
        folder: Path,
        *,
        lock_seconds: float,
        settings: Mapping[str, Any],
        limits: Mapping[str, Any],
        disk: Disk,
    ) -> None:
        self._settings = dict(settings)
        self._limits = dict(limits)
        self._folder = folder
        self._disk = disk
        self._repairs = Repairs()
        self._caretaker: Connection | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock", lock_seconds)
        # Inserts pass through a temporary file: on the data's own disk, and what a killed process left goes.
        temporary = folder / "temporary"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        # Keeps the engine alive for as long as this object is.
        self._keeper = self._open(deadline=time.monotonic() + lock_seconds)
        self._keeper.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")

    def connect(self, *, limited: bool = False) -> EmbeddedConnection:
        """A handle of its own: chDB's client has one lock per handle."""
        client = clickhouse_connect.get_client(
            interface="chdb",
            path=str(self._folder / "engine"),
            database=DATABASE,
            settings={**self._settings, **(self._limits if limited else {})},
        )
        return EmbeddedConnection(client, self._disk, self._repairs)

    def ownership(self) -> Ownership:
        """One process for each folder: nobody else stores anything."""
        return SoleOwnership()

    async def upkeep(self) -> None:
        """Watch the disk, and what was written when it was full."""
        self._caretaker = self.connect()
        await Upkeep(self._caretaker, self._disk, self._repairs).run()

    def close(self) -> None:
        """Let go of the folder."""
        if self._caretaker is not None:
            self._caretaker.close()
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
