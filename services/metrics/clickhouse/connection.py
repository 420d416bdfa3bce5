"""Connections to ClickHouse: the same calls whether the engine is embedded or a server.

A connection is used by one thread at a time. An insert that failed is over when the error is raised: nothing of it can
still arrive, so that who reads max(seq) afterwards reads the truth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
from clickhouse_connect.driver import exceptions

from services.chassis.errors import DeadlineExceeded, Internal, Reason, ResourceExhausted, SihlaiError, Unavailable
from services.chassis.log import get_logger
from services.metrics.clickhouse.disk import Disk
from services.metrics.clickhouse.repair import Repairs, write_failures

log = get_logger(__name__)

TIMEOUT_CODES = frozenset({159, 160})
"""TIMEOUT_EXCEEDED, TOO_SLOW."""
AWAY_CODES = frozenset({202, 203, 209, 210, 236, 241, 242, 243, 252, 279, 319, 425, 999})
"""Too many queries, network, memory, disk, read-only replica, too many parts: the same call may succeed later."""
NOT_INSERTED_CODES = AWAY_CODES | TIMEOUT_CODES | {60, 394, 395}
"""The same for an insert, which may be killed, or come after its deadline, beside that."""
BROKEN_CODES = frozenset({32, 33, 40, 228, 246, 271})
"""Read after the end, cannot read all, checksums, sizes, corrupted data, cannot decompress: a part of a table is broken
on the disk."""
NOT_ENOUGH_SPACE = 243
UNKNOWN_TABLE = 60
"""While a table is attached anew; ours are there otherwise, or the migrations fail."""
WITHOUT_PROJECTIONS = "optimize_use_projections = 0"
OWN_MEMORY = "Query memory limit exceeded"
"""The query's own limit, not that of the whole engine: it would meet it again."""
CLEARING_QUERIES_MAX = 5
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What an Arrow stream ends with. Without it an answer that was cut off between two batches would look complete."""


class Connection(Protocol):
    """One client."""

    def read(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """A query's rows. `{name:Type}` in the text takes a parameter."""

    def insert(self, table: str, rows: pa.Table, *, deadline_unix_us: int | None = None) -> None:
        """Insert the rows as one block; they are stored when this returns, and never will be when it raises.

        Later than the deadline, by the engine's own clock, the engine does not take them. Raises Unavailable where the
        same may succeed later, else Internal: ClickHouse does not take these rows.
        """

    def command(self, sql: str) -> None:
        """Anything that answers nothing."""

    def require_room(self) -> None:
        """Raise Unavailable where the engine's disk has no room for what is to be written."""

    def clear(self) -> None:
        """Make the connection fit for the next query after one that was killed."""

    def close(self) -> None:
        """Give the client back."""


@dataclass(frozen=True)
class ClientConnection:
    """What a clickhouse-connect client of either kind does in the same way."""

    client: Any

    def read(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Rows as an Arrow table. Settings would cost chDB five more queries a call, so none are given here."""
        try:
            data = self._answer(sql, parameters)
        except exceptions.Error as error:
            translated = _translated(error)
            if translated is None:
                raise
            raise translated from error
        if not data.endswith(STREAM_END):
            log.warning("clickhouse_answer_cut", answer_bytes=len(data))
            raise unavailable()
        return pa.ipc.open_stream(data).read_all()

    def _answer(self, sql: str, parameters: Mapping[str, Any]) -> bytes:
        """Without the projections where one cannot be read, and after a repair where a part cannot."""
        try:
            return self._raw(sql, parameters)
        except exceptions.Error as error:
            if error.code not in BROKEN_CODES:
                raise
            broken = str(error)
        log.error("part_broken", error=broken[:1000])
        try:
            return self._raw(sql + (", " if " SETTINGS " in sql else " SETTINGS ") + WITHOUT_PROJECTIONS, parameters)
        except exceptions.Error as error:
            if error.code not in BROKEN_CODES:
                raise
        self.repair(broken)
        return self._raw(sql, parameters)

    def repair(self, broken: str) -> None:
        """A server's tables are repaired by who runs it."""

    def _raw(self, sql: str, parameters: Mapping[str, Any]) -> bytes:
        try:
            data: bytes = self.client.raw_query(sql, parameters=dict(parameters), fmt="ArrowStream")
        except exceptions.Error:
            self.clear()
            raise
        return data

    def command(self, sql: str) -> None:
        """Run it; used by migrations."""
        self.client.command(sql)

    def require_room(self) -> None:
        """A server sees to its disk itself."""

    def clear(self) -> None:
        """A server's connection is fit for the next query whatever became of the one before."""

    def close(self) -> None:
        """Close the client."""
        self.client.close()


@dataclass(frozen=True)
class EmbeddedConnection(ClientConnection):
    """A connection to chDB in this process."""

    disk: Disk
    repairs: Repairs
    failures: list[int] = field(default_factory=lambda: [0])
    """How many writes of the engine had failed when something was inserted here last; one number."""

    def read(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Nothing while it is not known whether all that was inserted can be read."""
        if self.repairs.in_doubt:
            raise unavailable()
        return super().read(sql, parameters)

    def insert(self, table: str, rows: pa.Table, *, deadline_unix_us: int | None = None) -> None:
        """One Arrow block. An embedded insert that raised is over, and none is ever late."""
        assert deadline_unix_us is None, "one process alone writes to an embedded engine"
        with self.repairs.alone():
            self.disk.require_room()
            was_low = self.disk.is_low
            try:
                self.client.insert_arrow(table, rows.combine_chunks())
            except (exceptions.Error, OSError) as error:
                raise insert_error(error, table, rows) from error
            finally:
                if was_low or self.disk.is_low:
                    self._require_whole(table)

    def require_room(self) -> None:
        """Of the disk under the engine's folder."""
        self.disk.require_room()

    def ask(self, sql: str, **parameters: Any) -> list[Mapping[str, Any]]:
        """The rows of a query about the engine."""
        data = self._raw(sql, parameters)
        rows: list[Mapping[str, Any]] = pa.ipc.open_stream(data).read_all().to_pylist()
        return rows

    def repair(self, broken: str) -> None:
        """Attach the table anew that the error tells of."""
        try:
            self.repairs.repair_named(self, broken)
        except exceptions.Error as error:  # upkeep goes on with it
            log.error("table_not_attached", error=str(error)[:300])

    def _require_whole(self, table: str) -> None:
        """Raise where the disk had no room for all of what was inserted, which the engine does not say."""
        try:
            failures = write_failures(self)
            whole = failures == self.failures[0] or self.repairs.is_whole(self, table)
        except exceptions.Error as error:
            log.error("insert_in_doubt", table=table, error=str(error)[:300])
            raise unavailable() from error
        if not whole:
            log.error("insert_broken", table=table)
            raise unavailable()
        self.failures[0] = failures

    def clear(self) -> None:
        """chDB answers the first query after one that failed while it ran, or was killed, with no rows and no error: an
        opening would take its writer for a new one. So one is asked in vain."""
        for _ in range(CLEARING_QUERIES_MAX):
            with contextlib.suppress(exceptions.Error):
                if pa.ipc.open_stream(self.client.raw_query("SELECT 1", fmt="ArrowStream")).read_all().num_rows:
                    return
        log.error("connection_not_cleared")


def insert_error(error: Exception, table: str, rows: pa.Table) -> SihlaiError:
    """What an insert raises, and what the log says of it."""
    code = getattr(error, "code", None)
    log.error("insert_failed", table=table, rows=rows.num_rows, code=code, error=str(error)[:1000])
    if code == NOT_ENOUGH_SPACE:
        message = "ClickHouse's disk has less free than an insert needs (disk_free_bytes_min): make room"
        return Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message, {"what": "disk_free_bytes_min"})
    if code is None or code in NOT_INSERTED_CODES:
        return unavailable()
    return Internal(Reason.INTERNAL, f"ClickHouse does not take these rows (code {code})", {"code": str(code)})


def unavailable() -> Unavailable:
    """ClickHouse is away, or says that it cannot now."""
    return Unavailable(Reason.METRICS_STORE_UNAVAILABLE, "ClickHouse does not answer or does not take rows now")


def _translated(error: exceptions.Error) -> SihlaiError | None:
    if error.code in TIMEOUT_CODES:
        return DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "the query took longer than the server allows: ask for less")
    if OWN_MEMORY in str(error):
        message = "the query needs more memory than query_memory_bytes_max allows: ask for less"
        return ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": "query_memory_bytes_max"})
    if error.code in AWAY_CODES | BROKEN_CODES | {UNKNOWN_TABLE} or isinstance(error, exceptions.OperationalError):
        log.warning("clickhouse_unavailable", error=str(error)[:1000])
        return unavailable()
    return None
