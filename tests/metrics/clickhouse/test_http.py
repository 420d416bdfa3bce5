"""The same service on a ClickHouse server's address, over HTTP."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2

from services.chassis.errors import Reason
from tests.metrics.clickhouse_server import ClickHouse
from tests.metrics.client import (
    LINES,
    WAIT_SECONDS,
    Metrics,
    columns,
    definition,
    reason_of,
    refused,
    tail_all,
    texts,
    until,
)
from tests.metrics.job_book import Job, Scheduler, submit

LOSS = "digits/train/loss"


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
    assert counts(server, job) == [512, 488]
    wanted = log_service_pb2.LogFilter(contains="'s a \\")
    assert texts(tail_all(server.logs(), job, filter=wanted)) == ["it's a \\ line"]
    clickhouse.kill()
    # Nobody is told anything about this message until ClickHouse can be asked what became of it.
    client.points(1, 2, columns(job.uid, LOSS, [1000], [math.nan]))
    with refused() as errors:
        tail_all(server.logs(), job)
    assert errors[0].reason is Reason.METRICS_STORE_UNAVAILABLE
    until(lambda: '{"table": "points"' in server.log_text(), "the insert to fail")
    assert 1 not in client.refusals
    clickhouse.start()
    assert reason_of(client.wait_refusal(1)) is Reason.METRICS_STORE_UNAVAILABLE
    assert client.open(1, server.token(job.uid), series=series) == 1
    client.points(1, 2, columns(job.uid, LOSS, [1000], [math.nan]))
    client.finish(1, 2)
    assert counts(server, job) == [512, 489]
    assert server.stop() == 0


def test_what_another_process_has_recorded_is_found_and_a_query_without_a_caller_is_killed(
    clickhouse: ClickHouse, scheduler: Scheduler, tmp_path: Path
) -> None:
    server, other = replicas(clickhouse, scheduler, tmp_path)
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    client.points(1, 1, columns(job.uid, LOSS, [1], [0.5]))
    client.wait_stored(1, 1)
    # The other process remembers what series there are, and asks whether there are more.
    assert series_names(other, job) == series_names(other, job) == [LOSS]
    client.points(1, 2, columns(job.uid, "later", [2], [0.5]), new_series=[definition(job.uid, "later")])
    client.wait_stored(1, 2)
    assert series_names(other, job) == sorted([LOSS, "later"])
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, buckets_max=2)
    with clickhouse.fault(r"SELECT.*FROM points", hold=True):
        for _ in range(5):  # more than there are readers: each is free again
            call = other.metrics().QuerySeries.future(request)
            clickhouse.wait_held("FROM points")
            call.cancel()
            until(lambda: not any("FROM points" in query["sql"] for query in clickhouse.queries()), "the kill")
    assert len(other.metrics().QuerySeries(request, timeout=WAIT_SECONDS).series) == 2
    client.close()
    assert (server.stop(), other.stop()) == (0, 0)


def replicas(clickhouse: ClickHouse, scheduler: Scheduler, folder: Path) -> tuple[Metrics, Metrics]:
    """Two processes of the service over one ClickHouse; they share the keys of who signs."""
    server = Metrics(folder / "server", scheduler.address, clickhouse=clickhouse.url)
    server.start()
    other = Metrics(folder / "other", scheduler.address, clickhouse=clickhouse.url)
    other.folder.mkdir()
    for key in ("token.pem", "token.pub.pem"):
        shutil.copy(server.folder / key, other.folder / key)  # with its mode
    other.start()
    return server, other


def series_names(server: Metrics, job: Job) -> list[str]:
    found = server.metrics().ListSeries(metrics_service_pb2.ListSeriesRequest(job=job.name)).series
    return [each.definition.name for each in found]


def counts(server: Metrics, job: Job) -> list[int]:
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, buckets_max=2)
    (series,) = server.metrics().QuerySeries(request).series
    assert list(series.buckets.nan_counts) == list(series.buckets.counts)
    return list(series.buckets.counts)
