"""Writers on the wire: each numbers its messages, and keeps one until it is told that it is stored.

What a message holds follows from its number, so the history of a writer is two numbers: what it has made, and what was
acknowledged. Whatever the service says that cannot be true is a finding.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc
from sihlai.error.v1 import error_reason_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import ingest_service_pb2_grpc

from services.chassis.errors import SihlaiError
from services.chassis.status import error_from_rpc
from tests.metrics.client import CHANNEL_OPTIONS, LINES, POINTS, Metrics, columns, definition
from tests.metrics.job_book import Job
from tests.tokens import carrying

SERIES = "chaos/rows"
IN_FLIGHT_MAX = 400
"""Messages of a writer that are made and not stored."""
TURN_SECONDS = 0.01
MESSAGES_A_TURN_MAX = 8
PAUSE_SECONDS_MAX = 0.2


@dataclass(eq=False, kw_only=True)
class WireWriter:
    """One writer. It outlives streams, and servers."""

    job: Job
    attempt: int
    kind: ingest.WriterKind.ValueType
    rows_a_message: int
    made: int = 0
    sent: int = 0
    acknowledged: int = 0
    opened: bool = False
    open_at: float = 0.0
    """When to open it, or to open it again."""
    opening: bool = False
    finish_sent: bool = False
    finished: bool = False
    refusals: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.job.uid}/{self.attempt}/0/{'points' if self.kind == POINTS else 'lines'}"

    @property
    def rows(self) -> int:
        return self.made * self.rows_a_message

    def message(self, sequence: int) -> ingest.IngestRequest:
        """Rows have numbers from 0 on, in the order in which they were made."""
        numbers = range((sequence - 1) * self.rows_a_message, sequence * self.rows_a_message)
        if self.kind == POINTS:
            part = columns(self.job.uid, SERIES, numbers, [float(number) for number in numbers])
            return ingest.IngestRequest(points=ingest.PointBatch(sequence=sequence, columns=[part]))
        batch = ingest.LineBatch(
            sequence=sequence,
            first_number=numbers[0] + 1,
            times_unix_us=[1_700_000_000_000_000 + number for number in numbers],
            levels=[2] * len(numbers),
            sources=["trainer"] * len(numbers),
            streams=[2] * len(numbers),
            continued=[False] * len(numbers),
            lines=[f"row {number}" for number in numbers],
        )
        return ingest.IngestRequest(lines=batch)

    def lost_stream(self) -> None:
        self.opened = self.opening = self.finish_sent = False
        self.open_at = 0.0

    def take_in(self, state: ingest.WriterState, randomness: random.Random) -> None:
        """What the service says of it."""
        if state.HasField("refusal"):
            self.refusals += 1
            reason = error_reason_pb2.ErrorReason.Name(state.refusal.reason)
            if state.refusal.permanent:
                self.findings.append(
                    f"{self.name}: a good message was refused for good: {reason} {state.refusal.message}"
                )
            self.opened = self.opening = self.finish_sent = False
            self.open_at = time.monotonic() + randomness.uniform(0, PAUSE_SECONDS_MAX)
        if state.stored_sequence > self.made:
            self.findings.append(f"{self.name}: {state.stored_sequence} was acknowledged, but {self.made} is the last")
        if self.opening and not state.HasField("refusal"):
            self.opening, self.opened = False, True
            if state.stored_sequence < self.acknowledged:
                self.findings.append(
                    f"{self.name}: {self.acknowledged} was acknowledged, but an opening says {state.stored_sequence}"
                )
            self.sent = state.stored_sequence
        self.acknowledged = max(self.acknowledged, state.stored_sequence)
        self.finished = self.finished or (state.finished and self.finish_sent)


class WireClient:
    """A runner in short: one stream at a time, opened again after every end, until all its writers are finished."""

    def __init__(self, servers: Sequence[Metrics], writers: Sequence[WireWriter], randomness: random.Random) -> None:
        self.writers = list(writers)
        self._servers = list(servers)
        self._server = randomness.choice(self._servers)
        self._random = randomness
        self._numbers = dict(enumerate(self.writers, 1))
        self._producing = True
        self._left = threading.Event()
        self._move = threading.Event()
        self.ends: Counter[str] = Counter()
        """How its streams ended."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def move(self) -> None:
        """Break off the stream, and go on at some server."""
        self._move.set()

    def finish(self) -> None:
        """Make no more; send what is there, and the finish."""
        self._producing = False

    def leave(self) -> None:
        """Go away for good, without a word."""
        self._left.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def _done(self) -> bool:
        return self._left.is_set() or all(writer.finished for writer in self.writers)

    def _run(self) -> None:
        while not self._done:
            for writer in self.writers:
                writer.lost_stream()
            if self._move.is_set():
                self._move.clear()
                self._server = self._random.choice(self._servers)
            stream = _Stream(self._server)
            try:
                while not (self._done or self._move.is_set() or stream.ended):
                    self._turn(stream)
            finally:
                stream.close()
            self.ends[stream.reason] += 1
            self._left.wait(self._random.uniform(0, PAUSE_SECONDS_MAX))

    def _turn(self, stream: _Stream) -> None:
        for response in stream.responses(TURN_SECONDS):
            for state in response.writers:
                self._numbers[state.writer].take_in(state, self._random)
        for number, writer in self._numbers.items():
            if self._producing and writer.made - writer.acknowledged < IN_FLIGHT_MAX:
                writer.made += self._random.randrange(MESSAGES_A_TURN_MAX)
            self._send_some(stream, number, writer)

    def _send_some(self, stream: _Stream, number: int, writer: WireWriter) -> None:
        if stream.credit_bytes <= 0 or writer.finished:
            return
        if not writer.opened:
            if not writer.opening and time.monotonic() >= writer.open_at:
                writer.opening = True
                stream.send(number, self._opening(writer))
            return
        while writer.sent < writer.made:
            message = writer.message(writer.sent + 1)
            if not stream.has_credit(message):
                return
            stream.send(number, message)
            writer.sent += 1
        if not self._producing and not writer.finish_sent and writer.acknowledged >= writer.made:
            writer.finish_sent = True
            stream.send(number, ingest.IngestRequest(finish=ingest.FinishWriter(last_sequence=writer.made)))

    def _opening(self, writer: WireWriter) -> ingest.IngestRequest:
        opening = ingest.OpenWriter(
            token=self._server.token(writer.job.uid, attempt=writer.attempt),
            kind=writer.kind,
            protocol_version=1,
            first_sequence=writer.acknowledged + 1,
            series=[definition(writer.job.uid, SERIES)] if writer.kind == POINTS else [],
        )
        return ingest.IngestRequest(open=opening)


class _Stream:
    """One Ingest stream, within its credit."""

    def __init__(self, server: Metrics) -> None:
        self.credit_bytes = 0
        self.ended = False
        self.error: SihlaiError | None = None
        self._inbox: queue.SimpleQueue[ingest.IngestResponse | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[ingest.IngestRequest | None] = queue.SimpleQueue()
        opened = grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS)
        self._channel = carrying(opened, server.runner_access)
        stub = ingest_service_pb2_grpc.IngestServiceStub(self._channel)
        self._call = stub.Ingest(iter(self._outbox.get, None))
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def responses(self, seconds: float) -> Iterator[ingest.IngestResponse]:
        """What has come, and what comes within this time."""
        try:
            found = self._inbox.get(timeout=seconds)
            while True:
                if found is None:
                    self.ended = True
                    return
                self.credit_bytes += found.credit_bytes
                yield found
                found = self._inbox.get_nowait()
        except queue.Empty:
            return

    def has_credit(self, request: ingest.IngestRequest) -> bool:
        return request.ByteSize() + 8 <= self.credit_bytes

    def send(self, number: int, request: ingest.IngestRequest) -> None:
        request.writer = number
        self.credit_bytes -= request.ByteSize()
        self._outbox.put(request)

    def close(self) -> None:
        self._call.cancel()
        self._outbox.put(None)
        self._thread.join(10)
        self._channel.close()

    @property
    def reason(self) -> str:
        return self.error.reason.value if self.error is not None else ""

    def _receive(self) -> None:
        try:
            for response in self._call:
                self._inbox.put(response)
        except grpc.RpcError as error:
            self.error = error_from_rpc(error)
        self._inbox.put(None)


def pair_of_writers(job: Job, *, attempt: int = 1, rows_a_message: int = 5) -> list[WireWriter]:
    """A writer of points and one of lines."""
    return [WireWriter(job=job, attempt=attempt, kind=kind, rows_a_message=rows_a_message) for kind in (POINTS, LINES)]
