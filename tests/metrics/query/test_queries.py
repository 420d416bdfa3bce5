"""Series out: no spike, no NaN and no re-logged step gets lost or counted twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sihlai.metrics.v1 import metrics_service_pb2, series_pb2

from services.chassis.errors import InvalidArgument, NotFound, Reason
from tests.metrics.client import IngestClient, Metrics, columns, definition, refused, until
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"
ACCURACY = "digits/valid/accuracy"
INF = math.inf


def write(server: Metrics, job: Job, *parts: series_pb2.PointColumns, attempt: int = 1, from_step: int = 0) -> None:
    """Open a writer of the attempt, write one message, wait until it is stored."""
    names = {definition(job.uid, name).series_id: definition(job.uid, name) for name in (LOSS, ACCURACY, "system/gpu")}
    client = server.ingest()
    token = server.token(job.uid, attempt=attempt, from_step=from_step)
    sequence = client.open(1, token, series=[names[part.series_id] for part in parts]) + 1
    client.points(1, sequence, *parts)
    client.wait_stored(1, sequence)
    client.close()


def query(
    server: Metrics, job: Job, *names: str, buckets_max: int = 0, **changes: int
) -> dict[str, metrics_service_pb2.SeriesData]:
    selector = metrics_service_pb2.SeriesSelector(names=names)
    request = metrics_service_pb2.QuerySeriesRequest(
        job=job.name, selector=selector, buckets_max=buckets_max, **changes
    )
    return {series.definition.name: series for series in server.metrics().QuerySeries(request).series}


def summaries(server: Metrics, job: Job) -> dict[str, series_pb2.SeriesSummary]:
    request = metrics_service_pb2.SummarizeJobsRequest(jobs=[job.name])
    return {s.definition.name: s.summary for s in server.metrics().SummarizeJobs(request).series}


def test_a_spike_and_every_value_that_is_no_number_show_in_few_buckets(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    values = [1.0] * 1000
    values[371], values[372], values[373], values[374], values[375] = 1e9, -1e9, math.nan, INF, -INF
    write(server, job, columns(job.uid, LOSS, range(1000), values))
    buckets = query(server, job, LOSS, buckets_max=4)[LOSS].buckets
    assert list(buckets.axis_firsts) == [0, 256, 512, 768]
    assert list(buckets.axis_lasts) == [255, 511, 767, 1023]
    assert buckets.maximums[1] == 1e9
    assert buckets.minimums[1] == -1e9
    assert list(buckets.nan_counts) == [0, 1, 0, 0]
    assert list(buckets.positive_infinity_counts) == [0, 1, 0, 0]
    assert list(buckets.negative_infinity_counts) == [0, 1, 0, 0]
    assert list(buckets.counts) == [256, 256, 256, 232]
    summary = summaries(server, job)[LOSS]
    assert (summary.minimum, summary.minimum_step, summary.maximum, summary.maximum_step) == (-1e9, 372, 1e9, 371)
    assert (summary.nan_count, summary.positive_infinity_count, summary.negative_infinity_count) == (1, 1, 1)
    assert (summary.count, summary.last, summary.last_step) == (1000, 1.0, 999)


def test_values_that_are_no_numbers_come_back_as_they_are(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    write(server, job, columns(job.uid, LOSS, [1, 2, 3], [math.nan, INF, -INF]))
    points = query(server, job)[LOSS].points
    assert math.isnan(points.values[0])
    assert list(points.values[1:]) == [INF, -INF]
    summary = summaries(server, job)[LOSS]
    assert not summary.HasField("minimum")
    assert not summary.HasField("maximum")


def test_steps_that_a_later_attempt_logs_again_count_once(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2, 3))
    parts = {1: (range(1, 151), -1.0), 2: (range(101, 131), 2.0), 3: (range(121, 201), 3.0)}
    for attempt, (steps, value) in parts.items():
        both = [columns(job.uid, name, steps, [value] * len(steps)) for name in (LOSS, "system/gpu")]
        write(server, job, *both, attempt=attempt, from_step=(0, 0, 101, 121)[attempt])
    points = query(server, job, LOSS)[LOSS].points
    assert list(points.steps) == list(range(1, 201))
    assert list(points.values) == [-1.0] * 100 + [2.0] * 20 + [3.0] * 80
    found = summaries(server, job)
    assert (found[LOSS].count, found[LOSS].last, found[LOSS].minimum) == (200, 3.0, -1.0)
    buckets = query(server, job, LOSS, buckets_max=2)[LOSS].buckets
    assert list(buckets.axis_firsts) == [0, 128]
    assert list(buckets.counts) == [127, 73]
    assert list(buckets.maximums) == [3.0, 3.0]
    assert list(buckets.firsts) == [-1.0, 3.0]
    # By time, not by step: nothing of it was logged again.
    assert found["system/gpu"].count == 150 + 30 + 80
    assert sum(query(server, job, "system/gpu", buckets_max=7)["system/gpu"].buckets.counts) == 260


def test_an_attempt_that_starts_afresh_takes_the_place_of_all_before(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    write(server, job, columns(job.uid, LOSS, range(1, 51), [9.0] * 50))
    write(server, job, columns(job.uid, ACCURACY, [50], [0.5]))
    write(server, job, columns(job.uid, LOSS, range(1, 3), [1.0] * 2), attempt=2, from_step=0)
    assert list(query(server, job, LOSS)[LOSS].points.values) == [1.0, 1.0]
    assert set(summaries(server, job)) == {LOSS}
    assert summaries(server, job)[LOSS].maximum == 1.0


def test_late_rows_of_a_lost_attempt_do_not_count_above_the_cut(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    write(server, job, columns(job.uid, LOSS, [11], [2.0]), attempt=2, from_step=11)
    write(server, job, columns(job.uid, LOSS, range(1, 21), [1.0] * 20), attempt=1)
    points = query(server, job, LOSS)[LOSS].points
    assert list(points.steps) == list(range(1, 12))
    assert points.values[-1] == 2.0


@dataclass(frozen=True)
class Point:
    step: int
    value: float
    place: int


STEPS = st.integers(-50, 50) | st.sampled_from([-(2**63), 2**63 - 1, -(2**62), 2**62])
VALUES = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(STEPS, VALUES), min_size=1, max_size=60),
    buckets_max=st.integers(2, 40),
    bounds=st.tuples(st.none() | STEPS, st.none() | STEPS),
)
def test_buckets_say_what_a_plain_model_says(
    server: Metrics,
    book: JobBook,
    rows: list[tuple[int, float]],
    buckets_max: int,
    bounds: tuple[int | None, int | None],
) -> None:
    job = submit(book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    for sequence, (step, value) in enumerate(rows, 1):
        series_id = definition(job.uid, LOSS).series_id
        client.points(
            1,
            sequence,
            series_pb2.PointColumns(series_id=series_id, steps=[step], times_unix_us=[sequence], values=[value]),
        )
    client.finish(1, len(rows))
    client.close()
    given_bounds = {
        name: bound for name, bound in zip(("axis_min", "axis_max"), bounds, strict=True) if bound is not None
    }
    found = query(server, job, LOSS, buckets_max=buckets_max, **given_bounds)[LOSS].buckets
    low, high = bounds[0] if bounds[0] is not None else -INF, bounds[1] if bounds[1] is not None else INF
    points = [Point(step, value, place) for place, (step, value) in enumerate(rows, 1) if low <= step <= high]
    assert sum(found.counts) == len(points)
    assert len(found.counts) <= buckets_max
    assert list(found.axis_firsts) == sorted(found.axis_firsts)
    for index in range(len(found.counts)):
        inside = [p for p in points if found.axis_firsts[index] <= p.step <= found.axis_lasts[index]]
        assert_bucket_says(found, index, inside)


def assert_bucket_says(found: series_pb2.BucketColumns, index: int, inside: Sequence[Point]) -> None:
    finite = [p.value for p in inside if math.isfinite(p.value)]
    first = min(inside, key=lambda p: (p.step, p.place))
    last = max(inside, key=lambda p: (p.step, p.place))
    assert found.counts[index] == len(inside)
    assert same(found.minimums[index], min(finite, default=math.nan))
    assert same(found.maximums[index], max(finite, default=math.nan))
    assert same(found.firsts[index], first.value)
    assert same(found.lasts[index], last.value)
    assert found.last_times_unix_us[index] == last.place
    assert found.nan_counts[index] == sum(math.isnan(p.value) for p in inside)
    assert found.positive_infinity_counts[index] == sum(p.value == INF for p in inside)
    assert found.negative_infinity_counts[index] == sum(p.value == -INF for p in inside)
    if finite and max(map(abs, finite)) < 1e300:
        assert found.means[index] == pytest.approx(
            math.fsum(finite) / len(finite), rel=1e-6, abs=max(map(abs, finite)) * 1e-9
        )


def same(found: float, wanted: float) -> bool:
    return found == wanted or (math.isnan(found) and math.isnan(wanted))


def test_series_are_chosen_by_names_with_stars_and_by_context(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    named = [
        definition(job.uid, LOSS),
        definition(job.uid, "digits/valid/precision", {"class": "3"}),
        definition(job.uid, "digits/valid/precision", {"class": "4"}, unit="share"),
        definition(job.uid, "system/gpu", {"gpu": "0"}),
    ]
    ingest.open(1, server.token(job.uid), series=named)
    parts = [columns(job.uid, d.name, [1], [1.0], d.context) for d in named]
    ingest.points(1, 1, *parts)
    ingest.wait_stored(1, 1)

    def chosen(names: Sequence[str], context: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
        selector = metrics_service_pb2.SeriesSelector(names=names, context=context)
        request = metrics_service_pb2.QuerySeriesRequest(job=job.name, selector=selector)
        series = server.metrics().QuerySeries(request).series
        return [(s.definition.name, dict(s.definition.context)) for s in series]

    assert len(chosen([], {})) == 4
    assert len(chosen(["digits/*"], {})) == 3
    assert chosen(["*/valid/*"], {"class": "4"}) == [("digits/valid/precision", {"class": "4"})]
    assert chosen(["digits/train"], {}) == []
    assert len(chosen([LOSS, "system/gpu"], {})) == 2
    assert chosen([".*"], {}) == []


def test_series_are_listed_in_pages(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    names = [f"digits/{number:03d}" for number in range(23)]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name) for name in [*names, "unused", "other"]])
    ingest.points(1, 1, *[columns(job.uid, name, [1], [1.0]) for name in [*names, "other"]])
    ingest.wait_stored(1, 1)
    found: list[str] = []
    token = ""
    while True:
        request = metrics_service_pb2.ListSeriesRequest(
            job=job.name, name_prefix="digits/", page_size=10, page_token=token
        )
        response = server.metrics().ListSeries(request)
        found += [series.definition.name for series in response.series]
        token = response.next_page_token
        if not token:
            break
    assert found == names
    with refused() as errors:
        server.metrics().ListSeries(metrics_service_pb2.ListSeriesRequest(job=job.name, page_token="nonsense"))
    assert errors[0].reason is Reason.INVALID_PAGE_TOKEN
    with refused() as errors:
        server.metrics().ListSeries(metrics_service_pb2.ListSeriesRequest(job=job.name, page_size=-1))
    assert isinstance(errors[0], InvalidArgument)


def test_more_points_than_an_answer_holds_are_cut_and_said_to_be(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    write(server, job, columns(job.uid, LOSS, range(6000), [0.0] * 6000))
    loss = query(server, job, LOSS)[LOSS]
    assert loss.truncated
    assert list(loss.points.steps) == list(range(5000))
    rest = query(server, job, LOSS, axis_min=5000)[LOSS]
    assert not rest.truncated
    assert list(rest.points.steps) == list(range(5000, 6000))


def test_a_job_without_points_has_no_series_and_an_unknown_one_is_not_found(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    assert query(server, job) == {}
    assert query(server, job, buckets_max=10) == {}
    for call in (
        lambda: query(server, Job(name="projects/digits/jobs/nobody", uid="")),
        lambda: summaries(server, Job(name="projects/digits/jobs/nobody", uid="")),
    ):
        with refused() as errors:
            call()
        assert isinstance(errors[0], NotFound)
        assert dict(errors[0].metadata) == {"name": "projects/digits/jobs/nobody"}


def test_requests_that_mean_nothing_are_refused(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    for call in (
        lambda: query(server, Job(name="digits/job", uid="")),
        lambda: query(server, job, buckets_max=-1),
        lambda: query(server, job, buckets_max=10_001),
        lambda: server.metrics().SummarizeJobs(metrics_service_pb2.SummarizeJobsRequest()),
        lambda: server.metrics().CompareJobs(metrics_service_pb2.CompareJobsRequest(jobs=[job.name] * 101)),
    ):
        with refused() as errors:
            call()
        assert isinstance(errors[0], InvalidArgument)


def test_a_name_that_is_used_again_starts_empty(server: Metrics, book: JobBook) -> None:
    first = submit(book)
    write(server, first, columns(first.uid, LOSS, [1], [1.0]))
    assert list(query(server, first)) == [LOSS]
    book.delete(first.uid)

    def use_name(job: object) -> None:
        job.name = first.name  # type: ignore[attr-defined]  # a Job of the proto

    second = submit(book, configure=use_name)

    until(lambda: query(server, second) == {}, "the name to mean the new job")
