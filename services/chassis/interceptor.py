"""What stands around each call: who calls, which ids the log gets, how many at once, which status an error becomes.

What gRPC would refuse in its own words (a method that nobody serves, bytes that are no message, too many calls) is
refused here, with a reason like every other error. What is left to gRPC, because no code of ours sees it: a message
larger than `message_bytes_max` (RESOURCE_EXHAUSTED), and what a client does to its own call (DEADLINE_EXCEEDED,
CANCELLED).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from services.chassis import log as logs
from services.chassis.auth.access import NOT_SERVED, OPEN_SERVICE
from services.chassis.auth.guard import Admission, Guard, OpenGuard
from services.chassis.auth.principal import set_current_principal
from services.chassis.call_limits import CallCounts
from services.chassis.errors import (
    Internal,
    InvalidArgument,
    Reason,
    SihlaiError,
    Unimplemented,
    Violation,
)
from services.chassis.ids import new_id
from services.chassis.serialized import begin_answering
from services.chassis.share import Spending, Stepped, SteppedItems, set_current_spending
from services.chassis.status import code_of, status_from_error

log = logs.get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
LOGGED_CHARACTERS_MAX = 2_000
"""Of a refusal's message: it may quote as much as a request holds."""
NOBODYS = "methods that are not served"
"""All calls of them count as those of one service: callers could make up any number of names."""
_REQUEST_ID = re.compile("[A-Za-z0-9._:/+=-]{1,128}")
_TRACE_PARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context; what is no such thing is left out of the log and of events."""

OPEN = OpenGuard()
Behavior: TypeAlias = Callable[[Any, Any], Any]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Around each call, unary or streaming. `counts` says how many may run.

    `request_bytes_max` bounds a request before it is read, as reading takes many times its size; services of runners,
    whose names `for_runners` says, have no such bound but that of every message.
    """

    def __init__(
        self, guard: Guard, counts: CallCounts, *, request_bytes_max: int, for_runners: Container[str]
    ) -> None:
        self._guard = guard
        self._counts = counts
        self._request_bytes_max = request_bytes_max
        self._for_runners = for_runners
        self._wrapped_handlers: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler's behavior, of whichever of the four kinds it is; once a method, not once a call."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return grpc.stream_unary_rpc_method_handler(self._wrapped(_not_served(method), method, service=NOBODYS))
        known, wrapped = self._wrapped_handlers.get(method, (None, None))
        if known is not handler:
            wrapped = self._rewrapped(handler, method)
            self._wrapped_handlers[method] = (handler, wrapped)
        return wrapped

    def _rewrapped(self, handler: Any, method: str) -> Any:
        """The handler with its behavior wrapped. A single request is read from its bytes by us, not by gRPC."""
        kinds = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        name, make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
        make_handler: Callable[..., Any] = make
        behavior = getattr(handler, name)
        service = method.strip("/").partition("/")[0]
        bytes_max = sys.maxsize if service in self._for_runners else self._request_bytes_max
        read = _each_read if handler.request_streaming else _reader(handler.request_deserializer, bytes_max)
        return make_handler(
            self._wrapped(
                behavior,
                method,
                read,
                service=service,
                has_one_answer=not handler.response_streaming,
                has_one_request=not handler.request_streaming,
            ),
            request_deserializer=handler.request_deserializer if handler.request_streaming else None,
            response_serializer=_writer(handler.response_serializer),
        )

    def _wrapped(
        self,
        behavior: Behavior,
        method: str,
        read: Callable[[Any], Any] = lambda given: given,
        *,
        service: str,
        has_one_answer: bool = True,
        has_one_request: bool = False,
    ) -> Behavior:
        """The behavior between `_begin` and `_fail`. Only `Exception` is caught.

        CancelledError must pass: swallowing it leaks native memory (grpc/grpc#43360).
        """
        kind = method if service != NOBODYS else NOBODYS  # callers could make up any number of names

        if inspect.isasyncgenfunction(behavior):

            async def generate(given: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    guard, admission = await self._begin(method, service, context)
                    counted = self._counts.counted(service, admission.principal, method=kind, has_one_answer=False)
                    async with counted as spending:
                        request = read(given)
                        if has_one_request:
                            admission.check(request)
                        async with (
                            contextlib.aclosing(behavior(request, context)) as items,
                            contextlib.aclosing(guard.lasting(admission, _at_cost_of(spending, items))) as lasting,
                        ):
                            begun = False
                            async for item in lasting:
                                if not begun:
                                    await begin_answering(context)
                                    begun = True
                                yield item
                except Exception as error:  # noqa: BLE001 — _fail logs it
                    await self._fail(error, context)

            return generate

        async def answer(given: Any, context: Context) -> Any:
            try:
                _, admission = await self._begin(method, service, context)
                counted = self._counts.counted(service, admission.principal, method=kind, has_one_answer=True)
                async with counted as spending:
                    request = read(given)
                    if has_one_request:
                        admission.check(request)
                    return await _charged(spending, behavior(request, context))
            except Exception as error:  # noqa: BLE001 — _fail logs it
                await self._fail(error, context)

        async def write(given: Any, context: Context) -> None:
            """A stream that writes its answers by itself (`serialized`)."""
            try:
                guard, admission = await self._begin(method, service, context)
                counted = self._counts.counted(service, admission.principal, method=kind, has_one_answer=False)
                async with counted as spending:
                    request = read(given)
                    if has_one_request:
                        admission.check(request)
                    writing = _without_items(_charged(spending, behavior(request, context)))
                    async with (
                        contextlib.aclosing(writing),
                        contextlib.aclosing(guard.lasting(admission, writing)) as lasting,
                    ):
                        async for _ in lasting:
                            raise AssertionError("it has no items")
            except Exception as error:  # noqa: BLE001 — _fail logs it
                await self._fail(error, context)

        return answer if has_one_answer else write

    async def _begin(self, method: str, service: str, context: Context) -> tuple[Guard, Admission]:
        """Look who calls. What a stream asks for is looked at by its servicer, message by message."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        # A call is a task with a context of its own: what is bound here ends with it.
        logs.bind_contextvars(**_log_ids(method, metadata))
        guard = OPEN if service == OPEN_SERVICE else self._guard
        try:
            admission = await guard.admit(metadata, method=method if service != NOBODYS else NOT_SERVED)
        except SihlaiError:
            await self._counts.until_refused(context.peer().rpartition(":")[0])
            raise
        set_current_principal(admission.principal)
        logs.bind_contextvars(principal=admission.principal.subject)
        return guard, admission

    async def _fail(self, error: Exception, context: Context) -> None:
        """End the call with the error's status; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error  # the handler has sent a status itself
        if isinstance(error, SihlaiError):
            message = error.message[:LOGGED_CHARACTERS_MAX]
            log.info("call_refused", code=code_of(error).name, reason=error.reason.value, message=message)
            await context.abort_with_status(_grpc_status(error))
        error_id = uuid.uuid4().hex
        log.error("call_crashed", error_id=error_id, exc_info=error)
        message = f"the server made a mistake; its log tells more under error id {error_id}"
        crash = Internal(Reason.INTERNAL, message, {"error_id": error_id})
        await context.abort_with_status(_grpc_status(crash))


async def end_stream(context: Context, error: SihlaiError) -> NoReturn:
    """End a stream with this error, after what was sent before it. Waits until the client has read that, or is gone
    (CancelledError): gRPC holds it until then, so the call must count.
    """
    try:
        await context.abort_with_status(_grpc_status(error))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone


def _charged(spending: Spending | None, work: Awaitable[Any]) -> Awaitable[Any]:
    """The work, charged to the call as far as that is counted."""
    if spending is None:
        return work
    set_current_spending(spending)
    return Stepped(work, spending)


def _at_cost_of(spending: Spending | None, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same for a stream's items."""
    if spending is None:
        return items
    set_current_spending(spending)
    return SteppedItems(items, spending)


async def _without_items(work: Awaitable[None]) -> AsyncGenerator[None, None]:
    """The work as an iterator that ends with it."""
    await work
    return
    yield  # type: ignore[unreachable]  # makes it an iterator


def _not_served(method: str) -> Behavior:
    name = method.lstrip("/")

    async def refuse(_requests: Any, _context: Context) -> Any:
        message = f"this server serves no method {name}: ask its reflection which there are"
        raise Unimplemented(Reason.NOT_IMPLEMENTED, message, {"method": name})

    return refuse


def _reader(deserialize: Callable[[bytes], Any] | None, bytes_max: int) -> Callable[[bytes], Any]:
    """Reads the one request of a call. InvalidArgument where its bytes are no such message, or too many."""

    def read(given: bytes) -> Any:
        if len(given) > bytes_max:
            description = f"has {len(given)} bytes, but at most {bytes_max} are read"
            violation = Violation(field="request", description=description, reason=Reason.MESSAGE_TOO_LARGE)
            raise InvalidArgument([violation], reason=Reason.MESSAGE_TOO_LARGE, metadata={"bytes_max": str(bytes_max)})
        try:
            return deserialize(given) if deserialize is not None else given
        except DecodeError as error:
            raise _malformed(error) from error

    return read


def _writer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Serialises an answer, where it is not bytes already: what is long is made beside the event loop (`aside`)."""
    if serialize is None:
        return None
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


async def _each_read(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream, which gRPC reads. InvalidArgument where the bytes of one are no such message."""
    while True:
        try:
            request = await anext(requests)
        except StopAsyncIteration:
            return
        except DecodeError as error:
            raise _malformed(error) from error
        yield request


def _malformed(error: DecodeError) -> InvalidArgument:
    description = f"is not a message of this call: {error}"
    return InvalidArgument([Violation(field="request", description=description)])


def _grpc_status(error: SihlaiError) -> Any:
    status: Any = rpc_status.to_status(status_from_error(error))
    return status


def _log_ids(method: str, metadata: Mapping[str, str]) -> dict[str, str]:
    given = metadata.get(REQUEST_ID_KEY, "")
    ids = {"method": method.lstrip("/"), "request_id": given if _REQUEST_ID.fullmatch(given) else new_id()}
    trace = metadata.get(TRACE_KEY, "")
    if _TRACE_PARENT.fullmatch(trace):
        ids |= {"trace_parent": trace, "trace_id": trace.split("-")[1]}
    return ids
