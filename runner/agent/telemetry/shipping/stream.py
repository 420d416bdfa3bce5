"""One stream to metrics, from its first opening to its end: all writers in turns, none waiting for another."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, TypeAlias

import grpc
from sihlai.error.v1 import error_reason_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.shipping.phase import OPEN, Phase
from runner.agent.telemetry.shipping.writer import Writer
from services.chassis.log import get_logger

log = get_logger(__name__)

MESSAGES_A_TURN_MAX = 16
"""What a writer may send before the next one has its turn."""
WRITERS_A_STREAM_MAX = 200
"""Open at a time; metrics takes a few more."""

Call: TypeAlias = "grpc.aio.StreamStreamCall[ingest.IngestRequest, ingest.IngestResponse]"


class Fleet(Protocol):
    """What a stream asks of who has the writers."""

    def writers(self) -> list[Writer]:
        """All that are not finished, the ones first that are being written."""

    def token(self, key: AttemptKey) -> str | None:
        """The newest token of an attempt."""

    def token_refused(self, key: AttemptKey, token: str) -> None:
        """This token does not hold."""

    def writer_finished(self, writer: Writer) -> None:
        """All of the writer is stored, and its end recorded."""

    async def woken(self, seconds_max: float) -> None:
        """Wait until something happens, or for so long."""

    def notify(self) -> None:
        """Something happens."""


class Stream:
    """One stream. `progressed` tells whether anything was stored on it."""

    def __init__(self, fleet: Fleet, call: Call, *, answer_seconds_max: float) -> None:
        self.progressed = False
        self._fleet = fleet
        self._call = call
        self._answer_seconds_max = answer_seconds_max
        self._writers: dict[int, Writer] = {}
        self._numbers_used = 0
        self._credit_bytes = 0
        self._going_away = False
        self._heard_at = time.monotonic()

    async def send(self, receiving: asyncio.Task[None]) -> None:
        """Send until metrics goes away, is silent for too long, nothing is left that may be sent, or receiving ends."""
        while not receiving.done() and not self._going_away:
            sent = False
            for writer in self._fleet.writers():
                sent = await self._send_some(writer) or sent
            if sent:
                continue
            if not any(writer.phase in OPEN or self._may_open(writer) for writer in self._fleet.writers()):
                return
            waiting = self._credit_bytes <= 0 or any(writer.waits for writer in self._writers.values())
            silent_seconds = time.monotonic() - self._heard_at
            if waiting and silent_seconds > self._answer_seconds_max:
                log.warning("ingest_silent", seconds=round(silent_seconds))
                return
            await self._fleet.woken(self._answer_seconds_max)  # the end of receiving wakes too

    async def receive(self) -> None:
        """Take in what metrics says until the stream ends."""
        try:
            async for response in self._call:
                self._heard_at = time.monotonic()
                self._credit_bytes += response.credit_bytes
                self._going_away = self._going_away or response.going_away
                for state in response.writers:
                    self._take_in(state)
                self._fleet.notify()
        finally:
            self._fleet.notify()

    def close(self) -> None:
        """The stream is over."""
        for writer in self._writers.values():
            writer.stream_ended()

    def _may_open(self, writer: Writer) -> bool:
        return writer.openable and self._fleet.token(writer.spool.key) is not None

    async def _send_some(self, writer: Writer) -> bool:
        """Send what this writer may send in one turn; whether that was anything."""
        if self._credit_bytes <= 0:
            return False
        if writer.phase not in OPEN:
            return self._may_open(writer) and await self._open(writer)
        if writer.number not in self._writers:
            return False
        token = self._fleet.token(writer.spool.key)
        sent = False
        if token is not None and token != writer.token and writer.phase is not Phase.OPENING:
            # While it is being opened, a refusal would be taken for one of the newer token.
            await self._write(writer.renew(token))
            sent = True
        for _ in range(MESSAGES_A_TURN_MAX):
            request = writer.next_request(self._credit_bytes)
            if request is None:
                break
            await self._write(request)
            sent = True
        return sent

    async def _open(self, writer: Writer) -> bool:
        if sum(each.phase in OPEN for each in self._writers.values()) >= WRITERS_A_STREAM_MAX:
            return False
        token = self._fleet.token(writer.spool.key)
        assert token is not None, "it may be opened"
        number = writer.number
        if self._writers.get(number) is not writer or not writer.number_free:
            if self._writers.get(number) is writer:
                del self._writers[number]  # what is still said of it is about what is over
            self._numbers_used += 1
            number = self._numbers_used
        self._writers[number] = writer
        await self._write(writer.open(number, token))
        return True

    async def _write(self, request: ingest.IngestRequest) -> None:
        # Only rows wait until there is credit for all of them; what is about the writer itself is small.
        self._credit_bytes -= request.ByteSize()
        await self._call.write(request)

    def _take_in(self, state: ingest.WriterState) -> None:
        writer = self._writers.get(state.writer)
        if writer is None:
            return
        if state.HasField("refusal") and state.refusal.reason == error_reason_pb2.ERROR_REASON_TOKEN_INVALID:
            self._fleet.token_refused(writer.spool.key, writer.token)
        if writer.take_in(state):
            self.progressed = True
        if writer.finished:
            self._writers.pop(state.writer, None)
            self._fleet.writer_finished(writer)
