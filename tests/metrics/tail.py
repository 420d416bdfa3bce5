"""A tail that is read beside the test, and lines for it."""

from __future__ import annotations

import threading
from typing import Any

import grpc
from sihlai.logs.v1 import log_service_pb2

from services.chassis.errors import SihlaiError
from services.chassis.status import error_from_rpc
from tests.metrics.client import WAIT_SECONDS, IngestClient, Metrics, until
from tests.metrics.job_book import Job


class Tail:
    """A tail that follows, read beside the test."""

    def __init__(self, server: Metrics, job: Job, **request: Any) -> None:
        call = server.logs().TailLogs(
            log_service_pb2.TailLogsRequest(job=job.name, follow=True, **request), timeout=WAIT_SECONDS
        )
        self._call = call
        self.lines: list[str] = []
        self.cursor = ""
        self.caught_up = False
        self.heartbeats = 0
        self.ended: log_service_pb2.LogEnded | None = None
        self.error: SihlaiError | None = None
        self.closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def wait_lines(self, count: int) -> None:
        until(lambda: len(self.lines) >= count or self.closed, f"{count} lines, {len(self.lines)} are here")
        assert len(self.lines) >= count, self.error

    def wait_caught_up(self) -> None:
        until(lambda: self.caught_up or self.closed, "the tail to catch up")
        assert self.caught_up, self.error

    def wait_ended(self) -> log_service_pb2.LogEnded:
        until(lambda: self.closed, "the tail to end")
        assert self.ended is not None, self.error
        return self.ended

    def close(self) -> None:
        self._call.cancel()
        until(lambda: self.closed, "the tail to close")

    def _read(self) -> None:
        try:
            for response in self._call:
                self.lines += [line.line for line in response.batch.lines]
                self.cursor = response.cursor
                self.caught_up |= response.HasField("caught_up")
                self.heartbeats += response.HasField("heartbeat")
                if response.HasField("ended"):
                    self.ended = response.ended
        except grpc.RpcError as error:
            self.error = error_from_rpc(error)
        self.closed = True


def write(client: IngestClient, sequence: int, lines: list[str], *, writer: int = 1, **changes: Any) -> None:
    """Write a message and wait until it is stored; all messages of a writer have as many lines."""
    client.lines(writer, sequence, (sequence - 1) * len(lines) + 1, lines, **changes)
    client.wait_stored(writer, sequence)
