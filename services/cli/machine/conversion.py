"""The conversion service as a command finds it: the one that runs, or one of its own for as long as the command lasts.

A command's own service is a child on a leash, on a port of its own, with its addresses and its log in a temporary
folder; indices, and what an interrupted command had done, stay in the data folder. It knows no bus and tells nobody of
itself. This is no import of the service: what is known of it is its command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.endpoints import Endpoints, NoEndpointError
from services.chassis.errors import Unavailable
from services.cli.error import CommandError
from services.cli.machine.child import Child, Definition
from services.cli.machine.folder import DataFolder
from services.cli.machine.probe import is_healthy
from services.cli.machine.process import CLIENT_VARIABLES, FREE_PORT, PYTHON
from services.client.face import AsyncClient

NAME = "conversion"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 5.0
"""How long the command's own service may take to end."""
DRAIN_SECONDS = 0.5
"""How long its calls may go on: the command, its only caller, has left."""
DEATH_SECONDS = 0.5
"""A connection breaks a moment before the process that died counts as dead."""
POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class OwnService:
    """What a command's own service may read and write.

    `closed`: where it writes nothing at a caller's wish. `store`: where its indices stay, what it had done when it was
    interrupted, and results that go nowhere else; None forgets them with the command.
    """

    environ: Mapping[str, str]
    allowed_roots: Sequence[Path] = ()
    allowed_destination_roots: Sequence[Path] = ()
    allowed_endpoint_hosts: Sequence[str] = ()
    closed: Path | None = None
    store: Path | None = None


def runs(endpoints: Endpoints) -> bool:
    """Whether there is a service to talk to. May take a second.

    An address that somebody gave is taken at its word, so that a mistake in it is seen; the one in the data folder is
    asked, because it outlives an `up` that was killed.
    """
    try:
        address = endpoints.address(NAME)
    except NoEndpointError:
        return False
    return (
        endpoints.up is None
        or NAME in endpoints.given
        or address is None
        or is_healthy(address, endpoints.tls(address))
    )


@contextlib.asynccontextmanager
async def own_service(config: OwnService) -> AsyncIterator[AsyncClient]:
    """Start a service, and end it however the block ends. Raises CommandError where it does not start, or dies."""
    with tempfile.TemporaryDirectory(prefix="sihlai-dataset-", ignore_cleanup_errors=True) as path, _ends_on_sigterm():
        folder = DataFolder(root=Path(path))
        # Imported here: an installation of the client alone has no service to start, and nothing to sign with.
        from services.cli.machine.issuing import admin_token

        token = admin_token(folder)
        child = Child(_definition(config, folder))
        child.start()
        try:
            address = await _address(child, folder)
            async with AsyncClient(Endpoints(given={NAME: address}, said_token=token)) as client:
                try:
                    yield client
                except Unavailable as error:
                    if await asyncio.to_thread(child.wait, time.monotonic() + DEATH_SECONDS):
                        raise _died(child) from error
                    raise
        finally:
            try:
                child.signal(signal.SIGTERM)
                await asyncio.to_thread(child.wait, time.monotonic() + STOP_SECONDS_MAX)
            finally:
                child.end()


def _definition(config: OwnService, folder: DataFolder) -> Definition:
    address_file = folder.address_file(NAME)
    store = config.store or folder.of(NAME)
    words = (
        *("--listen-address", FREE_PORT),
        *("--address-file", address_file),
        *("--store-uri", store.resolve().as_uri()),
        "--nats-url=",  # of the environment's bus it must not speak
        "--scheduler-address=",
        *("--token-public-keys", folder.token_public_keys),
        *("--drain-seconds", DRAIN_SECONDS),
        *("--log-level", "warning"),
        *(word for root in config.allowed_roots for word in ("--allowed-roots", root)),
        *(word for root in config.allowed_destination_roots for word in ("--allowed-destination-roots", root)),
        *(("--closed-destination-roots", config.closed.resolve()) if config.closed is not None else ()),
        *(word for host in config.allowed_endpoint_hosts for word in ("--allowed-endpoint-hosts", host)),
    )
    return Definition(
        name=NAME,
        command=[*PYTHON, "-m", "services.conversion", *map(str, words)],
        environ={name: value for name, value in config.environ.items() if name not in CLIENT_VARIABLES},
        log=folder.log(NAME),
        address="",  # its file tells it
        serves=lambda process_id: address_file.exists(),
        prepare=lambda: None,
        stop_order=0,
        stop_seconds=STOP_SECONDS_MAX,
    )


async def _address(child: Child, folder: DataFolder) -> str:
    """Wait until the service serves; return its address."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not child.serves:
        if not child.running:
            raise _died(child)
        if time.monotonic() > deadline:
            raise CommandError(f"the conversion process does not serve after {START_SECONDS_MAX:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
    return folder.address_file(NAME).read_text().strip()


def _died(child: Child) -> CommandError:
    code = child.exit_code or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    last_line = ": ".join(["", *child.log_tail(1)])
    return CommandError(f"the conversion process of this command ended {how}{last_line}")


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that nothing is left in the temporary folder."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a command is a task"
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
