"""The time that all who use a database go by: PostgreSQL's own, and with SQLite the machine's, which is the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct
from sqlalchemy import BigInteger, Connection, literal_column, select
from sqlalchemy.engine import URL

Clock: TypeAlias = Callable[[Connection], int]
"""Microseconds since 1970."""

SERVER_TIME_US = literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint", BigInteger).label("now_us")
"""In a statement of PostgreSQL."""


class Fence(Struct, frozen=True, kw_only=True):
    """How a transaction begins: with the last revision, and at this time by the database's clock.

    Where a backup was put back, the jobs up to `restored_sequence` may have had attempts up to `restored_epoch`.
    """

    revision: int
    now_us: int
    restored_sequence: int = 0
    restored_epoch: int = 0

    def epoch_floor(self, sequence: int) -> int:
        """Numbers up to this may have been given to attempts of the job."""
        return self.restored_epoch if sequence <= self.restored_sequence else 0


def clock_of(url: URL) -> Clock:
    """The clock of a database."""
    return _machine_clock if url.get_backend_name() == "sqlite" else _postgresql_clock


def machine_time_us() -> int:
    """The same without a database."""
    return time.time_ns() // 1000


def _machine_clock(_connection: Connection) -> int:
    return machine_time_us()


def _postgresql_clock(connection: Connection) -> int:
    return int(connection.execute(select(SERVER_TIME_US)).scalar_one())
