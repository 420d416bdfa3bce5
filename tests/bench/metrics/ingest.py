"""Rows in: points in large, small and one-point messages, and lines, beside the bare engine's inserts of the same rows.

The bar of a rate is a share of the bare inserts of the same run, which take full blocks of 100,000 rows. The shares are
the design's rates where bare inserts take 750,000 points a second (250,000 in messages of 200, 300,000 in columns of
one point) and 660,000 lines (100,000).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from tests.bench.metrics.bare import LINES_A_MESSAGE, Ingested, empty_folder, insert_rate
from tests.bench.metrics.load import Sender, line_request, requests_of
from tests.bench.metrics.process import cpu_seconds
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result
from tests.metrics.client import Metrics
from tests.metrics.job_book import Job, submit

MESSAGES_A_JOB = 100
LINE_MESSAGES = 800
ONE_POINT_SERIES = 200
ONE_POINT_MESSAGES = 5_000


def run(stage: Stage) -> Iterator[Result]:
    """Leaves the points of 50 jobs behind, which other parts ask for."""
    data = empty_folder(stage.folder / "bare", stage.server.scheduler_address)
    bare = insert_rate(data, "points", jobs=stage.jobs_count, turns=MESSAGES_A_JOB, points=2_000, series=20)
    yield Result(name="bare inserts of points", value=bare.rate, unit="points/s")
    yield Result(name="the same, processor time", value=bare.cpu_us, unit="us/point")
    large = ingest_rate(stage.server, stage.jobs, messages=MESSAGES_A_JOB, points=2_000)
    yield from _beside("ingest, 2,000-point messages", large, bare, "points", bar="ratio >= 0.7")
    small = ingest_rate(stage.server, [submit(stage.book)], messages=5_000, points=200)
    yield from _beside("ingest, 200-point messages", small, bare, "points", bar="ratio >= 0.33")
    one_point = ingest_rate(
        stage.server,
        [submit(stage.book)],
        messages=ONE_POINT_MESSAGES,
        points=ONE_POINT_SERIES,
        series=ONE_POINT_SERIES,
    )
    yield from _beside("ingest, columns of one point", one_point, bare, "points", bar="ratio >= 0.4")
    bare_lines = insert_rate(data, "logs", messages=LINE_MESSAGES)
    yield Result(name="bare inserts of lines", value=bare_lines.rate, unit="lines/s")
    lines = line_rate(stage.server, submit(stage.book))
    yield from _beside("log lines, stored", lines, bare_lines, "lines", bar="ratio >= 0.15")


def _beside(name: str, measured: Ingested, bare: Ingested, what: str, *, bar: str) -> Iterator[Result]:
    yield Result(name=name, value=measured.rate, unit=f"{what}/s", bar=bar, ratio=measured.rate / bare.rate)
    ratio = measured.cpu_us / bare.cpu_us
    yield Result(name="the same, processor time of the server", value=measured.cpu_us, unit="us/row", ratio=ratio)


def ingest_rate(server: Metrics, jobs: Sequence[Job], *, messages: int, points: int, series: int = 20) -> Ingested:
    """From the first message to the last acknowledgement, over one stream."""
    sender = Sender(server)
    firsts = {w: sender.open(server, w, job, series=series) + 1 for w, job in enumerate(jobs, 1)}
    by_job = [requests_of(w, job, firsts[w], messages, points, series) for w, job in enumerate(jobs, 1)]
    in_turns = [request for turn in zip(*by_job, strict=True) for request in turn]
    began, cpu = time.perf_counter(), cpu_seconds(server)
    sender.send(in_turns)
    for writer, first in firsts.items():
        sender.wait_stored(writer, first + messages - 1)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(server) - cpu
    sender.close()
    rows = len(in_turns) * points
    return Ingested(rate=rows / seconds, cpu_us=cpu / rows * 1e6)


def line_rate(server: Metrics, job: Job) -> Ingested:
    """Lines a second, in messages of 500."""
    sender = Sender(server)
    sender.open(server, 1, job, lines=True)
    requests = [line_request(sequence, LINES_A_MESSAGE) for sequence in range(1, LINE_MESSAGES + 1)]
    began, cpu = time.perf_counter(), cpu_seconds(server)
    sender.send(requests)
    sender.wait_stored(1, len(requests))
    seconds, cpu = time.perf_counter() - began, cpu_seconds(server) - cpu
    sender.close()
    rows = len(requests) * LINES_A_MESSAGE
    return Ingested(rate=rows / seconds, cpu_us=cpu / rows * 1e6)
