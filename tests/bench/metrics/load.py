"""What writes in a benchmark: serialized messages, sent on one stream within its credit."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2, series_pb2

from tests.metrics.client import LINES, Metrics, definition, until
from tests.metrics.job_book import Job

SERIES = 20
START_UNIX_US = 1_700_000_000_000_000
STEP_US = 50_000
SECONDS_MAX = 600


def names(count: int = SERIES) -> list[str]:
    return [f"digits/train/metric_{number:02d}" for number in range(count)]


def columns_of(
    rng: np.random.Generator, sequence: int, points: int, series: int = SERIES
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Steps, times and values of each series in one message: noise of a float32 on curves, as losses are."""
    steps_a_message = points // series
    steps = np.arange((sequence - 1) * steps_a_message, sequence * steps_a_message, dtype=np.int64)
    times = START_UNIX_US + steps * STEP_US + rng.integers(0, 2_000, len(steps))
    for _ in range(series):
        values = (1 / (1 + steps / 1000) + rng.standard_normal(len(steps)) / 10).astype(np.float32)
        yield steps, times, values.astype(np.float64)


def requests_of(writer: int, job: Job, first: int, messages: int, points: int, series: int = SERIES) -> list[bytes]:
    """Messages of points, serialized beforehand: what is measured is the server."""
    rng = np.random.default_rng(writer)
    ids = [definition(job.uid, name).series_id for name in names(series)]
    found = []
    for sequence in range(first, first + messages):
        batch = ingest_service_pb2.PointBatch(sequence=sequence)
        for series_id, (steps, times, values) in zip(ids, columns_of(rng, sequence, points, series), strict=True):
            batch.columns.append(
                series_pb2.PointColumns(series_id=series_id, steps=steps, times_unix_us=times, values=values)
            )
        found.append(ingest_service_pb2.IngestRequest(writer=writer, points=batch).SerializeToString())
    return found


class Sender:
    """One stream of serialized requests, within its credit."""

    def __init__(self, server: Metrics) -> None:
        self.stored: dict[int, int] = {}
        self.stored_at: dict[tuple[int, int], float] = {}
        self._queue: deque[bytes] = deque()
        self._credit = 0
        self._changed = threading.Condition()
        self._closed = False
        self._call = server.channel(of_runner=True).stream_stream(
            "/sihlai.metrics.v1.IngestService/Ingest",
            request_serializer=bytes,
            response_deserializer=ingest_service_pb2.IngestResponse.FromString,
        )(self._requests())
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, requests: Sequence[bytes]) -> None:
        with self._changed:
            self._queue += requests
            self._changed.notify_all()

    def open(
        self, server: Metrics, writer: int, job: Job, *, lines: bool = False, series: int = SERIES, token: str = ""
    ) -> int:
        opening = ingest_service_pb2.OpenWriter(
            token=token or server.token(job.uid),
            kind=LINES if lines else ingest_service_pb2.WRITER_KIND_POINTS,
            protocol_version=1,
            first_sequence=1,
            series=[] if lines else [definition(job.uid, name) for name in names(series)],
        )
        self.send([ingest_service_pb2.IngestRequest(writer=writer, open=opening).SerializeToString()])
        until(lambda: writer in self.stored, "the writer to open")
        return self.stored[writer]

    def wait_stored(self, writer: int, sequence: int) -> None:
        until(lambda: self.stored.get(writer, 0) >= sequence, "the last message", SECONDS_MAX)

    @property
    def waits(self) -> bool:
        """Whether there is more to send than there is credit for."""
        with self._changed:
            return bool(self._queue) and self._credit < len(self._queue[0])

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _requests(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not self._closed and (not self._queue or self._credit < len(self._queue[0])):
                    self._changed.wait()
                if self._closed:
                    return
                request = self._queue.popleft()
                self._credit -= len(request)
            yield request

    def _receive(self) -> None:
        try:
            for response in self._call:
                now = time.perf_counter()
                with self._changed:
                    for state in response.writers:
                        self.stored[state.writer] = state.stored_sequence
                        self.stored_at[state.writer, state.stored_sequence] = now
                    self._credit += response.credit_bytes
                    self._changed.notify_all()
        except grpc.RpcError:
            if not self._closed:
                raise


def line_request(sequence: int, lines: int, *, text: str = "") -> bytes:
    first = (sequence - 1) * lines + 1
    batch = ingest_service_pb2.LineBatch(
        sequence=sequence,
        first_number=first,
        times_unix_us=[START_UNIX_US + first + index for index in range(lines)],
        levels=[log_line_pb2.LOG_LEVEL_INFO] * lines,
        sources=["trainer"] * lines,
        streams=[log_line_pb2.LOG_STREAM_STDOUT] * lines,
        lines=[text or f"iteration {first + index} of 100000, loss 0.{first + index:07d}" for index in range(lines)],
        continued=[False] * lines,
    )
    return ingest_service_pb2.IngestRequest(writer=1, lines=batch).SerializeToString()
