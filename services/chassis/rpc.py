"""gRPC servers and channels as each process runs them.

Server: health, reflection, limits, keepalive, an orderly stop, and one interceptor that authenticates each call, binds
its ids to the log and turns our errors into statuses. Channel: lazy, with keepalive, retries and deadlines.

Nothing here knows a service of ours, and nothing else turns errors into statuses. A traceback never leaves the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import secrets
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.chassis import log as logs
from services.chassis.auth import AllowAll, Authenticator, set_current_principal
from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError, Internal, Reason, SihlaiError, Unavailable
from services.chassis.status import code_of, error_from_rpc, status_from_error

__all__ = ["CallInterceptor", "Server", "channel", "error_from_rpc", "run_until_signal", "until_stopping"]

log = logs.get_logger(__name__)

DEADLINE_SECONDS = 30.0
"""How long a unary call may take when its caller says nothing."""
KEEPALIVE_SECONDS = 20.0
KEEPALIVE_TIMEOUT_SECONDS = 10.0
CLIENT_PING_SECONDS_MIN = 5.0
"""Clients that ping more often than this are cut off by the server."""
MESSAGE_BYTES_MAX = 16 * 2**20
RETRY_ATTEMPTS_MAX = 4
RETRY_SECONDS_FIRST = 0.1
RETRY_SECONDS_MAX = 2.0
RECONNECT_SECONDS_MAX = 2.0

REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
HEALTH_METHODS = "/grpc.health.v1.Health/"

Item = TypeVar("Item")
Behavior: TypeAlias = Callable[[Any, Any], Any]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Server:
    """One process's gRPC server. Add services, then `start`, then `stop`; it is not used again.

    `stopping` is set when a stop begins: endless streams and long waits must end by it, or they hold the stop up for
    all of `drain_seconds` before they are cancelled.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        authenticator: Authenticator | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._config = config
        self._interceptors = [CallInterceptor(authenticator or AllowAll()), *interceptors]
        self._services: dict[str, Callable[[grpc.aio.Server], None]] = {}
        self._server: grpc.aio.Server | None = None
        self.stopping = asyncio.Event()
        self._health = _Health(self.stopping)
        self.address = ""

    def add(self, service_name: str, add_to_server: Callable[[grpc.aio.Server], None]) -> None:
        """Serve `service_name` (`sihlai.scheduler.v1.JobService`), added by the generated `add_…_to_server`.

        Such as `server.add(NAME, lambda server: add_JobServiceServicer_to_server(servicer, server))`.
        """
        assert self._server is None, "services are added before the start"
        self._services[service_name] = add_to_server

    async def start(self) -> str:
        """Listen, report SERVING, write the address file; return the bound address."""
        config = self._config
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=_server_options(config),
            maximum_concurrent_rpcs=config.concurrent_calls_max,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for add_to_server in self._services.values():
            add_to_server(server)
        served = (*self._services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*served, reflection.SERVICE_NAME), server)
        self.address = _bind(server, config.listen_address)
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


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Around each call, unary or streaming: who calls, which ids the log gets, which status an error becomes."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._wrapped_handlers: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler's behavior, of whichever of the four kinds it is; once a method, not once a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        known, wrapped = self._wrapped_handlers.get(method, (None, None))
        if known is not handler:
            wrapped = _rewrapped(handler, lambda behavior: self._wrapped(behavior, method))
            self._wrapped_handlers[method] = (handler, wrapped)
        return wrapped

    def _wrapped(self, behavior: Behavior, method: str) -> Behavior:
        """The behavior between `_begin` and `_fail`. Only `Exception` is caught.

        CancelledError must pass: swallowing it leaks native memory (grpc/grpc#43360).
        """
        if inspect.isasyncgenfunction(behavior):

            async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    await self._begin(method, context)
                    async with contextlib.aclosing(behavior(request, context)) as items:
                        async for item in items:
                            yield item
                except Exception as error:  # noqa: BLE001 — _fail logs it
                    await self._fail(error, context)

            return generate

        async def answer(request: Any, context: Context) -> Any:
            try:
                await self._begin(method, context)
                return await behavior(request, context)
            except Exception as error:  # noqa: BLE001 — _fail logs it
                await self._fail(error, context)

        return answer

    async def _begin(self, method: str, context: Context) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        # A call is a task with a context of its own: what is bound here ends with it.
        logs.bind_contextvars(**_log_ids(method, metadata))
        if not method.startswith(HEALTH_METHODS):
            set_current_principal(await self._authenticator.authenticate(metadata, method=method))

    async def _fail(self, error: Exception, context: Context) -> None:
        """End the call with the error's status; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error  # the handler has sent a status itself
        if isinstance(error, SihlaiError):
            log.info("call_refused", code=code_of(error).name, reason=error.reason.value, message=error.message)
            await context.abort_with_status(_grpc_status(error))
        error_id = uuid.uuid4().hex
        log.error("call_crashed", error_id=error_id, exc_info=error)
        message = f"the server made a mistake; its log tells more under error id {error_id}"
        crash = Internal(Reason.INTERNAL, message, {"error_id": error_id})
        await context.abort_with_status(_grpc_status(crash))


def channel(
    address: str,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
    keepalive_timeout_seconds: float = KEEPALIVE_TIMEOUT_SECONDS,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    retry_attempts_max: int = RETRY_ATTEMPTS_MAX,
) -> grpc.aio.Channel:
    """A channel to `address`. It connects with the first call, and again whenever the server comes back.

    Unary calls without a timeout get `deadline_seconds`; streams have none. A call that meets UNAVAILABLE before its
    first answer is sent again, `retry_attempts_max` times in all (gRPC allows 5 at most): every mutation of ours
    carries a request id or a sequence number, so a repeat does no harm.
    """
    retry = {
        "maxAttempts": retry_attempts_max,
        "initialBackoff": f"{RETRY_SECONDS_FIRST}s",
        "maxBackoff": f"{RETRY_SECONDS_MAX}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service_config = {"methodConfig": [{"name": [{}], "retryPolicy": retry}]} if retry_attempts_max > 1 else {}
    options = [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.keepalive_time_ms", _milliseconds(keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(keepalive_timeout_seconds)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(RETRY_SECONDS_FIRST)),
        ("grpc.min_reconnect_backoff_ms", _milliseconds(RETRY_SECONDS_FIRST)),
        ("grpc.max_reconnect_backoff_ms", _milliseconds(RECONNECT_SECONDS_MAX)),
        # Our services are reached directly; a proxy for web pages in the environment must not get between.
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.insecure_channel(address, options=options, interceptors=[DefaultDeadline(deadline_seconds)])


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
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.write_text(address + "\n")
    draft.replace(path)


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


def _rewrapped(handler: Any, wrap: Callable[[Behavior], Behavior]) -> Any:
    """The handler with its behavior wrapped, of whichever of the four kinds it is."""
    kinds = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    name, make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    make_handler: Callable[..., Any] = make
    return make_handler(
        wrap(getattr(handler, name)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _grpc_status(error: SihlaiError) -> Any:
    status: Any = rpc_status.to_status(status_from_error(error))
    return status


def _log_ids(method: str, metadata: Mapping[str, str]) -> dict[str, str]:
    ids = {"method": method.lstrip("/"), "request_id": metadata.get(REQUEST_ID_KEY) or uuid.uuid4().hex}
    if trace := metadata.get(TRACE_KEY):
        ids |= {"trace_parent": trace, "trace_id": trace.split("-")[1] if trace.count("-") == 3 else trace}
    return ids


def _ids_to_pass_on() -> dict[str, str]:
    bound = logs.get_contextvars()
    names = {REQUEST_ID_KEY: "request_id", TRACE_KEY: "trace_parent"}
    return {key: str(bound[name]) for key, name in names.items() if name in bound}


def _bind(server: grpc.aio.Server, listen_address: str) -> str:
    try:
        port = server.add_insecure_port(listen_address)
    except RuntimeError as error:
        raise ConfigurationError([f"listen_address {listen_address} cannot be bound: is it in use?"]) from error
    if listen_address.startswith("unix:"):
        return listen_address
    return f"{listen_address.rpartition(':')[0]}:{port}"


def _server_options(config: ServerConfig) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a silent sharing
        ("grpc.max_send_message_length", config.message_bytes_max),
        ("grpc.max_receive_message_length", config.message_bytes_max),
        ("grpc.max_concurrent_streams", config.concurrent_streams_max),
        ("grpc.keepalive_time_ms", _milliseconds(config.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(config.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(CLIENT_PING_SECONDS_MIN)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
