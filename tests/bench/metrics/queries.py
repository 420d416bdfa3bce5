"""Questions about points, beside the same answers from plain SQL on the same data, without service and gRPC.

A caller pays for the way (gRPC, the job's name, definitions and cuts: each question costs the engine 2 to 3 ms whatever
it is) on top of what the engine needs for the answer. That is worth as much as the answer itself for the small ones
here, and a part of it for larger ones: the bar is three times the plain SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from services.metrics.point import series_id_of
from tests.bench.metrics import bare
from tests.bench.metrics.load import SERIES, Sender, names, requests_of
from tests.bench.metrics.process import QUERIES, Measured, measured, wait_calm
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result
from tests.metrics.job_book import Job, submit

BUCKETS = 500
COMPARED_BUCKETS = 200
POINTS_A_SERIES = 10_000
RATIO_BAR = "ratio <= 3"
CUT_STEP = 5_000
AGGREGATES = "count(), min(value), max(value), avg(value), argMin(value, step), argMax(value, step)"
ONE_SERIES = f"""
SELECT intDiv(step, {POINTS_A_SERIES // BUCKETS}) AS bucket, {AGGREGATES} FROM points
WHERE job_uid = {{job:String}} AND series_id = {{series:UInt64}} GROUP BY bucket ORDER BY bucket
"""
COMPARED = f"""
SELECT job_uid, intDiv(step, {POINTS_A_SERIES // COMPARED_BUCKETS}) AS bucket, {AGGREGATES} FROM points
WHERE job_uid IN {{jobs:Array(String)}} AND series_id IN {{series:Array(UInt64)}}
GROUP BY job_uid, bucket ORDER BY job_uid, bucket
"""
CUT = f"""
SELECT series_id, {AGGREGATES} FROM points
WHERE job_uid = {{job:String}} AND (attempt = 2 OR step < {CUT_STEP}) GROUP BY series_id
"""
PROJECTION = "SELECT query FROM system.projections WHERE table = 'points' AND name = 'by_series'"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Asked through the service, and of the engine."""

    name: str
    call: Callable[[int], object]
    sql: str
    turns: Sequence[dict[str, Any]]
    """Parameters; they take turns."""


def run(stage: Stage) -> Iterator[Result]:
    """Latencies on a server that has nothing else to do, and what a question costs it."""
    resumed = _resumed_job(stage)
    wait_calm(stage.server)
    questions = _questions(stage, stage.server.metrics(), resumed)
    through = [measured(stage.server, question.call) for question in questions]
    with stage.stopped() as data:
        summaries = _summaries_sql(data)
        asked = [{"sql": q.sql or summaries, "turns": q.turns} for q in questions]
        plain = bare.ask(data, asked, turns=QUERIES)
    for question, service, engine in zip(questions, through, plain, strict=True):
        yield from _beside(question.name, service, engine)
    yield from _under_ingest(stage, plain[0])


def _beside(name: str, service: Measured, engine: bare.Asked) -> Iterator[Result]:
    yield Result(name=f"{name}: plain SQL, p50", value=engine.p50, unit="s")
    yield Result(name=f"{name}, p50", value=service.p50, unit="s", bar=RATIO_BAR, ratio=service.p50 / engine.p50)
    ratio = service.cpu_seconds / engine.cpu_seconds
    yield Result(name="the same, processor time of the server", value=service.cpu_seconds, unit="s", ratio=ratio)


def _questions(stage: Stage, stub: metrics_service_pb2_grpc.MetricsServiceStub, resumed: Job) -> list[Question]:
    jobs = stage.jobs
    everything = metrics_service_pb2.SummarizeJobsRequest(jobs=[job.name for job in jobs])
    compare = metrics_service_pb2.CompareJobsRequest(
        jobs=[job.name for job in jobs],
        selector=metrics_service_pb2.SeriesSelector(names=[names()[3]]),
        buckets_max=COMPARED_BUCKETS,
    )
    uids = [job.uid for job in jobs]
    compared = {"jobs": uids, "series": [_id(job, 3) for job in jobs]}
    cut = metrics_service_pb2.SummarizeJobsRequest(jobs=[resumed.name])
    return [
        Question(
            name=f"one series of {POINTS_A_SERIES} points into {BUCKETS} buckets",
            call=lambda turn: one_series(stub, jobs[turn % len(jobs)]),
            sql=ONE_SERIES,
            turns=[{"job": job.uid, "series": _id(job, 7)} for job in jobs],
        ),
        Question(
            name=f"summaries of {len(jobs)} jobs of {SERIES} series",
            call=lambda _: stub.SummarizeJobs(everything),
            sql="",
            turns=[{"jobs": uids}],
        ),
        Question(
            name=f"{len(jobs)} jobs of 1 series into {COMPARED_BUCKETS} buckets",
            call=lambda _: stub.CompareJobs(compare),
            sql=COMPARED,
            turns=[compared],
        ),
        Question(
            name=f"summaries of a job of two attempts, {2 * POINTS_A_SERIES * SERIES} points",
            call=lambda _: stub.SummarizeJobs(cut),
            sql=CUT,
            turns=[{"job": resumed.uid}],
        ),
    ]


def one_series(stub: metrics_service_pb2_grpc.MetricsServiceStub, job: Job) -> None:
    selector = metrics_service_pb2.SeriesSelector(names=[names()[7]])
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, selector=selector, buckets_max=BUCKETS)
    (series,) = stub.QuerySeries(request).series
    assert sum(series.buckets.counts) == POINTS_A_SERIES


def _id(job: Job, number: int) -> int:
    return series_id_of(job.uid, names()[number], ())


def _resumed_job(stage: Stage) -> Job:
    """A job whose second attempt begins in the middle of what the first one wrote."""
    job = submit(stage.book)
    stage.book.add_attempt(job.uid, 2, CUT_STEP)
    sender = Sender(stage.server)
    messages = POINTS_A_SERIES * SERIES // 2_000
    for attempt, from_step in ((1, 0), (2, CUT_STEP)):
        token = stage.server.token(job.uid, attempt=attempt, from_step=from_step)
        sender.open(stage.server, attempt, job, token=token)
        requests = requests_of(attempt, job, 1, messages, 2_000)
        sender.send(requests)
        sender.wait_stored(attempt, messages)
    sender.close()
    return job


def _summaries_sql(data: Path) -> str:
    """What the projection by series holds, asked for by its own expressions: the least that the engine can do."""
    (found,) = bare.read(data, PROJECTION)
    head, _, group = found["query"].partition("GROUP BY")
    return f"{head} FROM points WHERE job_uid IN {{jobs:Array(String)}} GROUP BY {group}"


def _under_ingest(stage: Stage, engine: bare.Asked) -> Iterator[Result]:
    """The first question again, while runners write 10,000 points a second, and then as fast as one stream can."""
    server, stub = stage.server, stage.server.metrics()
    for name, pause in (("10,000 points/s", 0.2), ("ingest at full speed", 0.0)):
        sender = Sender(server)
        job = submit(stage.book)
        sender.open(server, 1, job)
        requests = requests_of(1, job, 1, 4_000, 200)
        if pause:
            ended = threading.Event()
            thread = threading.Thread(target=_write_steadily, args=(sender, requests, pause, ended))
            thread.start()
            one = measured(server, lambda turn: one_series(stub, stage.jobs[turn % len(stage.jobs)]))
            ended.set()
            thread.join()
        else:
            sender.send(requests)
            one = measured(server, lambda turn: one_series(stub, stage.jobs[turn % len(stage.jobs)]))
        sender.close()
        ratio = one.p50 / engine.p50
        yield Result(name=f"one series into {BUCKETS} buckets under {name}, p50", value=one.p50, unit="s", ratio=ratio)


def _write_steadily(sender: Sender, requests: Sequence[bytes], pause: float, ended: threading.Event) -> None:
    for start in range(0, len(requests), 10):
        sender.send(requests[start : start + 10])
        if ended.wait(pause):
            return
