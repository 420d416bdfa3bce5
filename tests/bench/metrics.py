"""What the metrics service reaches, beside the bars of the design: `python -m tests.bench.metrics [--json]`.

Generator, server and engine share this machine. The ratio of ingest is to a bare loop of the same inserts in this run.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from sihlai.logs.v1 import log_line_pb2, log_service_pb2
from sihlai.metrics.v1 import ingest_service_pb2, metrics_service_pb2, metrics_service_pb2_grpc, series_pb2

from tests.bench.result import Result
from tests.metrics.client import CHANNEL_OPTIONS, LINES, Job, JobBook, Metrics, Scheduler, definition, submit, until

SERIES = 20
MESSAGES_A_JOB = 100
CALM_SECONDS = 3.0
START_UNIX_US = 1_700_000_000_000_000
STEP_US = 50_000
QUERIES = 60
FOLLOW_SECONDS = 8.0
BATCHES_PER_SECOND = 5
CAUGHT_UP = b"\x1a\x00"
"""Field 3 of TailLogsResponse, empty."""
SEQUENCE = re.compile(rb"sequence (\d{6})")
BARE = """
import sys, time
import numpy as np
from services.metrics.block import Entry, point_block
from services.metrics.engine import open_engine
from services.metrics.migration import migrate, read_migrations
from services.metrics.point import series_id_of
from services.metrics.rows import PointColumns, PointRows
from services.metrics.writer import WriterKey, WriterKind
from tests.bench.metrics import columns_of
engine = open_engine("chdb://" + sys.argv[1], lock_seconds=5, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrate(connection, read_migrations())
rng = np.random.default_rng(0)
jobs, turns, points = (int(word) for word in sys.argv[2:])
entries = []
for sequence in range(1, turns + 1):
    for job in range(jobs):
        key = WriterKey(job_uid=f"{job:032d}", attempt=1, rank=0, kind=WriterKind.POINTS)
        columns = tuple(
            PointColumns(series_id=series_id_of(key.job_uid, str(i), ()), steps=s, times_unix_us=t, values=v)
            for i, (s, t, v) in enumerate(columns_of(rng, sequence, points))
        )
        rows = PointRows(sequence=sequence, columns=columns, new_definitions=(), row_count=points)
        entries.append(Entry(key=key, rows=rows, size_bytes=0, sender=None, from_step=0, definitions={}))
messages = len(entries)
blocks = 100_000 // points
began, cpu = time.perf_counter(), time.process_time()
for start in range(0, messages, blocks):
    connection.insert("points", point_block(entries[start : start + blocks]))
print(messages * points / (time.perf_counter() - began), (time.process_time() - cpu) / messages / points * 1e6)
"""
SIZE = """
import sys
from services.metrics.engine import open_engine
connection = open_engine("chdb://" + sys.argv[1], lock_seconds=20, query_seconds=60, insert_seconds=60).connect()
sql = "SELECT sum(bytes_on_disk) / sum(rows) AS size FROM system.parts WHERE active AND table = 'points'"
print(connection.read(sql, {})["size"][0].as_py())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.add_argument("--jobs", type=int, default=50, help="jobs of 200,000 points each")
    parser.add_argument("--followers", type=int, default=1000, help="followers of one log")
    arguments = parser.parse_args()
    scheduler = Scheduler()
    scheduler.start()
    with tempfile.TemporaryDirectory() as folder:
        server = Metrics(Path(folder) / "served", scheduler.address)
        for result in run(server, scheduler.book, Path(folder), jobs=arguments.jobs, followers=arguments.followers):
            sys.stdout.write(result.line() + "\n")
            sys.stdout.flush()
    scheduler.stop()


def run(server: Metrics, book: JobBook, folder: Path, *, jobs: int, followers: int) -> Iterator[Result]:
    bare = bare_rate(folder / "bare", jobs=jobs, turns=MESSAGES_A_JOB, points=2000)
    yield Result(name="bare loop of inserts", value=bare.rate, unit="points/s")
    yield Result(name="the same, processor time", value=bare.cpu_us, unit="us/point")
    server.start()
    submitted = [submit(book) for _ in range(jobs)]
    large = ingest_rate(server, submitted, messages=MESSAGES_A_JOB, points=2000)
    share = large.rate / bare.rate
    yield Result(name="ingest, 2,000-point messages", value=large.rate, unit="points/s", ratio=share)
    yield Result(name="the same as a share of the bare loop", value=share, unit="1", bar=">= 0.7", ratio=share)
    yield Result(name="the same, processor time of the server", value=large.cpu_us, unit="us/point")
    small = ingest_rate(server, [submit(book)], messages=5_000, points=200)
    name = "ingest, 200-point messages"
    yield Result(name=name, value=small.rate, unit="points/s", bar=">= 250000", ratio=small.rate / bare.rate)
    yield Result(name="the same, processor time of the server", value=small.cpu_us, unit="us/point")
    wait_calm(server)
    yield from queries(server, submitted)
    yield from queries_under_ingest(server, book, submitted)
    yield Result(name="log lines, stored", value=line_rate(server, book), unit="lines/s", bar=">= 100000")
    for count, bar in ((10, "< 0.05"), (followers, "< 0.5")):
        latencies = asyncio.run(follow(server, submit(book), count))
        name = f"line stored to follower, {count} followers, p99"
        yield Result(name=name, value=float(np.quantile(latencies, 0.99)), unit="s", bar=bar)
    wait_calm(server)
    server.stop()
    size = subprocess.run(
        [sys.executable, "-c", SIZE, str(server.folder / "data")], capture_output=True, text=True, check=True
    )
    yield Result(name="bytes a point on disk", value=float(size.stdout.split()[-1]), unit="bytes", bar="<= 6")


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """Rows a second, and processor time for each."""

    rate: float
    cpu_us: float


def columns_of(
    rng: np.random.Generator, sequence: int, points: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Steps, times and values of each series in one message: noise of a float32 on curves, as losses are."""
    steps_a_message = points // SERIES
    steps = np.arange((sequence - 1) * steps_a_message, sequence * steps_a_message, dtype=np.int64)
    times = START_UNIX_US + steps * STEP_US + rng.integers(0, 2_000, len(steps))
    for _ in range(SERIES):
        values = (1 / (1 + steps / 1000) + rng.standard_normal(len(steps)) / 10).astype(np.float32)
        yield steps, times, values.astype(np.float64)


def bare_rate(folder: Path, *, jobs: int, turns: int, points: int) -> Ingested:
    """The same inserts alone, in a process of its own: as many jobs, in turns, in full blocks."""
    result = subprocess.run(
        [sys.executable, "-c", BARE, str(folder), str(jobs), str(turns), str(points)],
        capture_output=True,
        text=True,
        check=True,
    )
    rate, cpu_us = result.stdout.split()[-2:]
    return Ingested(rate=float(rate), cpu_us=float(cpu_us))


def names() -> list[str]:
    return [f"digits/train/metric_{number:02d}" for number in range(SERIES)]


def requests_of(writer: int, job: Job, first: int, messages: int, points: int) -> list[bytes]:
    """Messages of points, serialized beforehand: what is measured is the server."""
    rng = np.random.default_rng(writer)
    ids = [definition(job.uid, name).series_id for name in names()]
    found = []
    for sequence in range(first, first + messages):
        batch = ingest_service_pb2.PointBatch(sequence=sequence)
        for series_id, (steps, times, values) in zip(ids, columns_of(rng, sequence, points), strict=True):
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
        self._call = server.channel().stream_stream(
            "/sihlai.metrics.v1.IngestService/Ingest",
            request_serializer=bytes,
            response_deserializer=ingest_service_pb2.IngestResponse.FromString,
        )(self._requests())
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, requests: Sequence[bytes]) -> None:
        with self._changed:
            self._queue += requests
            self._changed.notify_all()

    def open(self, server: Metrics, writer: int, job: Job, *, lines: bool = False) -> int:
        opening = ingest_service_pb2.OpenWriter(
            token=server.token(job.uid),
            kind=LINES if lines else ingest_service_pb2.WRITER_KIND_POINTS,
            protocol_version=1,
            first_sequence=1,
            series=[] if lines else [definition(job.uid, name) for name in names()],
        )
        self.send([ingest_service_pb2.IngestRequest(writer=writer, open=opening).SerializeToString()])
        until(lambda: writer in self.stored, "the writer to open")
        return self.stored[writer]

    def wait_stored(self, writer: int, sequence: int) -> None:
        until(lambda: self.stored.get(writer, 0) >= sequence, "the last message", 300)

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
        for response in self._call:
            now = time.perf_counter()
            with self._changed:
                for state in response.writers:
                    self.stored[state.writer] = state.stored_sequence
                    self.stored_at[state.writer, state.stored_sequence] = now
                self._credit += response.credit_bytes
                self._changed.notify_all()


def ingest_rate(server: Metrics, jobs: Sequence[Job], *, messages: int, points: int) -> Ingested:
    """From the first message to the last acknowledgement, over one stream."""
    sender = Sender(server)
    firsts = {writer: sender.open(server, writer, job) + 1 for writer, job in enumerate(jobs, 1)}
    by_job = [requests_of(writer, job, firsts[writer], messages, points) for writer, job in enumerate(jobs, 1)]
    in_turns = [request for turn in zip(*by_job, strict=True) for request in turn]
    began, cpu = time.perf_counter(), cpu_seconds(server)
    sender.send(in_turns)
    for writer, first in firsts.items():
        sender.wait_stored(writer, first + messages - 1)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(server) - cpu
    sender.close()
    rows = len(in_turns) * points
    return Ingested(rate=rows / seconds, cpu_us=cpu / rows * 1e6)


def line_rate(server: Metrics, book: JobBook) -> float:
    """Lines a second, in messages of 500."""
    sender = Sender(server)
    job = submit(book)
    sender.open(server, 1, job, lines=True)
    requests = [line_request(sequence, 500) for sequence in range(1, 801)]
    began = time.perf_counter()
    sender.send(requests)
    sender.wait_stored(1, len(requests))
    seconds = time.perf_counter() - began
    sender.close()
    return len(requests) * 500 / seconds


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


def queries(server: Metrics, jobs: Sequence[Job]) -> Iterator[Result]:
    """Latencies on a server that has nothing else to do, and what a query costs it."""
    stub = server.metrics()
    one = measured(server, lambda turn: one_series(stub, jobs[turn % len(jobs)]))
    yield Result(name="one series of 10,000 points into 500 buckets, p50", value=one.p50, unit="s", bar="<= 0.02")
    yield Result(name="the same, processor time of the server", value=one.cpu_seconds, unit="s")
    everything = metrics_service_pb2.SummarizeJobsRequest(jobs=[job.name for job in jobs])
    summary = measured(server, lambda _: stub.SummarizeJobs(everything))
    name = f"summaries of {len(jobs)} jobs of {SERIES} series, p50"
    yield Result(name=name, value=summary.p50, unit="s", bar="< 0.05")
    yield Result(name="the same, processor time of the server", value=summary.cpu_seconds, unit="s")
    compare = metrics_service_pb2.CompareJobsRequest(
        jobs=[job.name for job in jobs],
        selector=metrics_service_pb2.SeriesSelector(names=[names()[3]]),
        buckets_max=200,
    )
    compared = measured(server, lambda _: stub.CompareJobs(compare))
    name = f"{len(jobs)} jobs of 1 series into 200 buckets, p50"
    yield Result(name=name, value=compared.p50, unit="s", bar="< 0.1")
    yield Result(name="the same, processor time of the server", value=compared.cpu_seconds, unit="s")


def queries_under_ingest(server: Metrics, book: JobBook, jobs: Sequence[Job]) -> Iterator[Result]:
    """The first query again, while 50 runners write 200 points each second and then as fast as one stream can."""
    stub = server.metrics()
    sender = Sender(server)
    job = submit(book)
    sender.open(server, 1, job)
    requests = requests_of(1, job, 1, 4_000, 200)
    ended = threading.Event()

    def write_steadily() -> None:
        for start in range(0, len(requests), 10):
            sender.send(requests[start : start + 10])
            if ended.wait(0.2):
                return

    thread = threading.Thread(target=write_steadily)
    thread.start()
    one = measured(server, lambda turn: one_series(stub, jobs[turn % len(jobs)]))
    ended.set()
    thread.join()
    sender.close()
    yield Result(name="one series into 500 buckets under 10,000 points/s, p50", value=one.p50, unit="s", bar="<= 0.06")
    flood = Sender(server)
    flooded = submit(book)
    flood.open(server, 1, flooded)
    flood.send(requests_of(1, flooded, 1, 3_000, 2000))
    one = measured(server, lambda turn: one_series(stub, jobs[turn % len(jobs)]), queries=20)
    flood.wait_stored(1, 3_000)
    flood.close()
    yield Result(
        name="one series into 500 buckets under ingest at full speed, p50", value=one.p50, unit="s", bar="<= 0.06"
    )


def one_series(stub: metrics_service_pb2_grpc.MetricsServiceStub, job: Job) -> None:
    selector = metrics_service_pb2.SeriesSelector(names=[names()[7]])
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, selector=selector, buckets_max=500)
    (series,) = stub.QuerySeries(request).series
    assert sum(series.buckets.counts) == 10_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one call among many."""

    p50: float
    cpu_seconds: float


def measured(server: Metrics, call: Callable[[int], object], *, queries: int = QUERIES) -> Measured:
    seconds = []
    call(0)
    cpu = cpu_seconds(server)
    for turn in range(queries):
        began = time.perf_counter()
        call(turn)
        seconds.append(time.perf_counter() - began)
    return Measured(p50=statistics.median(seconds), cpu_seconds=(cpu_seconds(server) - cpu) / queries)


def wait_calm(server: Metrics) -> None:
    """Wait until ClickHouse has put together what was written: queries are measured on an idle server."""
    used = [(time.monotonic(), cpu_seconds(server))]

    def is_calm() -> bool:
        now = time.monotonic()
        if now - used[-1][0] < CALM_SECONDS:
            return False
        used.append((now, cpu_seconds(server)))
        return used[-1][1] - used[-2][1] < 0.1 * CALM_SECONDS

    until(is_calm, "the server to be idle", 120)


def cpu_seconds(server: Metrics) -> float:
    """Processor time that the server process has used so far."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def follow(server: Metrics, job: Job, followers: int) -> list[float]:
    """Seconds from the acknowledgement of a line to its arrival at each follower."""
    arrivals: list[tuple[int, float]] = []
    caught_up = asyncio.Semaphore(0)
    channels = [grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) for _ in range(4)]
    request = log_service_pb2.TailLogsRequest(job=job.name, follow=True).SerializeToString()

    async def read(channel: grpc.aio.Channel) -> None:
        # Followers of the benchmark look at as little as they can: they share the machine with the server.
        tail: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/sihlai.logs.v1.LogService/TailLogs", request_serializer=bytes, response_deserializer=bytes
        )
        call = tail(request)
        async for data in call:
            now = time.perf_counter()
            found = SEQUENCE.findall(data)
            arrivals.extend((int(sequence), now) for sequence in found)
            if data.endswith(CAUGHT_UP):
                caught_up.release()

    readers = [asyncio.create_task(read(channels[number % 4])) for number in range(followers)]
    for _ in range(followers):
        await asyncio.wait_for(caught_up.acquire(), 120)
    sender = await asyncio.to_thread(Sender, server)
    await asyncio.to_thread(sender.open, server, 1, job, lines=True)
    batches = int(FOLLOW_SECONDS * BATCHES_PER_SECOND)
    for sequence in range(1, batches + 1):
        sender.send([line_request(sequence, 1, text=f"sequence {sequence:06d}")])
        await asyncio.sleep(1 / BATCHES_PER_SECOND)
    await asyncio.to_thread(until, lambda: len(arrivals) == followers * batches, "all lines to arrive", 60)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for channel in channels:
        await channel.close()
    sender.close()
    # One acknowledgement can stand for several messages.
    stored_at = {s: min(at for (_, last), at in sender.stored_at.items() if last >= s) for s in range(1, batches + 1)}
    return [max(0.0, at - stored_at[sequence]) for sequence, at in arrivals]


if __name__ == "__main__":
    main()
