"""Calls as values: what the client does is generators that yield steps, and know no channel, no loop and no thread.

An `Operation` yields steps, is sent what each step gave, and returns its result; `driver` runs it, blocking or
awaiting. What an operation yields as `Emit` goes to whoever iterates.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import grpc
from sihlai.auth.v1.token_service_pb2_grpc import TokenServiceStub
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub
from sihlai.installation.v1.installation_service_pb2_grpc import InstallationServiceStub
from sihlai.logs.v1.log_service_pb2_grpc import LogServiceStub
from sihlai.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from sihlai.runner.v1.runner_admin_service_pb2_grpc import RunnerAdminServiceStub
from sihlai.scheduler.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from sihlai.scheduler.v1.conversion_report_service_pb2_grpc import ConversionReportServiceStub
from sihlai.scheduler.v1.job_service_pb2_grpc import JobServiceStub
from sihlai.scheduler.v1.project_service_pb2_grpc import ProjectServiceStub

from services.chassis.backoff import Backoff
from services.chassis.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    Internal,
    Reason,
    ResourceExhausted,
    SihlaiError,
    Unauthenticated,
    Unavailable,
)

DEADLINE_SECONDS = 30.0
"""How long a unary call may take when nothing else is said."""
PAGE_SIZE = 1_000
RECONNECT_SECONDS_FIRST = 0.2
RECONNECT_SECONDS_MAX = 5.0
OF_SCHEDULER = ("auth", "installation", "runner")
"""Packages that the scheduler serves beside its own."""
OUTAGE_SECONDS_MAX = 600.0
"""After so long without an answer a read gives up."""
PASSING = (Unavailable, Aborted, Cancelled, Internal)
"""What may be gone when the call is sent again. Internal and Cancelled: gRPC's words for connections that break in an
odd place, or that the other side resets; who cancels a call of its own gets no error of the service."""
TOO_MUCH = (ResourceExhausted, DeadlineExceeded)
"""The service could not do what was asked of it within its limits. From a later place it may be less; from the same
place it is the same again."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")
Item = TypeVar("Item")
Other = TypeVar("Other")


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
        if self.at:
            return self.at
        package = self.path.strip("/").split(".")[1]
        return {"logs": "metrics"}.get(package, "scheduler" if package in OF_SCHEDULER else package)


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


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One call with one answer, which is sent back; an error of the service is thrown."""

    method: Method
    request: Any
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Open:
    """A call with many answers. What is sent back is its `Stream`."""

    method: Method
    request: Any
    seconds: float | None


class Stream(Protocol):
    """An open call; `Next` reads from it."""

    def cancel(self) -> object:
        """End it, if it has not ended."""
        ...


@dataclass(frozen=True)
class Next:
    """The next answer of a stream, or None at its end."""

    stream: Any


@dataclass(frozen=True)
class Sleep:
    """A pause."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """A piece of work on files, which takes a while. Its result is sent back."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Emit(Generic[Item]):
    """Something for whoever iterates."""

    item: Item


Step: TypeAlias = Ask | Open | Next | Sleep | Work
Operation: TypeAlias = Generator[Step, Any, Result]
"""What ends with a result."""
Reading: TypeAlias = Generator[Step | Emit[Item], Any, None]
"""What gives item after item."""


def ask(
    method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request, seconds: float = DEADLINE_SECONDS
) -> Operation[Answer]:
    """One call with one answer."""
    answer: Answer = yield Ask(method=cast(Method, method), request=request, seconds=seconds)
    return answer


def read(
    method: grpc.UnaryStreamMultiCallable[Request, Answer], request: Request, seconds: float | None = None
) -> Reading[Answer]:
    """The answers of one call, over one connection: where it breaks, its error is raised."""
    stream: Stream = yield Open(method=cast(Method, method), request=request, seconds=seconds)
    try:
        while (answer := (yield Next(stream))) is not None:
            yield Emit(answer)
    finally:
        stream.cancel()  # who stops reading early leaves no call behind


def follow(
    method: grpc.UnaryStreamMultiCallable[Request, Followed],
    request_at: Callable[[str], Request],
    *,
    is_last: Callable[[Followed], bool],
    on_break: Break = lambda error: None,
    cursor: str = "",
    seconds: float | None = None,
    outage_seconds_max: float = OUTAGE_SECONDS_MAX,
    monotonic: Callable[[], float] = time.monotonic,
) -> Reading[Followed]:
    """The answers of a stream up to and with the last one, over any number of connections.

    `request_at` gets the cursor to go on from, empty at the start. The first connection must succeed: what a service
    refuses, or that none is there, is raised. Later breaks are told to `on_break`, and tried again until
    `outage_seconds_max` have passed without an answer; then the last error is raised. So is, the second time at one
    cursor, that what is asked is too much. Where the token ended after an answer, the next connection carries the one
    of its moment. Raises TimeoutError when it has not ended after `seconds`.
    """
    began = answered_at = monotonic()
    answered = False
    backoff = Backoff(
        seconds_first=RECONNECT_SECONDS_FIRST,
        seconds_max=RECONNECT_SECONDS_MAX,
        randomness=random.Random(),  # noqa: S311  # spreads retries, guards nothing
    )
    too_much_at: str | None = None
    while True:
        broke: SihlaiError | None = None
        left = None if seconds is None else began + seconds - monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended after {seconds:g} s")
        stream: Stream = yield Open(method=cast(Method, method), request=request_at(cursor), seconds=left)
        answered_here = False
        try:
            while (answer := (yield Next(stream))) is not None:
                cursor = answer.cursor or cursor
                answered, answered_here, answered_at = True, True, monotonic()
                backoff.reset()
                yield Emit(answer)
                if is_last(answer):
                    return
        except PASSING + TOO_MUCH as error:
            broke = error
            if left is not None and monotonic() >= began + seconds:  # type: ignore[operator]
                continue
            if not answered or monotonic() - answered_at > outage_seconds_max:
                raise
            if isinstance(error, TOO_MUCH):
                if too_much_at == cursor:
                    raise
                too_much_at = cursor
        except Unauthenticated as error:
            broke = error
            if error.reason is not Reason.TOKEN_EXPIRED or not answered_here:
                raise
        finally:
            stream.cancel()  # who stops reading early leaves no call behind
        on_break(broke)
        yield Sleep(backoff.next_seconds())


def mapped(reading: Reading[Item], turn: Callable[[Item], Iterable[Other]]) -> Reading[Other]:
    """For each item of the reading what `turn` makes of it, which may be nothing."""
    try:
        step = next(reading)
        while True:
            if isinstance(step, Emit):
                for item in turn(step.item):
                    yield Emit(item)
                step = next(reading)
                continue
            try:
                given = yield step
            except Exception as error:  # noqa: BLE001  # the reading decides
                step = reading.throw(error)
            else:
                step = reading.send(given)
    except StopIteration:
        return
    finally:
        reading.close()


def then(operation: Operation[Result], make: Callable[[Result], Other]) -> Operation[Other]:
    """What `make` makes of the operation's result."""
    return make((yield from operation))


def consumed(reading: Reading[Item], take: Callable[[Item], None]) -> Operation[None]:
    """The whole reading, item by item given to `take`."""

    def turn(item: Item) -> tuple[()]:
        take(item)
        return ()

    silent: Any = mapped(reading, turn)
    yield from silent


def pages(
    method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request, *, limit: int | None = None
) -> Operation[list[Answer]]:
    """The pages of a list, to the end or until `limit` items, of which the last says what follows."""
    paged: Any = request
    found: list[Answer] = []
    items = 0
    while True:
        paged.page_size = PAGE_SIZE if limit is None else min(limit - items, PAGE_SIZE)
        page: Any = yield from ask(method, request)
        found.append(page)
        items += len(getattr(page, _repeated_field(page)))
        paged.page_token = page.next_page_token
        if not page.next_page_token or (limit is not None and items >= limit):
            return found


def whole(method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Operation[Answer]:
    """A list to its end, as if it were one page."""
    first, *others = yield from pages(method, request)
    joined: Any = first
    for page in others:
        joined.MergeFrom(page)
    joined.ClearField("next_page_token")
    return first


def _repeated_field(page: Any) -> str:
    """The name of a page's list of items."""
    name: str = next(field.name for field in page.DESCRIPTOR.fields if field.is_repeated)
    return name
