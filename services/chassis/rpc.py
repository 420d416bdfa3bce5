"""gRPC servers and channels as each process runs them.

Server: health, reflection, limits, keepalive, an orderly stop, and around each call what `interceptor` does. Channel:
lazy, with keepalive, retries and deadlines.

Nothing here knows a service of ours, and nothing else turns errors into statuses. A traceback never leaves the process.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from sihlai.installation.v1.installation_service_pb2_grpc import add_InstallationServiceServicer_to_server

from services.chassis import log as logs
from services.chassis.auth.carrying import Carrying, Token
from services.chassis.auth.guard import Guard
from services.chassis.call_limits import CallCounts, call_limits
from services.chassis.config import ServerConfig
from services.chassis.connection import (
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    MESSAGE_BYTES_MAX,
    RETRY_ATTEMPTS_MAX,
    channel_options,
    milliseconds,
)
from services.chassis.errors import ConfigurationError, Reason, Unavailable
from services.chassis.files import replace_file
from services.chassis.installation import SERVICE, InstallationServicer
from services.chassis.interceptor import REQUEST_ID_KEY, TRACE_KEY, CallInterceptor, end_stream
from services.chassis.status import error_from_rpc
from services.chassis.tls import ClientTls, server_tls

__all__ = ["CallInterceptor", "Server", "channel", "end_stream", "error_from_rpc", "run_until_signal", "until_stopping"]

log = logs.get_logger(__name__)

DEADLINE_SECONDS = 30.0
"""How long a unary call may take when its caller says nothing."""
CLIENT_PING_SECONDS_MIN = 5.0
"""Clients that ping more often than this are cut off by the server."""
PENDING_CALLS_BESIDES = 1_000
"""Calls that may wait to be taken beside those that one service allows at once: who is too many is told so."""
PENDING_SECONDS_MAX = 300
"""How long a call may wait to be taken, if its own deadline does not end it before."""

Item = TypeVar("Item")


class Server:
    """One process's gRPC server. Add services, then `start`, then `stop`; it is not used again.

    `addresses` are those of other services, by name, as clients reach them: it tells who asks.

    `stopping` is set when a stop begins: endless streams and long waits must end by it, or they hold the stop up for
    all of `drain_seconds` before they are cancelled.
    """

    def __init__(
        self,
        config: ServerConfig,
        guard: Guard,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._for_runners: set[str] = set()
        calls = CallInterceptor(
            guard,
            CallCounts(call_limits(config), for_runners=self._for_runners),
            request_bytes_max=config.request_bytes_max,
            for_runners=self._for_runners,
        )
        self._interceptors = [calls, *interceptors]
        installation = InstallationServicer(addresses or {})
        self._services: dict[str, Callable[[grpc.aio.Server], None]] = {
            SERVICE: lambda server: add_InstallationServiceServicer_to_server(installation, server)
        }
        self._server: grpc.aio.Server | None = None
        self.stopping = asyncio.Event()
        self._health = _Health(self.stopping)
        self.address = ""

    def add(
        self, service_name: str, add_to_server: Callable[[grpc.aio.Server], None], *, for_runners: bool = False
    ) -> None:
        """Serve `service_name` (`sihlai.scheduler.v1.JobService`), added by the generated `add_…_to_server`.

        Such as `server.add(NAME, lambda server: add_JobServiceServicer_to_server(servicer, server))`. `for_runners`:
        nobody else calls it, so `user_calls_max` is not for it.
        """
        assert self._server is None, "services are added before the start"
        if for_runners:
            self._for_runners.add(service_name)
        self._services[service_name] = add_to_server

    async def start(self) -> str:
        """Listen, report SERVING, write the address file; return the bound address."""
        config = self._config
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=_server_options(config),
        )
        found_by_name = cast("grpc.aio.Server", _FoundByName(server))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, found_by_name)
        for add_to_server in self._services.values():
            add_to_server(found_by_name)
        served = (*self._services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*served, reflection.SERVICE_NAME), server)  # looks what kind it is
        self.address = _bind(server, config)
        await server.start()
        self._server = server
        for name in served:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if config.address_file is not None:
            write_address_file(config.address_file, self.address)
        log.info("server_started", address=self.address, services=list(self._services))
        return self.address

    async def stop(self) -> None:
        """Report NOT_SERVING, refuse new calls, let running ones end within `drain_seconds`, cancel what is left."""
        assert self._server is not None, "a server is stopped after its start"
        await self._health.enter_graceful_shutdown()
        self.stopping.set()
        await self._server.stop(self._config.drain_seconds)
        if self._config.address_file is not None:
            self._config.address_file.unlink(missing_ok=True)
        log.info("server_stopped", address=self.address)


async def run_until_signal(server: Server, *, background: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Start the server, wait for SIGTERM or SIGINT, stop in order. A second signal ends the process at once.

    A background task that ends with an error ends the wait too: the server stops, and the error is raised.
    """
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        log.info("signal_received", signal=number.name)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await server.start()
    wait = asyncio.create_task(signalled.wait())
    tasks = set(background)
    try:
        running: set[asyncio.Task[Any]] = {wait, *tasks}
        while wait in running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        wait.cancel()
        await server.stop()


async def until_stopping(items: AsyncIterator[Item], stopping: asyncio.Event) -> AsyncIterator[Item]:
    """`items` (never None) until the server stops, then Unavailable: what an endless stream is passed through."""
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
    following: asyncio.Future[Any] = asyncio.ensure_future(anext(items, None))
    try:
        while True:
            await asyncio.wait({following, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise server_stopping()
            item = following.result()
            if item is None:
                return
            yield item
            following = asyncio.ensure_future(anext(items, None))
    finally:
        following.cancel()
        stop.cancel()
        await asyncio.wait({following, stop})


def server_stopping() -> Unavailable:
    """What a call gets that the server ends because it stops itself."""
    return Unavailable(Reason.SERVER_STOPPING, "the server is stopping: send the call again")


def channel(
    address: str,
    *,
    token: Token | None = None,
    tls: ClientTls | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
    keepalive_timeout_seconds: float = KEEPALIVE_TIMEOUT_SECONDS,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    retry_attempts_max: int = RETRY_ATTEMPTS_MAX,
) -> grpc.aio.Channel:
    """A channel to `address`. It connects with the first call, and again whenever the server comes back.

    Unary calls without a timeout get `deadline_seconds`; streams have none. Each call carries the `token` of its
    moment. With `tls` the server must show a certificate that it trusts.
    """
    options = channel_options(
        keepalive_seconds=keepalive_seconds,
        keepalive_timeout_seconds=keepalive_timeout_seconds,
        message_bytes_max=message_bytes_max,
        retry_attempts_max=retry_attempts_max,
    )
    interceptors = [DefaultDeadline(deadline_seconds)]
    if tls is not None:
        opened = grpc.aio.secure_channel(address, tls.credentials(), options=options, interceptors=interceptors)
    else:
        opened = grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    return opened if token is None else Carrying(opened, token)


class DefaultDeadline(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives each unary call a deadline, where it has none, and passes the request's and the trace's id on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        details = client_call_details
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in _ids_to_pass_on().items():
            if metadata.get(key) is None:
                metadata.add(key, value)
        timeout = details.timeout if details.timeout is not None else self._seconds
        passed = grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(passed, request)


def write_address_file(path: Path, address: str) -> None:
    """Atomic: a reader finds the whole address or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{address}\n".encode(), synced=False)


class _FoundByName:
    """The part of a server that generated code adds a service to: a call's method is looked up by its name.

    Methods that are registered too are waited for one by one: each call, whatever it asks for, would cost some steps
    for every method that the server has, which is more than all else that gRPC does for it.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        """Nothing: the same handlers were added by name."""


class _Health(HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """grpc's own, whose Watch also ends when the server stops: else one watcher holds up every drain."""

    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__()
        self._stopping = stopping

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 — the RPC's name
        """Each change of a service's health, until the server stops."""
        watch = asyncio.create_task(super().Watch(request, context))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({watch, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            stop.cancel()
            await asyncio.wait({watch, stop})
        if self._stopping.is_set():
            raise server_stopping()
        await watch


def _ids_to_pass_on() -> dict[str, str]:
    bound = logs.get_contextvars()
    names = {REQUEST_ID_KEY: "request_id", TRACE_KEY: "trace_parent"}
    return {key: str(bound[name]) for key, name in names.items() if name in bound}


def _bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    listen_address, tls = config.listen_address, server_tls(config)
    try:
        if tls is not None:
            port = server.add_secure_port(listen_address, tls.credentials())
        else:
            port = server.add_insecure_port(listen_address)
    except RuntimeError as error:
        raise ConfigurationError([f"listen_address {listen_address} cannot be bound: is it in use?"]) from error
    if listen_address.startswith("unix:"):
        return listen_address
    return f"{listen_address.rpartition(':')[0]}:{port}"


def _server_options(config: ServerConfig) -> list[tuple[str, Any]]:
    pending = config.concurrent_calls_max + PENDING_CALLS_BESIDES
    return [
        ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a silent sharing
        ("grpc.max_send_message_length", config.message_bytes_max),
        ("grpc.max_receive_message_length", config.message_bytes_max),
        # Between the two gRPC refuses at random; its defaults are less than a token with many roles takes.
        ("grpc.max_metadata_size", config.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", config.metadata_bytes_max),
        ("grpc.max_concurrent_streams", config.concurrent_streams_max),
        # gRPC cancels calls at random where more than 1,000 wait to be taken: thousands may come back at once.
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        # And those that wait for more than 30 s: a loaded machine takes that long for thousands.
        ("grpc.server_max_unrequested_time_in_server", PENDING_SECONDS_MAX),
        ("grpc.keepalive_time_ms", milliseconds(config.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", milliseconds(config.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds(CLIENT_PING_SECONDS_MIN)),
    ]
