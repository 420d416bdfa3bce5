"""The promises of the scheduler, whatever comes in whatever order; `make model` takes 2,000 examples."""

from __future__ import annotations

import shutil
import uuid

from tests.scheduler.machine.machine import run_machine
from tests.scheduler.postgresql import run_on_postgresql


def test_promises_hold_whatever_comes_in_whatever_order(sqlite_template, tmp_path):
    def new_database() -> str:
        path = tmp_path / f"{uuid.uuid4().hex}.sqlite"
        shutil.copyfile(sqlite_template, path)
        return f"sqlite:///{path}"

    run_machine(new_database, examples=6, steps=25)


def test_promises_hold_on_postgresql_too(postgresql_server):
    def new_database() -> str:
        name = f"machine_{uuid.uuid4().hex}"
        run_on_postgresql(postgresql_server, f"CREATE DATABASE {name} TEMPLATE template")
        return postgresql_server.replace("/postgres?", f"/{name}?")

    run_machine(new_database, examples=2, steps=15)
