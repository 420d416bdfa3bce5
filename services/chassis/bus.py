"""The bus: facts that already happened, on NATS JetStream.

It carries no command and is never the truth. With NATS away nothing else may stop: a Bus connects and reconnects in the
background for as long as it lives, and a publish that finds nobody raises Unavailable after its deadline, so that the
outbox keeps the fact. What was acknowledged is on disk: the server syncs each message (`sync_interval: always`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RawStreamMsg,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.client import JetStreamContext

from services.chassis.address import without_password
from services.chassis.errors import ConfigurationError, InvalidArgument, Reason, Unavailable, Violation
from services.chassis.log import get_logger
from services.chassis.nats_client import Names, NatsClient
from services.chassis.nats_errors import AWAY, NEVER, described, is_never
from services.chassis.nats_server import BusAccess, nats_server_path, server_configuration, server_url

__all__ = [
    "Bus",
    "BusAccess",
    "BusLimits",
    "ConsumerLimits",
    "Message",
    "StreamLimits",
    "nats_server_path",
    "server_configuration",
    "server_url",
    "subject_matches",
]

log = get_logger(__name__)

SCHEMES = ("nats", "tls", "ws", "wss")
MESSAGE_ID_HEADER = "Nats-Msg-Id"


@dataclass(frozen=True, kw_only=True)
class BusLimits:
    """The bus's waits and queues."""

    connect_seconds: float = 2.0
    """How long one attempt to connect may take, its look at the name included."""
    reconnect_seconds: float = 0.25
    """The pause between two attempts."""
    ping_seconds: float = 10.0
    """How often a silent connection is tried; two missing answers end it."""
    publish_seconds: float = 10.0
    """How long a publish waits for connection and acknowledgement in all."""
    acknowledge_seconds: float = 3.0
    """How long it waits for one acknowledgement before it sends again (the stream drops the double by its id)."""
    request_seconds: float = 5.0
    """How long JetStream may take for any other request."""
    close_seconds: float = 2.0
    cancel_seconds: float = 0.1
    """How long a cancelled attempt to connect may take before it is cancelled again."""


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """What a stream keeps: the oldest messages go first."""

    messages_max: int = 10_000_000
    bytes_max: int = 4 * 2**30
    message_bytes_max: int = 2**20
    age_days_max: float = 30.0
    duplicate_seconds: float = 120.0
    """How long the stream knows a message id again. After an outage the publisher asks `last_message_ids` besides."""


@dataclass(frozen=True, kw_only=True)
class ConsumerLimits:
    """How a durable consumer is served."""

    batch_max: int = 16
    """All of a batch must be handled within `acknowledge_seconds`."""
    fetch_seconds: float = 5.0
    unacknowledged_max: int = 256
    acknowledge_seconds: float = 30.0
    """After this long without an answer a message is delivered again."""
    deliveries_max: int = 8
    """After this many a message is given up, with a line in the log."""
    backoff_seconds: Sequence[float] = (0.1, 1.0, 5.0, 30.0)
    """The pause before each delivery after a failed one; the last counts for all further ones."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a handler gets. `message_id` is the publisher's; `deliveries` is 1 the first time."""

    subject: str
    payload: bytes
    message_id: str
    sequence: int
    deliveries: int


Answer = TypeVar("Answer")
Handler = Callable[[Message], Awaitable[None]]


class Bus:
    """One connection to NATS, kept for the life of the process. Make it with `connect`, end it with `close`."""

    def __init__(
        self, url: str, *, name: str = "", access: BusAccess | None = None, limits: BusLimits | None = None
    ) -> None:
        self._url = url
        self._access = access or BusAccess()
        self._shown = without_password(url)
        self._name = name
        self._limits = limits or BusLimits()
        self._names = Names()
        self._client = NatsClient(self._names)
        self._changed = asyncio.Condition()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self.connections = 0
        """How often the bus got connected: who sees it grow knows that there was an outage."""

    @classmethod
    async def connect(
        cls, url: str, *, name: str = "", access: BusAccess | None = None, limits: BusLimits | None = None
    ) -> Bus:
        """A bus that connects in the background. Returns at once, whether NATS is there or not.

        What `access` shows is read with each connection, so that it can be changed. Raises ConfigurationError where
        `url` is none that NATS could have, or a file of `access` is not one to trust.
        """
        if access is not None:
            access.check()
        if not _is_address(url):  # not quoted: it may hold a password
            raise ConfigurationError(["the bus's url is none that NATS could have: nats://host:port"])
        bus = cls(url, name=name, access=access, limits=limits)
        bus._keeper = asyncio.create_task(bus._keep_connected(), name="bus")
        return bus

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; what waits gets Unavailable at its deadline."""
        self._closing = True
        await self._ended(self._keeper)
        if self._client.is_connected or self._client.is_reconnecting:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(self._limits.close_seconds):
                    await self._client.close()
        await self._ended(self._client._reconnection_task)  # it may go on after a close, for ever

    async def _ended(self, task: asyncio.Task[None] | None) -> None:
        """nats-py may swallow a cancellation while it connects: cancel until it is heard."""
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=self._limits.cancel_seconds)

    @property
    def connected(self) -> bool:
        """Whether the bus is connected now."""
        return self._client.is_connected

    async def wait_connected(self, *, after: int = 0) -> int:
        """Wait until connected for more than the `after`-th time; return `connections`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.connected and self.connections > after)
            return self.connections

    async def ensure_stream(
        self, name: str, subjects: Sequence[str], *, limits: StreamLimits | None = None, replicas: int = 1
    ) -> None:
        """Make the stream where there is none. What an administrator set in one that is there stays as it is.

        Only subjects that it does not listen to are added. Raises Unavailable with NATS away, and where it refuses:
        another stream may listen to one of the subjects.
        """
        limits = limits or StreamLimits()
        config = StreamConfig(
            name=name,
            subjects=list(subjects),
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            max_msgs=limits.messages_max,
            max_bytes=limits.bytes_max,
            max_msg_size=limits.message_bytes_max,
            max_age=limits.age_days_max * 86_400,
            duplicate_window=limits.duplicate_seconds,
            num_replicas=replicas,
        )
        try:
            there = await self._stream(name)
            if there is None:
                await self._request(lambda: self._jetstream().add_stream(config))
            elif missing := _missing(subjects, there.subjects or []):
                extended = there.evolve(subjects=[*(there.subjects or []), *missing])
                await self._request(lambda: self._jetstream().update_stream(extended))
        except nats.js.errors.APIError as error:
            raise _away(self._shown, f"it refuses the stream {name}: {described(error)}") from error

    async def publish(self, subject: str, payload: bytes, message_id: str) -> int:
        """Publish and wait until the message is stored; return its sequence number in the stream.

        Sends again within `publish_seconds` where the connection breaks: with the same `message_id` that is harmless.
        Raises Unavailable after it, also where stream or account are full: whether the message is stored is then
        unknown, and `last_message_ids` tells.
        InvalidArgument for a message that can never be stored: too large, or with a subject that is none.
        """
        problem = "not connected"
        try:
            async with asyncio.timeout(self._limits.publish_seconds):
                while True:
                    await self.wait_connected()
                    try:
                        acknowledgement = await self._jetstream().publish(
                            subject,
                            payload,
                            timeout=self._limits.acknowledge_seconds,
                            headers={MESSAGE_ID_HEADER: message_id},
                        )
                        return acknowledgement.seq
                    except (*NEVER, *AWAY, nats.js.errors.APIError) as error:
                        problem = described(error)
                        if is_never(error):
                            description = f"{len(payload)} bytes to {subject!r} are refused: {problem}"
                            raise InvalidArgument([Violation(field="message", description=description)]) from error
                        await asyncio.sleep(self._limits.reconnect_seconds)
        except TimeoutError as error:
            raise _away(self._shown, f"{subject} was not acknowledged: {problem}") from error

    async def last_message_ids(self, stream: str, subject_filter: str = ">", *, messages_max: int = 64) -> list[str]:
        """The ids of those of the stream's last `messages_max` messages that match, newest first.

        For an outbox that goes on after an outage: what it sent without an answer is among them, or was not stored.
        """
        info = await self._request(lambda: self._jetstream().stream_info(stream))
        newest, oldest = info.state.last_seq, max(info.state.first_seq, 1)
        ids = []
        for sequence in range(newest, max(oldest, newest - messages_max + 1) - 1, -1):
            message = await self._stored(stream, sequence)
            if message is not None and subject_matches(subject_filter, message.subject or ""):
                ids.append((message.headers or {}).get(MESSAGE_ID_HEADER, ""))
        return ids

    async def consume(
        self, stream: str, durable: str, subject: str, handler: Handler, *, limits: ConsumerLimits | None = None
    ) -> None:
        """Give each message that matches `subject` to `handler`, one after the other; runs until it is cancelled.

        A message is acknowledged when the handler returns. Where it raises, the message comes again after a pause, and
        is given up after `deliveries_max`. It can come twice in any case: handlers are idempotent by `message_id`.
        """
        limits = limits or ConsumerLimits()
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=limits.acknowledge_seconds,
            max_ack_pending=limits.unacknowledged_max,
            max_deliver=limits.deliveries_max,
        )
        while True:
            connection = await self.wait_connected()
            try:
                await self._jetstream().add_consumer(stream, config)
                pull = await self._jetstream().pull_subscribe_bind(durable=durable, stream=stream)
                try:
                    while self.connected and self.connections == connection:
                        with contextlib.suppress(TimeoutError):
                            for message in await pull.fetch(limits.batch_max, timeout=limits.fetch_seconds):
                                await _handle(message, handler, limits)
                finally:
                    with contextlib.suppress(*AWAY, nats.errors.BadSubscriptionError):
                        await pull.unsubscribe()
            except nats.js.errors.BadRequestError:
                raise
            except (*AWAY, nats.js.errors.APIError) as error:  # the latter: no stream yet, or it moves in its cluster
                log.info("bus_consumer_interrupted", durable=durable, problem=described(error))
                await asyncio.sleep(self._limits.reconnect_seconds)

    def _jetstream(self) -> JetStreamContext:
        return self._client.jetstream(timeout=self._limits.request_seconds)

    async def _stream(self, name: str) -> StreamConfig | None:
        try:
            return (await self._request(lambda: self._jetstream().stream_info(name))).config
        except nats.js.errors.NotFoundError:
            return None

    async def _stored(self, stream: str, sequence: int) -> RawStreamMsg | None:
        """The message, or None where it was deleted or is gone by age."""
        try:
            return await self._request(lambda: self._jetstream().get_msg(stream, sequence))
        except nats.js.errors.NotFoundError:
            return None

    async def _request(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """One JetStream request; Unavailable where the bus is not connected in time or JetStream does not answer."""
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self.wait_connected()
                return await send()
        except AWAY as error:
            raise _away(self._shown, described(error)) from error

    async def _keep_connected(self) -> None:
        """Connect for ever. The client reconnects by itself until the server refuses it; then a new one takes over."""
        while True:
            client = NatsClient(self._names)
            closed = asyncio.Event()

            async def on_connected() -> None:
                self.connections += 1
                log.info("bus_connected", url=self._shown, connections=self.connections)
                await self._notify()

            async def on_disconnected() -> None:
                if not self._closing:
                    log.warning("bus_disconnected", url=self._shown)
                await self._notify()

            async def on_closed(closed: asyncio.Event = closed) -> None:
                closed.set()
                await self._notify()

            async def on_error(error: Exception) -> None:
                log.debug("bus_error", problem=described(error))

            self._client = client
            try:
                user, password = self._access.credentials()
                await client.connect(
                    self._url,
                    user=user,
                    password=password,
                    tls=self._access.context(),
                    name=self._name or None,
                    connect_timeout=self._limits.connect_seconds,  # type: ignore[arg-type]  # seconds, also in parts
                    reconnect_time_wait=self._limits.reconnect_seconds,  # type: ignore[arg-type]  # the same
                    max_reconnect_attempts=-1,
                    ping_interval=self._limits.ping_seconds,  # type: ignore[arg-type]  # the same
                    error_cb=on_error,
                    disconnected_cb=on_disconnected,
                    reconnected_cb=on_connected,
                    closed_cb=on_closed,
                )
                await on_connected()
                await closed.wait()
            except (nats.errors.Error, OSError) as error:
                log.info("bus_connect_failed", url=self._shown, problem=described(error))
            await asyncio.sleep(self._limits.reconnect_seconds)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def subject_matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with NATS's wildcards (`*` is one part, `>` at the end is one or more)."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        if len(found) < len(wanted):
            return False
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))


async def _handle(message: Msg, handler: Handler, limits: ConsumerLimits) -> None:
    metadata = message.metadata
    delivered = Message(
        subject=message.subject,
        payload=message.data,
        message_id=(message.headers or {}).get(MESSAGE_ID_HEADER, ""),
        sequence=metadata.sequence.stream,
        deliveries=metadata.num_delivered,
    )
    try:
        await handler(delivered)
    except Exception:
        about = dataclasses.asdict(delivered) | {"payload": len(delivered.payload)}
        if delivered.deliveries >= limits.deliveries_max:
            log.exception("bus_message_given_up", **about)
            await message.term()
            return
        log.exception("bus_message_failed", **about)
        step = min(delivered.deliveries, len(limits.backoff_seconds)) - 1
        await message.nak(delay=limits.backoff_seconds[step])
        return
    await message.ack()


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that hold no address, a port that is none
        return False


def _missing(wanted: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Those of the subjects that none of the stream's covers."""
    return [subject for subject in wanted if not any(subject_matches(each, subject) for each in subjects)]


def _away(url: str, problem: str) -> Unavailable:
    return Unavailable(Reason.BUS_UNAVAILABLE, f"the event bus at {url} does not answer: {problem}", {"url": url})
