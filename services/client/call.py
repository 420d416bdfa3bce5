"""Calls of the services, and what all operations are made of. They know no channel, no loop and no thread.

An `Operation` is a coroutine, a `Reading` an asynchronous generator. Each takes first the `Transport` that it goes
over, of which `driver` has two: one awaits, the other blocks.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import grpc
from sihlai.auth.v1.token_service_pb2_grpc import TokenServiceStub
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub
from sihlai.installation.v1.installation_service_pb2 import GetInstallationRequest, GetInstallationResponse
from sihlai.installation.v1.installation_service_pb2_grpc import InstallationServiceStub
from sihlai.logs.v1.log_service_pb2_grpc import LogServiceStub
from sihlai.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from sihlai.runner.v1.runner_admin_service_pb2_grpc import RunnerAdminServiceStub
from sihlai.scheduler.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from sihlai.scheduler.v1.conversion_report_service_pb2_grpc import ConversionReportServiceStub
from sihlai.scheduler.v1.job_service_pb2_grpc import JobServiceStub
from sihlai.scheduler.v1.project_service_pb2_grpc import ProjectServiceStub

from services.chassis import errors
from services.chassis.backoff import Backoff
from services.chassis.errors import Reason, SihlaiError
from services.client.number import SECONDS_MAX, number
from services.client.specification import SpecificationError

DEADLINE_SECONDS = 30.0
"""How long a unary call may take when nothing else is said."""
INSTALLED_SECONDS_MAX = 10.0
"""The same of what a service says of itself."""
PAGE_SIZE = 1_000
RECONNECT_SECONDS_FIRST = 0.2
RECONNECT_SECONDS_MAX = 5.0
SERVED_BY = {"logs": "metrics", "auth": "scheduler", "installation": "scheduler", "runner": "scheduler"}
"""The service of each package that is not named for it."""
OUTAGE_SECONDS_MAX = 600.0
"""After so long without an answer a read gives up."""
PASSING = (errors.Unavailable, errors.Aborted, errors.Cancelled, errors.Internal)
"""What may be gone when the call is sent again. Internal and Cancelled: gRPC's words for connections that break in an
odd place, or that the other side resets; who cancels a call of its own gets no error of the service."""
TOO_MUCH = (errors.ResourceExhausted, errors.DeadlineExceeded)
"""The service could not do what was asked of it within its limits. From a later place it may be less; from the same
place it is the same again."""

P = ParamSpec("P")
Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")
Item = TypeVar("Item")


class HasCursor(Protocol):
    """An answer of a long read."""

    @property
    def cursor(self) -> str:
        """Where to go on after it; empty where it does not say."""
        ...


Followed = TypeVar("Followed", bound=HasCursor)
Break: TypeAlias = Callable[[SihlaiError | None], None]
"""Is told that a connection broke, with the reason where there is one; the read goes on by itself."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of a service, as its generated stub describes it."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    at: str = ""
    """Which service is asked, where several serve it."""

    @property
    def service(self) -> str:
        """Which service is asked: by the second part of its package, if nothing else is said."""
        package = self.path.split(".")[1]
        return self.at or SERVED_BY.get(package, package)


class _Recorder:
    """Stands where a stub wants a channel, and gives its methods as values."""

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Method:
        return Method(path=path, serialize=request_serializer, deserialize=response_deserializer)

    unary_stream = stream_unary = stream_stream = unary_unary


_recorder = cast(grpc.Channel, _Recorder())
PROJECTS = ProjectServiceStub(_recorder)
JOBS = JobServiceStub(_recorder)
CHECKPOINTS = CheckpointServiceStub(_recorder)
CONVERSION_REPORTS = ConversionReportServiceStub(_recorder)
RUNNERS = RunnerAdminServiceStub(_recorder)
METRICS = MetricsServiceStub(_recorder)
LOGS = LogServiceStub(_recorder)
CONVERSION = ConversionServiceStub(_recorder)
INSTALLATION = InstallationServiceStub(_recorder)
TOKENS = TokenServiceStub(_recorder)


class Transport(Protocol):
    """How operations reach the services, the clock and the disk. All errors of services are SihlaiError."""

    async def ask(self, method: Method, request: Any, seconds: float) -> Any:
        """The answer of a call that has one."""

    def read(self, method: Method, request: Any, seconds: float | None) -> AsyncGenerator[Any, None]:
        """The answers of a call that has many. Whoever closes it cancels the call."""

    async def sleep(self, seconds: float) -> None:
        """A pause."""

    async def work(self, function: Callable[[], Result]) -> Result:
        """The result of a piece of work on files, which takes a while."""


Operation: TypeAlias = Coroutine[Any, Any, Result]
"""What ends with a result."""
Reading: TypeAlias = AsyncGenerator[Item, None]
"""What gives item after item."""
OperationOf: TypeAlias = Callable[Concatenate[Transport, P], Operation[Result]]
"""What makes one of a transport and parameters."""
ReadingOf: TypeAlias = Callable[Concatenate[Transport, P], Reading[Item]]


async def ask(
    transport: Transport,
    method: grpc.UnaryUnaryMultiCallable[Request, Answer],
    request: Request,
    seconds: float = DEADLINE_SECONDS,
) -> Answer:
    """One call with one answer."""
    return cast(Answer, await transport.ask(cast(Method, method), request, seconds))


async def installed(transport: Transport, service: str = "scheduler") -> GetInstallationResponse:
    """What a service says of itself; the scheduler knows where the others are."""
    method: Any = dataclasses.replace(INSTALLATION.GetInstallation, at=service)  # type: ignore[type-var]
    return await ask(transport, method, GetInstallationRequest(), INSTALLED_SECONDS_MAX)


def read(
    transport: Transport,
    method: grpc.UnaryStreamMultiCallable[Request, Answer],
    request: Request,
    seconds: float | None = None,
) -> Reading[Answer]:
    """The answers of one call, over one connection: where it breaks, its error is raised."""
    return transport.read(cast(Method, method), request, seconds)


async def follow(
    transport: Transport,
    method: grpc.UnaryStreamMultiCallable[Request, Followed],
    request: Request,
    *,
    is_last: Callable[[Followed], bool],
    on_break: Break = lambda error: None,
    seconds: float | None = None,
    is_known: bool = False,
) -> Reading[Followed]:
    """The answers of a stream up to and with the last one, over any number of connections.

    The request's cursor says where to begin, and is changed. The first connection must succeed, unless the service
    `is_known` to be there: what it refuses, or that none is there, is raised. Later breaks are told to `on_break`, and
    tried again until OUTAGE_SECONDS_MAX have passed without an answer; then the last error is raised. So is, the second
    time at one cursor, that what is asked is too much. Where the token ended after an answer, the next connection
    carries the one of its moment. Raises TimeoutError when it has not ended after `seconds`.
    """
    if seconds is not None:
        number(seconds, "timeout", at_least=-math.inf, at_most=math.inf)
    resumed: Any = request
    answered_at = time.monotonic()
    ends_at = math.inf if seconds is None else answered_at + seconds
    answered = False
    backoff = Backoff(
        seconds_first=RECONNECT_SECONDS_FIRST,
        seconds_max=RECONNECT_SECONDS_MAX,
        randomness=random.Random(),  # noqa: S311  # spreads retries, guards nothing
    )
    too_much_at: str | None = None
    while (left := ends_at - time.monotonic()) > 0:
        broke: SihlaiError | None = None
        answered_here = False
        try:
            async with aclosing(read(transport, method, request, left if left < SECONDS_MAX else None)) as answers:
                async for answer in answers:
                    if answer.cursor:
                        resumed.cursor = answer.cursor
                    answered, answered_here, answered_at = True, True, time.monotonic()
                    backoff.reset()
                    yield answer
                    if is_last(answer):
                        return
        except PASSING + TOO_MUCH as error:
            broke = error
            if time.monotonic() >= ends_at:
                break
            if not (answered or is_known) or time.monotonic() - answered_at > OUTAGE_SECONDS_MAX:
                raise
            if isinstance(error, TOO_MUCH):
                if too_much_at == resumed.cursor:
                    raise
                too_much_at = resumed.cursor
        except errors.Unauthenticated as error:
            broke = error
            if error.reason is not Reason.TOKEN_EXPIRED or not answered_here:
                raise
        on_break(broke)
        await transport.sleep(backoff.next_seconds())
    raise TimeoutError(f"it has not ended after {seconds:g} s")


async def whole(
    transport: Transport,
    method: grpc.UnaryUnaryMultiCallable[Request, Answer],
    request: Request,
    *,
    limit: int | None = None,
    seconds_max: float = DEADLINE_SECONDS,
) -> Answer:
    """A list to its end, or until `limit` items, as if it were one page; `next_page_token` says what follows."""
    if limit is not None and limit < 1:
        raise SpecificationError(f"the limit is {limit}, but must be at least 1")
    paged: Any = request
    found: Any = None
    count = 0
    while True:
        paged.page_size = PAGE_SIZE if limit is None else min(limit - count, PAGE_SIZE)
        page: Any = await ask(transport, method, request, seconds_max)
        if found is None:
            found = page
        else:
            found.MergeFrom(page)
        found.next_page_token = paged.page_token = page.next_page_token
        count = next(len(getattr(found, field.name)) for field in found.DESCRIPTOR.fields if field.is_repeated)
        if not found.next_page_token or (limit is not None and count >= limit):
            return cast(Answer, found)
