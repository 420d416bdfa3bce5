"""All spools of a runner on their way into metrics, on one stream, until they are stored.

A spool lets go of what is acknowledged and of nothing else. The metrics service may die at any moment: the next stream
opens every writer again, is told what is stored, and goes on with the next record. Nothing here ever gives up; a spool
leaves by being stored to its end, or because the scheduler says that nobody wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import grpc
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import ingest_service_pb2_grpc

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.shipping.stream import Stream
from runner.agent.telemetry.shipping.writer import ShippingLimits, Writer
from runner.agent.telemetry.spool.attempt_spool import Spool
from services.chassis.backoff import Backoff
from services.chassis.log import get_logger
from services.chassis.rpc import error_from_rpc

log = get_logger(__name__)

END_SECONDS = 2.0
"""How long metrics may take to end a stream on which nothing is left to do."""
TOKEN_SECONDS_MIN = 60.0
"""A new token is not asked for sooner than this, whatever the clocks of the two machines say."""
KINDS = (ingest.WRITER_KIND_POINTS, ingest.WRITER_KIND_LINES)


@dataclass(frozen=True, kw_only=True)
class Token:
    """A right to write one attempt's points and lines."""

    text: str
    expire_time: datetime


@dataclass(frozen=True, kw_only=True)
class _HeldToken:
    text: str
    renew_at: float
    """By the monotonic clock: what somebody does to the other one meanwhile changes nothing."""


class Shipper:
    """All spools of this runner. `on_change` is called when a spool is gone or a token is wanted."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        limits: ShippingLimits,
        randomness: random.Random,
        now: Callable[[], datetime],
        on_change: Callable[[], None],
    ) -> None:
        self._stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        self._limits = limits
        self._random = randomness
        self._now = now
        self._on_change = on_change
        self._spools: dict[AttemptKey, Spool] = {}
        self._writers: dict[AttemptKey, tuple[Writer, Writer]] = {}
        self._tokens: dict[AttemptKey, _HeldToken] = {}
        self._wake = asyncio.Event()
        self._undeleted: deque[Spool] = deque()
        """Those that nobody needs any more, and that could not be deleted: threads share it."""

    def add(self, spool: Spool) -> None:
        """Send this spool until everything in it is stored; then its folder is deleted."""
        points, lines = (
            Writer(
                spool,
                kind,
                limits=self._limits,
                randomness=self._random,
                now_unix_us=lambda: round(self._now().timestamp() * 1e6),
                on_change=self.notify,
            )
            for kind in KINDS
        )
        points.sibling, lines.sibling = lines, points
        self._spools[spool.key] = spool
        self._writers[spool.key] = (points, lines)
        self.notify()

    def drop(self, key: AttemptKey) -> None:
        """Nobody wants the spool any more: delete it, unless it is still being written."""
        spool = self._spools.get(key)
        if spool is not None and spool.closed:
            log.warning("spool_dropped", attempt=str(key))
            self._forget(spool)

    def set_token(self, key: AttemptKey, token: Token) -> None:
        """Use this token, unless there is one that holds for long enough; an open writer is told."""
        held = self._tokens.get(key)
        if key in self._spools and (held is None or held.renew_at <= time.monotonic()):
            lives_seconds = (token.expire_time - self._now() - self._limits.token_renewal).total_seconds()
            renew_at = time.monotonic() + max(TOKEN_SECONDS_MIN, lives_seconds)
            self._tokens[key] = _HeldToken(text=token.text, renew_at=renew_at)
            self.notify()

    def tokens_wanted(self) -> list[Spool]:
        """The spools that cannot be sent, or not for long, because their token is missing or about to end."""
        now = time.monotonic()
        return [
            spool for key, spool in self._spools.items() if key not in self._tokens or self._tokens[key].renew_at <= now
        ]

    @property
    def empty(self) -> bool:
        """Whether no spool is left."""
        return not self._spools

    def sync(self) -> None:
        """Make all spools survive a loss of power, and try again to delete what was left; may run in another thread."""
        for spool in list(self._spools.values()):
            if not spool.closed:
                spool.sync()
        for _ in range(len(self._undeleted)):
            self._delete(self._undeleted.popleft())

    async def run(self) -> None:
        """Send for ever, until cancelled."""
        limits = self._limits
        backoff = Backoff(
            seconds_first=limits.reconnect_seconds_first,
            seconds_max=limits.reconnect_seconds_max,
            randomness=self._random,
        )
        while True:
            await self._something_to_send()
            if await self._serve_stream():
                backoff.reset()
            await asyncio.sleep(backoff.next_seconds())

    async def _something_to_send(self) -> None:
        """Wait until a writer may be opened."""
        while not any(writer.openable and writer.spool.key in self._tokens for writer in self.writers()):
            pauses = [writer.pause_seconds for writer in self.writers() if writer.pause_seconds]
            await self.woken(min(pauses, default=self._limits.answer_seconds_max))

    async def _serve_stream(self) -> bool:
        """One stream until it fails, metrics goes away, or nothing is left to send; whether anything was stored."""
        call = self._stub.Ingest()
        stream = Stream(self, call, answer_seconds_max=self._limits.answer_seconds_max)
        receiving = asyncio.create_task(stream.receive())
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: `receiving` knows why
                await stream.send(receiving)
                await call.done_writing()
            await asyncio.wait({receiving}, timeout=END_SECONDS)
            if receiving.done():
                receiving.result()
        except grpc.RpcError as rpc_error:
            error = error_from_rpc(rpc_error)
            log.warning("ingest_stream_ended", reason=error.reason.value, problem=error.message)
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
            call.cancel()
            stream.close()
        return stream.progressed

    # What a stream asks of the shipper.

    def writers(self) -> list[Writer]:
        """All that are not finished, the ones first that are being written."""
        spools = sorted(self._spools.values(), key=lambda spool: spool.closed)
        return [writer for spool in spools for writer in self._writers[spool.key] if not writer.finished]

    def token(self, key: AttemptKey) -> str | None:
        """The newest token of an attempt."""
        held = self._tokens.get(key)
        return held.text if held is not None else None

    def token_refused(self, key: AttemptKey, token: str) -> None:
        """This token does not hold."""
        held = self._tokens.get(key)
        if held is not None and held.text == token:
            del self._tokens[key]
            self._on_change()

    def writer_finished(self, writer: Writer) -> None:
        """All of the writer is stored, and its end recorded."""
        spool = writer.spool
        if self._spools.get(spool.key) is spool and writer.sibling.finished and spool.closed:
            log.info("spool_drained", attempt=str(spool.key))
            self._forget(spool)

    async def woken(self, seconds_max: float) -> None:
        """Wait until something happens, for at most so long; a pause that ends happens too."""
        pauses = [writer.pause_seconds for writer in self.writers() if writer.pause_seconds]
        with contextlib.suppress(TimeoutError):  # wait_for may swallow a cancellation
            async with asyncio.timeout(min([seconds_max, *pauses])):
                await self._wake.wait()
        self._wake.clear()

    def notify(self) -> None:
        """Something was appended, answered or closed."""
        self._wake.set()

    def _forget(self, spool: Spool) -> None:
        for writer in self._writers.pop(spool.key):
            writer.close()
        self._spools.pop(spool.key, None)
        self._tokens.pop(spool.key, None)
        spool.closed = True
        self._delete(spool)
        self._on_change()

    def _delete(self, spool: Spool) -> None:
        def delete() -> None:
            if not spool.delete():
                self._undeleted.append(spool)

        spool.disk.writing.post(delete)
