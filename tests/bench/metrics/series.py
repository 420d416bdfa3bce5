"""A job of 20,000 series must not be felt by anybody who asks for something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from sihlai.metrics.v1 import ingest_service_pb2, metrics_service_pb2, series_pb2

from tests.bench.metrics import bare
from tests.bench.metrics.load import START_UNIX_US, Sender
from tests.bench.metrics.process import measured, wait_calm
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result
from tests.metrics.client import definition
from tests.metrics.job_book import Job, submit
from tests.tokens import carrying

SERIES = 20_000
STEPS = 5
PATTERNS = 100
"""As many as are taken."""
TOO_MANY_PATTERNS = 1_000
SMALL_QUERIES = 100
LARGE_SECONDS_MAX = 60.0
MESSAGE_BYTES_MAX = 64 * 2**20


def run(stage: Stage) -> Iterator[Result]:
    """An empty query alone, while others ask for everything, and while others match many patterns."""
    large, small = _large_job(stage), submit(stage.book)
    wait_calm(stage.server)
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.enable_http_proxy", 0)]
    stub = stage.server.metrics()
    selector = metrics_service_pb2.SeriesSelector(names=["nothing/has/this/name"])
    empty = metrics_service_pb2.QuerySeriesRequest(job=small.name, selector=selector, buckets_max=500)

    def ask(_: int) -> None:
        assert not stub.QuerySeries(empty).series

    alone = measured(stage.server, ask, queries=SMALL_QUERIES)
    yield Result(name="an empty query, alone, p99", value=alone.p99, unit="s")
    opened = grpc.insecure_channel(stage.server.address, options=options)
    with carrying(opened, stage.server.access) as channel:
        large_stub = type(stub)(channel)
        with _asked(lambda: _list_all(large_stub, large)) as seconds:
            beside = measured(stage.server, ask, queries=SMALL_QUERIES)
        yield from _results("ListSeries of all", beside.p99, alone.p99, seconds)
        everything = metrics_service_pb2.SummarizeJobsRequest(jobs=[large.name])
        with _asked(lambda: large_stub.SummarizeJobs(everything, timeout=LARGE_SECONDS_MAX)) as seconds:
            beside = measured(stage.server, ask, queries=SMALL_QUERIES)
        yield from _results("SummarizeJobs of all", beside.p99, alone.p99, seconds)
        matched = _by_patterns(large, PATTERNS)
        with _asked(lambda: large_stub.QuerySeries(matched, timeout=LARGE_SECONDS_MAX)) as seconds:
            beside = measured(stage.server, ask, queries=SMALL_QUERIES)
        yield from _results(f"QuerySeries by {PATTERNS} patterns", beside.p99, alone.p99, seconds)
        refused = _by_patterns(large, TOO_MANY_PATTERNS)
        with _asked(lambda: _refused(large_stub, refused)) as seconds:
            beside = measured(stage.server, ask, queries=SMALL_QUERIES)
        yield from _results(f"QuerySeries by {TOO_MANY_PATTERNS} patterns (refused)", beside.p99, alone.p99, seconds)
    with stage.stopped() as data:
        (engine,) = bare.ask(data, [{"sql": "SELECT 1 WHERE 0", "turns": [{}]}], turns=SMALL_QUERIES)
    yield Result(name="an empty query of the bare engine, p99", value=engine.p99, unit="s")


def _results(name: str, p99: float, alone: float, seconds: list[float]) -> Iterator[Result]:
    shown = f"an empty query while another caller asks for {name}, p99"
    yield Result(name=shown, value=p99, unit="s", bar="< 0.1", ratio=p99 / alone)
    longest = max(seconds, default=LARGE_SECONDS_MAX)
    yield Result(name=f"{name} of {SERIES} series, slowest", value=longest, unit="s")


def _by_patterns(job: Job, count: int) -> metrics_service_pb2.QuerySeriesRequest:
    """Patterns that are looked for in all names, and are in none."""
    patterns = metrics_service_pb2.SeriesSelector(names=[f"layer/*{number}*/y/*" for number in range(count)])
    return metrics_service_pb2.QuerySeriesRequest(job=job.name, selector=patterns, buckets_max=10)


def _refused(stub: object, request: metrics_service_pb2.QuerySeriesRequest) -> None:
    try:
        stub.QuerySeries(request, timeout=LARGE_SECONDS_MAX)  # type: ignore[attr-defined]  # a stub
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return
        raise
    raise AssertionError("so many patterns were not refused")


def _list_all(stub: object, job: Job) -> None:
    request = metrics_service_pb2.ListSeriesRequest(job=job.name, page_size=1_000)
    found = 0
    while True:
        page = stub.ListSeries(request, timeout=LARGE_SECONDS_MAX)  # type: ignore[attr-defined]  # a stub
        found += len(page.series)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == SERIES


@contextmanager
def _asked(call: Callable[[], object]) -> Iterator[list[float]]:
    """Somebody else calls this again and again; how long each call took. It has begun when the context begins."""
    seconds: list[float] = []
    begun, ended = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def ask() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            begun.set()
            try:
                call()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:  # else its time counts as it is
                    errors.append(error)
                    return
            except AssertionError as error:  # told where the context ends
                errors.append(error)
                return
            seconds.append(time.perf_counter() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]


def _large_job(stage: Stage) -> Job:
    job = submit(stage.book)
    definitions = [definition(job.uid, f"layer/{number}/x/{number}") for number in range(SERIES)]
    sender = Sender(stage.server)
    sender.open(stage.server, 1, job, series=0)
    pieces = [definitions[start : start + 1_000] for start in range(0, SERIES, 1_000)]
    requests = []
    for step in range(STEPS):
        for piece in pieces:
            batch = ingest_service_pb2.PointBatch(sequence=len(requests) + 1, new_series=piece if step == 0 else [])
            for each in piece:
                batch.columns.append(
                    series_pb2.PointColumns(
                        series_id=each.series_id, steps=[step], times_unix_us=[START_UNIX_US + step], values=[step]
                    )
                )
            requests.append(ingest_service_pb2.IngestRequest(writer=1, points=batch).SerializeToString())
    sender.send(requests)
    sender.wait_stored(1, len(requests))
    sender.close()
    return job
