"""What all tests share: their order, logging that no test leaves changed, an S3 server and a place in it for each."""

from __future__ import annotations

import logging
import secrets
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.azure_server import PROGRAM, AzureServer
from tests.object_server import Bucket, ObjectServer

LONG = ("tests/system/", "tests/cli/", "tests/runner/trainer/", "tests/chaos/", "tests/metrics/")
"""What is begun first: no worker is then idle while the other one has a long file left."""
TOGETHER = {
    "tests/cli/conftest.py::machine": ("tests/cli/test_examples.py", "tests/cli/test_terminals.py"),
    "tests/system/conftest.py::stack": (
        "tests/system/test_generated_clients.py",
        "tests/system/test_killed_processes.py",
        "tests/system/test_main_job.py",
        "tests/system/test_stolen_tokens.py",
    ),
}
"""Files that share what takes longest to set up; one worker runs them, or each would set it up."""
GROUPS = {file: shared for shared, files in TOGETHER.items() for file in files}

# Whatever an example costs, on a machine that others use too it may stand still for as long as it likes.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


class BySetUp(LoadFileScheduling):
    """A worker gets all tests of a file, and of those that share something with it."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return GROUPS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BySetUp:
    return BySetUp(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> None:
    """Where the tests run in the background their shell has SIGINT ignored, and every child would ignore it too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that configures the log of this process leaves it to the next one as it found it."""
    configuration = structlog.get_config()
    level = logging.getLogger().level
    yield
    structlog.configure(**configuration)
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """One server for all tests of this process; it starts with the first one that needs it."""
    server = ObjectServer(tmp_path_factory.mktemp("object-server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """One server for all tests of this process; where it is not installed they skip."""
    if not AzureServer.is_installed():
        pytest.skip(f"{PROGRAM} is not installed (npm install -g azurite): Azure's storage is not met")
    server = AzureServer(tmp_path_factory.mktemp("azure-server"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def bucket(object_server: ObjectServer) -> Bucket:
    """A prefix that no other test uses."""
    return Bucket(server=object_server, prefix=f"teams/{secrets.token_hex(6)}")
