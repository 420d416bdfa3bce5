"""The metrics service on a real embedded engine some of whose inserts fail: `python -m tests.metrics.failing_service`.

It takes the service's own flags, and before them the share of inserts that fail, and a seed. A failed insert may have
taken effect: who is told that it failed must ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from services.chassis import config as configuration
from services.chassis import log as logs
from services.metrics.__main__ import PROG, serve
from services.metrics.clickhouse.connection import Connection, unavailable
from services.metrics.clickhouse.engine import Engine, open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.config import PREFIX, Config

ROWS = ("points", "logs")


@dataclass(frozen=True)
class FailingConnection:
    """Inserts of rows fail by chance, before or after they took effect."""

    connection: Connection
    chance: random.Random
    share: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def insert(self, table: str, rows: pa.Table, *, deadline_unix_us: int | None = None) -> None:
        fails = table in ROWS and self.chance.random() < self.share
        if not fails or self.chance.random() < 0.5:
            self.connection.insert(table, rows, deadline_unix_us=deadline_unix_us)
        if fails:
            sys.stderr.write("insert was made to fail\n")
            raise unavailable()


@dataclass(frozen=True)
class FailingEngine:
    """An engine whose connections fail."""

    engine: Engine
    chance: random.Random
    share: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def connect(self, **options: Any) -> FailingConnection:
        return FailingConnection(self.engine.connect(**options), self.chance, self.share)


def main() -> None:
    share, seed, *argv = sys.argv[1:]
    config = configuration.load(Config, argv=argv, environ=os.environ, prog=PROG, prefix=PREFIX)
    logs.configure("metrics", format=config.log_format, level=config.log_level)
    engine = open_engine(config.clickhouse, lock_seconds=20, query_seconds=30, insert_seconds=60)
    with contextlib.closing(engine.connect()) as connection:
        migrate(connection, read_migrations())
    asyncio.run(serve(config, FailingEngine(engine, random.Random(int(seed)), float(share))))
    engine.close()


if __name__ == "__main__":
    main()
