"""The same service on a ClickHouse server's address, over HTTP."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2

from services.chassis.errors import Reason
from services.chassis.leash import on_leash
from tests.metrics.client import (
    LINES,
    Job,
    Metrics,
    Scheduler,
    columns,
    definition,
    refused,
    submit,
    tail_all,
    texts,
    until,
)

LOSS = "digits/train/loss"


@dataclass
class ClickHouse:
    """An engine behind HTTP, which can be killed and comes back at the same address."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def start(self) -> None:
        address_file = self.folder / "address"
        address_file.unlink(missing_ok=True)
        program = [sys.executable, "-m", "tests.metrics.clickhouse_http"]
        self.process = subprocess.Popen(on_leash([*program, str(self.folder), str(self.port), str(address_file)]))
        until(lambda: address_file.exists() and bool(address_file.read_text()), "the engine's address")
        self.port = int(address_file.read_text().rpartition(":")[2])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[ClickHouse]:
    clickhouse = ClickHouse(tmp_path)
    clickhouse.start()
    yield clickhouse
    clickhouse.kill()


def test_points_and_lines_are_stored_and_read_over_http_also_after_an_outage(
    clickhouse: ClickHouse, scheduler: Scheduler, tmp_path: Path
) -> None:
    server = Metrics(tmp_path / "server", scheduler.address, clickhouse=clickhouse.url)
    server.start()
    job = submit(scheduler.book)
    series = [definition(job.uid, LOSS)]
    client = server.ingest()
    client.open(1, server.token(job.uid), series=series)
    client.open(2, server.token(job.uid), kind=LINES)
    client.points(1, 1, columns(job.uid, LOSS, range(1000), [math.nan] * 1000))
    client.lines(2, 1, 1, ["it's a \\ line", "another"])
    client.wait_stored(1, 1)
    client.wait_stored(2, 1)
    assert counts(server, job) == [500, 500]
    wanted = log_service_pb2.LogFilter(contains="'s a \\")
    assert texts(tail_all(server.logs(), job, filter=wanted)) == ["it's a \\ line"]
    clickhouse.kill()
    # Nobody is told anything about this message until ClickHouse can be asked what became of it.
    client.points(1, 2, columns(job.uid, LOSS, [1000], [math.nan]))
    with refused() as errors:
        tail_all(server.logs(), job)
    assert errors[0].reason is Reason.METRICS_STORE_UNAVAILABLE
    until(lambda: "insert_failed" in server.log_text(), "the insert to fail")
    assert client.error is None
    clickhouse.start()
    assert client.wait_error().reason is Reason.METRICS_STORE_UNAVAILABLE
    again = server.ingest()
    assert again.open(1, server.token(job.uid), series=series) == 1
    again.points(1, 2, columns(job.uid, LOSS, [1000], [math.nan]))
    again.finish(1, 2)
    assert counts(server, job) == [501, 500]
    again.close()
    assert server.stop() == 0


def counts(server: Metrics, job: Job) -> list[int]:
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, buckets_max=2)
    (series,) = server.metrics().QuerySeries(request).series
    assert list(series.buckets.nan_counts) == list(series.buckets.counts)
    return list(series.buckets.counts)
