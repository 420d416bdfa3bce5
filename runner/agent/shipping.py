"""Sends what the spools hold to metrics, on one stream for all writers, until it is stored.

A spool lets go of what is acknowledged and of nothing else. The metrics service may die at any moment: the next stream
opens every writer again, is told what is stored, and goes on with the next record. Nothing here ever gives up; a spool
leaves by being stored to its end, or because the scheduler says that nobody wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

import grpc
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import ingest_service_pb2_grpc

from runner.agent.backoff import Backoff
from runner.agent.decision import AttemptKey
from runner.agent.recorder import Spool
from runner.agent.spool import Record, SpoolReader, WriterSpool
from services.chassis.errors import Reason, SihlaiError
from services.chassis.log import get_logger
from services.chassis.rpc import error_from_rpc

log = get_logger(__name__)

PROTOCOL_VERSION = 1
RECORDS_A_TURN_MAX = 16
"""What a writer may send before the next one has its turn."""
SPOOLS_A_STREAM_MAX = 100
"""The server takes so many writers on one stream, and each spool has two."""
END_SECONDS = 2.0
"""How long the server may take to end a stream on which nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class ShippingLimits:
    """Waits of shipping; the configuration has a setting for each."""

    reconnect_seconds_first: float
    reconnect_seconds_max: float
    token_renewal: timedelta
    """A token that ends sooner than this is to be renewed."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A right to write one attempt's points and lines."""

    text: str
    expire_time: datetime


_Call: TypeAlias = "grpc.aio.StreamStreamCall[ingest.IngestRequest, ingest.IngestResponse]"


class SequenceBroken(Exception):  # noqa: N818  # a state of the spool's disk
    """A record is missing in the middle of a spool: the writer is opened again behind the gap."""


class Shipper:
    """All spools of this runner on their way. `on_change` is called when a spool is gone or a token is wanted."""

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
        self._tokens: dict[AttemptKey, Token] = {}
        self._wake = asyncio.Event()
        self._progressed = False

    def add(self, spool: Spool) -> None:
        """Send this spool until everything in it is stored; then its folder is deleted."""
        self._spools[spool.key] = spool
        self.notify()

    def drop(self, key: AttemptKey) -> None:
        """Nobody wants the spool any more: delete it, unless it is still being written."""
        spool = self._spools.get(key)
        if spool is not None and spool.closed:
            log.warning("spool_dropped", attempt=str(key))
            self._forget(spool)

    def set_token(self, key: AttemptKey, token: Token) -> None:
        """Use this token from now on; an open writer is told."""
        if key in self._spools and self._tokens.get(key) != token:
            self._tokens[key] = token
            self.notify()

    def notify(self) -> None:
        """Something was appended, or closed."""
        self._wake.set()

    def tokens_wanted(self) -> list[Spool]:
        """The spools that cannot be sent, or not for long, because their token is missing or about to end."""
        soon = self._now() + self._limits.token_renewal
        return [
            spool
            for key, spool in self._spools.items()
            if key not in self._tokens or self._tokens[key].expire_time <= soon
        ]

    @property
    def empty(self) -> bool:
        """Whether no spool is left."""
        return not self._spools

    def sync(self) -> None:
        """Make all spools survive a loss of power; may run in another thread."""
        for spool in list(self._spools.values()):
            if not spool.closed:
                spool.sync()

    async def run(self) -> None:
        """Send for ever, until cancelled."""
        limits = self._limits
        backoff = Backoff(
            seconds_first=limits.reconnect_seconds_first,
            seconds_max=limits.reconnect_seconds_max,
            randomness=self._random,
        )
        while True:
            spools = await self._spools_to_send()
            self._progressed = False
            try:
                await self._serve_stream()
            except grpc.RpcError as error:
                self._take_in_error(error_from_rpc(error), spools)
            except SequenceBroken as error:
                log.warning("ingest_stream_ended", problem=str(error))
            if self._progressed:
                backoff.reset()
            await asyncio.sleep(backoff.next_seconds())

    async def _spools_to_send(self) -> list[Spool]:
        """The spools with a token that holds; waits until there is one."""
        while True:
            self._wake.clear()
            if sendable := self.new_spools(set()):
                return sendable
            await self._wake.wait()

    def _take_in_error(self, error: SihlaiError, spools: list[Spool]) -> None:
        log.warning("ingest_stream_ended", reason=error.reason.value, problem=error.message)
        if error.reason is Reason.TOKEN_INVALID:  # of one writer, and the error does not say of which
            for spool in spools:
                self._tokens.pop(spool.key, None)
            self._on_change()

    async def _serve_stream(self) -> None:
        """One stream until it fails, the server goes away, or nothing is left to send."""
        call = self._stub.Ingest()
        stream = _Stream(self, call)
        receiving = asyncio.create_task(stream.receive())
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: `receiving` knows why
                await stream.send(receiving)
                await call.done_writing()
            await asyncio.wait({receiving}, timeout=END_SECONDS)
            if receiving.done():
                receiving.result()
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
            call.cancel()
            stream.close()

    # What a stream asks of the shipper.

    def new_spools(self, known: set[AttemptKey]) -> list[Spool]:
        """Spools that have a token and that the stream does not know, the one that is being written first.

        Whether a token still works is the server's to say: the two clocks may differ.
        """
        new = [spool for key, spool in self._spools.items() if key not in known and key in self._tokens]
        return sorted(new, key=lambda spool: spool.closed)[: SPOOLS_A_STREAM_MAX - len(known)]

    def token(self, key: AttemptKey) -> Token | None:
        """The newest token of an attempt; None where the spool was dropped."""
        return self._tokens.get(key)

    def progressed(self) -> None:
        """Something was stored."""
        self._progressed = True

    async def woken(self) -> None:
        """Wait until something happens."""
        await self._wake.wait()
        self._wake.clear()

    def finished(self, spool: Spool) -> None:
        """Everything in the spool is stored."""
        log.info("spool_drained", attempt=str(spool.key))
        self._forget(spool)

    def _forget(self, spool: Spool) -> None:
        self._spools.pop(spool.key, None)
        self._tokens.pop(spool.key, None)
        spool.delete()
        self._on_change()


class _Writer:
    """One writer on one stream."""

    def __init__(self, number: int, spool: Spool, kind: ingest.WriterKind.ValueType) -> None:
        self.number = number
        self.spool = spool
        self.kind = kind
        self.records: WriterSpool = spool.points if kind == ingest.WRITER_KIND_POINTS else spool.lines
        self.token: Token | None = None
        self.reader: SpoolReader | None = None
        """Present once the server has said what is stored."""
        self.sent = 0
        self.held_back: Record | None = None
        """Read from the spool, and waiting for credit."""
        self.finish_sent = False
        self.finished = False

    def open(self, token: Token) -> ingest.IngestRequest:
        self.token = token
        series = self.spool.series.values() if self.kind == ingest.WRITER_KIND_POINTS else ()
        return ingest.IngestRequest(
            writer=self.number,
            open=ingest.OpenWriter(
                token=token.text,
                rank=0,
                kind=self.kind,
                protocol_version=PROTOCOL_VERSION,
                first_sequence=self.records.first_sequence,
                series=series,
            ),
        )

    def opened(self, stored: int) -> None:
        """The server has everything up to `stored`; what lies between that and what is here is lost, and it knows."""
        self.records.release(stored)
        self.sent = max(stored, self.records.first_sequence - 1)
        self.reader = SpoolReader(self.records, after=self.sent)

    def next_request(self) -> ingest.IngestRequest | None:
        """The next record as a message; the same again until `sent_request`. Raises SequenceBroken at a gap."""
        assert self.reader is not None
        if self.held_back is None:
            self.held_back = self.reader.read()
        next_sequence = self.held_back.sequence if self.held_back is not None else self.records.last_sequence + 1
        if next_sequence != self.sent + 1:
            if self.records.stored < self.sent:
                return None  # what was sent before the gap must be stored first, or it would be sent for ever
            raise SequenceBroken(f"{self.spool.key} goes on with record {next_sequence} after {self.sent}")
        if self.held_back is None:
            return None
        request = ingest.IngestRequest(writer=self.number)
        if self.kind == ingest.WRITER_KIND_POINTS:
            request.points.ParseFromString(self.held_back.body)
        else:
            request.lines.ParseFromString(self.held_back.body)
        return request

    def sent_request(self) -> None:
        self.sent += 1
        self.held_back = None

    def renew(self, token: Token) -> ingest.IngestRequest:
        self.token = token
        return ingest.IngestRequest(writer=self.number, renew=ingest.RenewToken(token=token.text))

    @property
    def exhausted(self) -> bool:
        """Whether everything that is here was sent."""
        return self.reader is not None and self.sent >= self.records.last_sequence

    def finish(self) -> ingest.IngestRequest:
        self.finish_sent = True
        records = self.records
        message = ingest.FinishWriter(last_sequence=records.last_sequence, rows_dropped=records.rows_dropped)
        return ingest.IngestRequest(writer=self.number, finish=message)


class _Stream:
    """One stream, from its first open to its end."""

    def __init__(self, shipper: Shipper, call: _Call) -> None:
        self._shipper = shipper
        self._call = call
        self._writers: dict[int, _Writer] = {}
        self._credit_bytes = 0
        self._going_away = False
        self._known: set[AttemptKey] = set()

    def _add(self, spool: Spool) -> None:
        self._known.add(spool.key)
        for kind in (ingest.WRITER_KIND_POINTS, ingest.WRITER_KIND_LINES):
            number = len(self._known) * 2 + kind
            self._writers[number] = _Writer(number, spool, kind)

    async def send(self, receiving: asyncio.Task[None]) -> None:
        """Send until the server goes away, all spools are done, or receiving ends."""
        while not receiving.done() and not self._going_away:
            for spool in self._shipper.new_spools(self._known):
                self._add(spool)
            if not self._writers:
                return
            sent = False
            for writer in list(self._writers.values()):
                sent = await self._send_some(writer) or sent
            if not sent:
                await self._shipper.woken()  # the end of receiving wakes too

    async def receive(self) -> None:
        """Take in what the server says until the stream ends."""
        try:
            async for response in self._call:
                self._credit_bytes += response.credit_bytes
                self._going_away = self._going_away or response.going_away
                for state in response.writers:
                    self._take_in(state)
                self._shipper.notify()
        finally:
            self._shipper.notify()

    def close(self) -> None:
        """Let go of the files."""
        for writer in self._writers.values():
            if writer.reader is not None:
                writer.reader.close()

    async def _send_some(self, writer: _Writer) -> bool:
        """Send what this writer may send in one turn; whether that was anything."""
        token = self._shipper.token(writer.spool.key)
        if token is None:  # dropped
            self._writers.pop(writer.number, None)
            return False
        if self._credit_bytes <= 0:
            return False
        if writer.token is None:
            await self._write(writer.open(token))
            return True
        sent = False
        if token != writer.token:
            await self._write(writer.renew(token))
            sent = True
        if writer.reader is None:
            return sent
        for _ in range(RECORDS_A_TURN_MAX):
            request = writer.next_request()
            if request is None or request.ByteSize() > self._credit_bytes:
                break
            await self._write(request)
            writer.sent_request()
            sent = True
        if writer.exhausted and writer.spool.closed and not writer.finish_sent:
            await self._write(writer.finish())
            sent = True
        return sent

    async def _write(self, request: ingest.IngestRequest) -> None:
        # Only rows wait until there is credit for all of them; what is about the writer itself is small.
        self._credit_bytes -= request.ByteSize()
        await self._call.write(request)

    def _take_in(self, state: ingest.WriterState) -> None:
        writer = self._writers.get(state.writer)
        if writer is None:
            return
        if writer.reader is None:
            writer.opened(state.stored_sequence)
        elif state.stored_sequence > writer.records.stored:
            self._shipper.progressed()
        writer.records.release(state.stored_sequence)
        if state.finished and writer.spool.closed and state.stored_sequence >= writer.records.last_sequence:
            writer.finished = True
            self._shipper.progressed()
            self._finish(writer.spool)

    def _finish(self, spool: Spool) -> None:
        writers = [writer for writer in self._writers.values() if writer.spool is spool]
        if all(writer.finished for writer in writers):
            for writer in writers:
                del self._writers[writer.number]
                if writer.reader is not None:
                    writer.reader.close()
            self._shipper.finished(spool)
