"""What tests of metrics talk with: a server process, and a client of each of its services."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from sihlai.error.v1 import error_reason_pb2
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import ingest_service_pb2, ingest_service_pb2_grpc, metrics_service_pb2_grpc, series_pb2

from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import Reason, SihlaiError
from services.chassis.leash import on_leash
from services.chassis.status import error_from_rpc
from services.metrics.point import series_id_of
from tests import tokens
from tests.metrics.job_book import Job

WAIT_SECONDS = 60.0
POINTS = ingest_service_pb2.WRITER_KIND_POINTS
LINES = ingest_service_pb2.WRITER_KIND_LINES
CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition, at most `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        pause.wait(0.02)


@contextmanager
def refused() -> Iterator[list[SihlaiError]]:
    """Take the error of a call that must fail."""
    errors: list[SihlaiError] = []
    try:
        yield errors
    except grpc.RpcError as error:
        errors.append(error_from_rpc(error))
    assert errors, "the call was not refused"


@dataclass
class Metrics:
    """The server process, and the stubs of its services."""

    folder: Path
    scheduler_address: str
    flags: tuple[str, ...] = ()
    clickhouse: str = ""
    """An engine of its own, in the folder, where this is empty."""
    program: tuple[str, ...] = ("services.metrics",)
    """The module that serves, and arguments before the service's own."""
    process: subprocess.Popen[bytes] | None = None
    address: str = ""
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def key_file(self) -> Path:
        return self.folder / "token.pem"

    @property
    def signer(self) -> TokenSigner:
        return TokenSigner.from_file(self.key_file)

    @cached_property
    def access(self) -> str:
        """A user's token."""
        return tokens.token(self.key_file)

    @cached_property
    def runner_access(self) -> str:
        """The token of a runner."""
        return tokens.runner_token(self.key_file)

    def start(self) -> None:
        """Start, or start again at the same address and on the same data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        assert self.signer
        address_file = self.folder / "address"
        address_file.unlink(missing_ok=True)
        log = (self.folder / "server.log").open("ab")
        command = on_leash(
            [
                *(sys.executable, "-m", *self.program),
                *("--listen-address", self.address or "127.0.0.1:0"),
                *("--address-file", str(address_file)),
                *("--clickhouse", self.clickhouse or f"chdb://{self.folder / 'data'}"),
                *("--scheduler-address", self.scheduler_address),
                *("--token-public-keys", str(self.folder / "token.pub.pem")),
                *self.flags,
            ]
        )
        self.process = subprocess.Popen(command, stderr=log, stdout=log)
        log.close()
        until(lambda: address_file.exists() or self.process_ended(), "the server's address", 60)
        assert not self.process_ended(), self.log_text()[-3000:]
        self.address = address_file.read_text().strip()

    def process_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def log_text(self) -> str:
        return (self.folder / "server.log").read_text()

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Stop in order; the exit status."""
        for channel in self.channels:
            channel.close()
        self.channels.clear()
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(WAIT_SECONDS)

    def channel(self, *, of_runner: bool = False, usual: bool = False) -> grpc.Channel:
        """`usual`: as a client opens it that sets nothing, and takes messages of 4 MiB."""
        opened = grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS[:1] if usual else CHANNEL_OPTIONS)
        channel = tokens.carrying(opened, self.runner_access if of_runner else self.access)
        self.channels.append(channel)
        return channel

    def metrics(self) -> metrics_service_pb2_grpc.MetricsServiceStub:
        return metrics_service_pb2_grpc.MetricsServiceStub(self.channel())

    def logs(self) -> log_service_pb2_grpc.LogServiceStub:
        return log_service_pb2_grpc.LogServiceStub(self.channel())

    def ingest(self) -> IngestClient:
        return IngestClient(self)

    def token(
        self,
        uid: str,
        *,
        attempt: int = 1,
        epoch: int | None = None,
        from_step: int = 0,
        seconds: float = 600,
        drain_only: bool = False,
    ) -> str:
        return self.signer.sign(
            WriteToken(
                project="digits",
                job_uid=uid,
                attempt=attempt,
                epoch=attempt if epoch is None else epoch,
                from_step=from_step,
                drain_only=drain_only,
                expires_at=(datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0),
            )
        )


def definition(
    uid: str, name: str, context: Mapping[str, str] | None = None, unit: str = ""
) -> series_pb2.SeriesDefinition:
    series_id = series_id_of(uid, name, (context or {}).items())
    return series_pb2.SeriesDefinition(series_id=series_id, name=name, context=context or {}, unit=unit)


def columns(
    uid: str, name: str, steps: Iterable[int], values: Iterable[float], context: Mapping[str, str] | None = None
) -> series_pb2.PointColumns:
    steps = list(steps)
    return series_pb2.PointColumns(
        series_id=definition(uid, name, context).series_id,
        steps=steps,
        times_unix_us=[1_700_000_000_000_000 + step * 1000 for step in steps],
        values=list(values),
    )


class Refused(Exception):  # noqa: N818  # an answer, not a fault
    """The server has refused a writer."""

    def __init__(self, refusal: ingest_service_pb2.WriterRefusal) -> None:
        super().__init__(f"{error_reason_pb2.ErrorReason.Name(refusal.reason)}: {refusal.message}")
        self.refusal = refusal

    @property
    def reason(self) -> Reason:
        return reason_of(self.refusal)


def reason_of(refusal: ingest_service_pb2.WriterRefusal) -> Reason:
    return Reason(error_reason_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"))


class IngestClient:
    """One Ingest stream. `send` does not wait; `wait_stored` does. What is waited for sees whole answers."""

    def __init__(self, server: Metrics) -> None:
        self._server = server
        self._requests: queue.SimpleQueue[ingest_service_pb2.IngestRequest | None] = queue.SimpleQueue()
        stub = ingest_service_pb2_grpc.IngestServiceStub(server.channel(of_runner=True))
        self._call = stub.Ingest(iter(self._requests.get, None))
        self._hears = threading.Lock()
        self.stored: dict[int, int] = {}
        self.finished: dict[int, bool] = {}
        self.refusals: dict[int, ingest_service_pb2.WriterRefusal] = {}
        self.refusals_told = 0
        self.credit_bytes = 0
        """What may be sent still."""
        self.going_away = False
        self.error: SihlaiError | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def send(self, request: ingest_service_pb2.IngestRequest) -> None:
        with self._hears:
            self.credit_bytes -= request.ByteSize()
        self._requests.put(request)

    def open(
        self,
        writer: int,
        token: str,
        *,
        kind: ingest_service_pb2.WriterKind.ValueType = POINTS,
        first_sequence: int = 1,
        series: Sequence[series_pb2.SeriesDefinition] = (),
        rank: int = 0,
        protocol_version: int = 1,
    ) -> int:
        """Open a writer; what is stored of it. Raises Refused."""
        with self._hears:
            self.stored.pop(writer, None)
            self.refusals.pop(writer, None)
        opening = ingest_service_pb2.OpenWriter(
            token=token,
            kind=kind,
            rank=rank,
            protocol_version=protocol_version,
            first_sequence=first_sequence,
            series=series,
        )
        self.send(ingest_service_pb2.IngestRequest(writer=writer, open=opening))
        self.wait(lambda: writer in self.stored, "the writer to open")
        self._raise_refusal(writer)
        return self.stored[writer]

    def points(
        self,
        writer: int,
        sequence: int,
        *parts: series_pb2.PointColumns,
        new_series: Sequence[series_pb2.SeriesDefinition] = (),
    ) -> None:
        batch = ingest_service_pb2.PointBatch(sequence=sequence, columns=parts, new_series=new_series)
        self.send(ingest_service_pb2.IngestRequest(writer=writer, points=batch))

    def lines(self, writer: int, sequence: int, first_number: int, texts: Sequence[str], **changes: Any) -> None:
        values: dict[str, Any] = {
            "times_unix_us": [1_700_000_000_000_000 + (first_number + i) * 1000 for i in range(len(texts))],
            "levels": [2] * len(texts),
            "sources": ["trainer"] * len(texts),
            "streams": [2] * len(texts),
            "continued": [False] * len(texts),
        }
        batch = ingest_service_pb2.LineBatch(
            sequence=sequence, first_number=first_number, lines=texts, **{**values, **changes}
        )
        self.send(ingest_service_pb2.IngestRequest(writer=writer, lines=batch))

    def renew(self, writer: int, token: str) -> None:
        self.send(ingest_service_pb2.IngestRequest(writer=writer, renew=ingest_service_pb2.RenewToken(token=token)))

    def finish(self, writer: int, last_sequence: int, *, rows_dropped: int = 0) -> None:
        finish = ingest_service_pb2.FinishWriter(last_sequence=last_sequence, rows_dropped=rows_dropped)
        self.send(ingest_service_pb2.IngestRequest(writer=writer, finish=finish))
        self.wait(lambda: self.finished.get(writer, False) or writer in self.refusals, "the finish")
        self._raise_refusal(writer)

    def wait_stored(self, writer: int, sequence: int, seconds: float = WAIT_SECONDS) -> None:
        def done() -> bool:
            return self.stored.get(writer, 0) >= sequence or writer in self.refusals

        self.wait(done, f"message {sequence} to be stored", seconds)
        if self.stored.get(writer, 0) < sequence:
            self._raise_refusal(writer)

    def wait_refusal(self, writer: int) -> ingest_service_pb2.WriterRefusal:
        self.wait(lambda: writer in self.refusals, f"writer {writer} to be refused")
        return self.refusals[writer]

    def _raise_refusal(self, writer: int) -> None:
        if (refusal := self.refusals.get(writer)) is not None:
            raise Refused(refusal)

    def wait_error(self) -> SihlaiError:
        until(lambda: self.ended, "the stream to end")
        assert self.error is not None, "the stream ended without an error"
        return self.error

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        def holds() -> bool:
            with self._hears:
                return condition()

        until(lambda: holds() or self.ended, what, seconds)
        if not holds():
            raise self.error or AssertionError(f"the stream ended before {what}")

    def half_close(self) -> None:
        """Nothing more will be sent; the server ends the stream when everything is stored."""
        self._requests.put(None)
        until(lambda: self.ended, "the stream to end")

    def close(self) -> None:
        """Break off."""
        self._call.cancel()
        self._requests.put(None)
        self._thread.join(WAIT_SECONDS)

    def _receive(self) -> None:
        try:
            for response in self._call:
                with self._hears:
                    self._hear(response)
        except grpc.RpcError as error:
            self.error = error_from_rpc(error)
        self.ended = True

    def _hear(self, response: ingest_service_pb2.IngestResponse) -> None:
        self.credit_bytes += response.credit_bytes
        self.going_away |= response.going_away
        for state in response.writers:
            if state.HasField("refusal"):
                self.refusals_told += 1
                self.refusals[state.writer] = state.refusal
            self.finished[state.writer] = state.finished
            self.stored[state.writer] = state.stored_sequence


def tail_all(
    stub: log_service_pb2_grpc.LogServiceStub, job: Job, **request: Any
) -> list[log_service_pb2.TailLogsResponse]:
    """All answers of a tail that does not follow, or that ends."""
    return list(stub.TailLogs(log_service_pb2.TailLogsRequest(job=job.name, **request), timeout=WAIT_SECONDS))


def texts(responses: Iterable[log_service_pb2.TailLogsResponse]) -> list[str]:
    return [line.line for response in responses for line in response.batch.lines]
