"""Answers in pages, cursors to watch from, and limits: nothing lost, nothing doubled, no answer too large."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1 import metrics_service_pb2_grpc, series_pb2

from services.chassis import rpc
from services.chassis.errors import InvalidArgument, Reason, ResourceExhausted
from tests.metrics.client import WAIT_SECONDS, IngestClient, Metrics, columns, definition, refused
from tests.metrics.job_book import Job, JobBook, Scheduler, submit

LOSS = "digits/train/loss"
GPU = "system/gpu"


def selected(*names: str) -> pb.SeriesSelector:
    return pb.SeriesSelector(names=names)


def all_points(server: Metrics, job: Job, **request: int) -> dict[str, list[tuple[int, float]]]:
    """Over all pages."""
    found: dict[str, list[tuple[int, float]]] = {}
    token, pages = "", 0
    while True:
        response = server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, page_token=token, **request))
        for series in response.series:
            rows = zip(series.points.steps, series.points.values, strict=True)
            found.setdefault(series.definition.name, []).extend(rows)
        token, pages = response.next_page_token, pages + 1
        assert bool(token) == any(series.truncated for series in response.series) or token
        if not token:
            return found
        assert pages < 100


def test_pages_of_points_are_exact_with_ties_duplicates_and_attempts(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    names = [LOSS, "digits/valid/loss", GPU]
    wanted: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for attempt, from_step in ((1, 0), (2, 40)):
        client = server.ingest()
        token = server.token(job.uid, attempt=attempt, from_step=from_step)
        client.open(1, token, series=[definition(job.uid, name) for name in names])
        for sequence in range(1, 5):
            # 1,500 points of ten steps in each message: far more of one step than fit into a page with others.
            steps = [from_step + i % 10 for i in range(1_500)]
            values = [attempt * 1e6 + sequence * 1e4 + i for i in range(1_500)]
            client.points(1, sequence, *(columns(job.uid, name, steps, values) for name in names))
            for name in names:
                wanted[name] += list(zip(steps, values, strict=True))
        client.wait_stored(1, 4)
        client.close()
    found = all_points(server, job)
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(names, 12000)
    for name in names:
        assert found[name] == sorted(wanted[name])  # values rise with the place


def test_lists_of_series_come_in_pages_that_every_client_takes(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    context = {f"{number:02}" * 128: "x" * 256 for number in range(16)}
    names = [f"series/{number:03}" for number in range(600)]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name, context) for name in names])
    ingest.points(1, 1, *(columns(job.uid, name, [1], [0.0], context) for name in names))
    ingest.wait_stored(1, 1)
    metrics = metrics_service_pb2_grpc.MetricsServiceStub(server.channel(usual=True))
    for kind, call, jobs in (
        (pb.ListSeriesRequest, metrics.ListSeries, {"job": job.name}),
        (pb.SummarizeJobsRequest, metrics.SummarizeJobs, {"jobs": [job.name]}),
    ):
        token, found, pages = "", list[str](), 0
        while token or not pages:
            page = call(kind(page_size=1_000, page_token=token, **jobs))
            found += [series.definition.name for series in page.series]
            token, pages = page.next_page_token, pages + 1
        assert (found, pages) == (names, 2)


def test_a_page_token_is_bound_to_its_request(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    ingest.points(1, 1, columns(job.uid, LOSS, range(6_000), [0.0] * 6_000))
    ingest.wait_stored(1, 1)
    token = server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name)).next_page_token
    assert token
    for changes in ({"axis": pb.SERIES_AXIS_TIME}, {"axis_min": 5}, {"selector": selected(LOSS)}):
        with refused() as errors:
            server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, page_token=token, **changes))
        assert errors[0].reason is Reason.INVALID_PAGE_TOKEN


NONSENSE = (
    "",
    "x",
    "null",
    "1",
    "[]",
    "{}",
    "[[[]]]",
    '["a","b"]',
    "[true,[1,2]]",
    '["a","b","c"]',
    '["a","\\ud800",1]',
)
NO_NUMBERS = ('["a","b",-1]', '["a","b",1e400]', f'["a","b",{2**64}]', '["a","b",true]', '[1,"b",1]', '["a",null,1]')
NO_PLACES = (
    "[false,[1,2,3,4,5,-1]]",
    f"[false,[{2**64},2,3,4,5,6]]",
    "[0,null]",
    '[false,["1",2,3,4,5,6]]',
    "[true,7]",
)


def test_a_forged_page_token_is_refused_in_every_list(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    """Whatever stands where a token of ours holds a place."""
    job = submit(book)
    names = [f"digits/{number}" for number in range(3)]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name) for name in (LOSS, *names)])
    ingest.points(1, 1, columns(job.uid, LOSS, range(6_000), [0.0] * 6_000))
    ingest.points(1, 2, *[columns(job.uid, name, [1], [1.0]) for name in names])
    ingest.wait_stored(1, 2)
    metrics = server.metrics()
    lists = (
        (metrics.QuerySeries, pb.QuerySeriesRequest(job=job.name)),
        (metrics.ListSeries, pb.ListSeriesRequest(job=job.name, page_size=1)),
        (metrics.SummarizeJobs, pb.SummarizeJobsRequest(jobs=[job.name], page_size=1)),
    )
    for call, request in lists:
        token = call(request).next_page_token
        assert token, "the list has a second page"
        digest, _ = json.loads(base64.urlsafe_b64decode(token))
        for place in (*NONSENSE, *NO_NUMBERS, *NO_PLACES, "[" * 50_000):
            request.page_token = base64.urlsafe_b64encode(json.dumps([digest, place]).encode()).decode()
            with refused() as errors:
                call(request)
            assert errors[0].reason is Reason.INVALID_PAGE_TOKEN, place


def test_summaries_of_jobs_come_in_pages(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    jobs = [submit(book) for _ in range(3)]
    names = [f"digits/{number:02d}" for number in range(7)]
    for writer, job in enumerate(jobs, 1):
        ingest.open(writer, server.token(job.uid), series=[definition(job.uid, name) for name in [*names, "unused"]])
        ingest.points(writer, 1, *[columns(job.uid, name, [1], [1.0]) for name in names])
        ingest.wait_stored(writer, 1)
    found: list[tuple[str, str]] = []
    request = pb.SummarizeJobsRequest(jobs=[job.name for job in jobs], page_size=4)
    while True:
        response = server.metrics().SummarizeJobs(request)
        assert len(response.series) <= 4
        found += [(series.job, series.definition.name) for series in response.series]
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    assert found == [(job.name, name) for job in jobs for name in names]


def watched(server: Metrics, job: Job, cursor: str, count: int) -> list[tuple[int, float]]:
    """The first points after a cursor."""
    call = server.metrics().WatchMetrics(pb.WatchMetricsRequest(job=job.name, cursor=cursor), timeout=WAIT_SECONDS)
    found: list[tuple[int, float]] = []
    for answer in call:
        for part in answer.points.columns:
            found += zip(part.steps, part.values, strict=True)
        if len(found) >= count:
            call.cancel()
            break
    return found


def test_buckets_now_and_the_points_after_them_lose_and_double_nothing(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    stop = threading.Event()
    sent = 0

    def write() -> None:
        nonlocal sent
        while not stop.wait(0.01):
            sent += 1
            client.points(1, sent, columns(job.uid, LOSS, [sent], [float(sent)]))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    client.wait_stored(1, 1)
    request = pb.QuerySeriesRequest(job=job.name, selector=selected(LOSS), buckets_max=10_000, with_cursor=True)
    compared = pb.CompareJobsRequest(jobs=[job.name], selector=selected(LOSS), buckets_max=10_000, with_cursors=True)
    answers: list[tuple[series_pb2.BucketColumns, str, bool]] = []
    for _ in range(6):
        response = server.metrics().QuerySeries(request)
        if response.series:
            answers.append((response.series[0].buckets, response.cursor, response.cursor_overlaps))
        (beside,) = server.metrics().CompareJobs(compared).jobs
        if beside.curves:
            answers.append((beside.curves[0].buckets, beside.cursor, beside.cursor_overlaps))
    stop.set()
    thread.join()
    client.wait_stored(1, sent)
    response = server.metrics().QuerySeries(request)
    assert not response.cursor_overlaps
    answers.append((response.series[0].buckets, response.cursor, False))
    client.points(1, sent + 1, columns(job.uid, LOSS, [sent + 1], [float(sent + 1)]))
    client.wait_stored(1, sent + 1)
    assert len(answers) > 5
    for buckets, cursor, overlaps in answers:
        seen = sum(buckets.counts)
        assert cursor
        rest = [step for step, _ in watched(server, job, cursor, sent + 1 - seen)]
        assert set(range(seen + 1, sent + 2)) <= set(rest)
        if not overlaps:
            assert rest == list(range(seen + 1, sent + 2))
    client.close()


def test_an_attempt_that_has_only_begun_hides_no_curve(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    client = server.ingest()
    series = [definition(job.uid, LOSS), definition(job.uid, GPU)]
    client.open(1, server.token(job.uid), series=series)
    client.points(1, 1, columns(job.uid, LOSS, range(100), [1.0] * 100))
    client.wait_stored(1, 1)

    def counts() -> list[int]:
        curves = server.metrics().QuerySeries(
            pb.QuerySeriesRequest(job=job.name, selector=selected(LOSS), buckets_max=10)
        )
        listed = server.metrics().ListSeries(pb.ListSeriesRequest(job=job.name, name_prefix=LOSS)).series
        return [sum(curves.series[0].buckets.counts), sum(s.summary.count for s in listed)]

    assert counts() == [100, 100]
    client.open(2, server.token(job.uid, attempt=2, from_step=0), series=series)
    assert counts() == [100, 100]
    assert len(watched(server, job, "", 100)) == 100
    client.points(2, 1, columns(job.uid, GPU, [0], [5.0]))
    client.wait_stored(2, 1)
    assert counts() == [100, 100]
    assert len(watched(server, job, "", 101)) == 101
    client.points(2, 2, columns(job.uid, LOSS, [0], [2.0]))
    client.wait_stored(2, 2)
    assert counts() == [1, 1]
    assert sorted(watched(server, job, "", 2)) == [(0, 2.0), (0, 5.0)]
    client.close()


def test_a_spike_and_a_nan_in_each_of_a_hundred_series_show_in_every_downsampled_answer(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    names = [f"digits/train/{number:03d}" for number in range(100)]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name) for name in names])
    parts = []
    for number, name in enumerate(names):
        values = [0.5] * 500
        values[(number * 37) % 500] = 1e6 + number
        values[(number * 53 + 11) % 500] = math.nan
        if (number * 37) % 500 == (number * 53 + 11) % 500:
            values[(number * 37 + 1) % 500] = 1e6 + number
        parts.append(columns(job.uid, name, range(500), values))
    ingest.points(1, 1, *parts)
    ingest.wait_stored(1, 1)
    for axis in (pb.SERIES_AXIS_STEP, pb.SERIES_AXIS_TIME, pb.SERIES_AXIS_RELATIVE_TIME):
        for buckets_max in (1, 3, 8, 100):
            request = pb.QuerySeriesRequest(job=job.name, buckets_max=buckets_max, axis=axis)
            response = server.metrics().QuerySeries(request)
            shown = {s.definition.name: (max(s.buckets.maximums), sum(s.buckets.nan_counts)) for s in response.series}
            assert shown == {name: (1e6 + number, 1) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    "names",
    [["x" * 257], ["a\0b"], ["*"] * 101, ["*" + "y" * 250] * 20, [str(number) for number in range(1_001)]],
)
def test_a_selector_that_could_take_ages_is_refused(server: Metrics, book: JobBook, names: Sequence[str]) -> None:
    job = submit(book)
    calls = (
        lambda: server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, selector=selected(*names))),
        lambda: server.metrics().SummarizeJobs(pb.SummarizeJobsRequest(jobs=[job.name], selector=selected(*names))),
        lambda: server.metrics().CompareJobs(pb.CompareJobsRequest(jobs=[job.name], selector=selected(*names))),
        lambda: list(server.metrics().WatchMetrics(pb.WatchMetricsRequest(job=job.name, selector=selected(*names)))),
    )
    for call in calls:
        with refused() as errors:
            call()
        assert isinstance(errors[0], InvalidArgument)
        assert "selector" in errors[0].violations[0].field


def test_names_with_odd_characters_are_chosen_as_they_are_written(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    names = ["it's", 'a "b"', "back\\slash", "tab\there", "line\nbreak", "[x](y)+$^.", "größe/✓", "%d {e}", "a*b"]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name, {"k'\\": 'v"\n'}) for name in names])
    ingest.points(1, 1, *[columns(job.uid, name, [1], [1.0], {"k'\\": 'v"\n'}) for name in names])
    ingest.wait_stored(1, 1)

    def chosen(selector: pb.SeriesSelector) -> list[str]:
        series = server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, selector=selector)).series
        return [each.definition.name for each in series]

    for name in names[:-1]:
        assert chosen(selected(name)) == [name]
        assert chosen(selected(f"{name[:-1]}*")) == [name]
        assert chosen(selected(f"*{name[1:]}")) == [name]
    assert chosen(pb.SeriesSelector(context={"k'\\": 'v"\n'})) == sorted(names)
    assert chosen(pb.SeriesSelector(context={"other": ""})) == []
    found: list[str] = []
    request = pb.ListSeriesRequest(job=job.name, page_size=2)
    while True:
        response = server.metrics().ListSeries(request)
        found += [series.definition.name for series in response.series]
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    assert found == sorted(names, key=str.encode)


def test_a_query_above_its_memory_is_refused_once_and_ingest_goes_on(scheduler: Scheduler, tmp_path: Path) -> None:
    server = Metrics(tmp_path / "server", scheduler.address, ("--query-memory-bytes-max", "1000000"))
    server.start()
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    for sequence in range(1, 6):
        first = sequence * 50_000
        client.points(1, sequence, columns(job.uid, LOSS, range(first, first + 50_000), [0.5] * 50_000))
    client.wait_stored(1, 5)
    with refused() as errors:
        asyncio.run(query_through_our_channel(server, job))
    assert isinstance(errors[0], ResourceExhausted)
    assert errors[0].metadata["what"] == "query_memory_bytes_max"
    # What comes next on the same connection is answered.
    assert summaries_count(server, job) == 250_000
    assert server.stop() == 0
    refusals = [line for line in server.log_text().splitlines() if "call_refused" in line and "QuerySeries" in line]
    assert len(refusals) == 1


async def query_through_our_channel(server: Metrics, job: Job) -> None:
    channel = rpc.channel(server.address, token=lambda: server.access)
    try:
        await metrics_service_pb2_grpc.MetricsServiceStub(channel).QuerySeries(
            pb.QuerySeriesRequest(job=job.name, axis=pb.SERIES_AXIS_TIME)
        )
    finally:
        await channel.close()


def summaries_count(server: Metrics, job: Job) -> int:
    (series,) = server.metrics().SummarizeJobs(pb.SummarizeJobsRequest(jobs=[job.name])).series
    return series.summary.count
