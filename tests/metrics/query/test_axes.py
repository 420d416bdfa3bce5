"""What curves are laid out by: steps, times, times since a job began. Series `system/…` go by time in any case."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1 import series_pb2

from services.chassis.errors import InvalidArgument
from tests.metrics.client import Metrics, definition, refused
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"
GPU = "system/gpu"
SECOND = 1_000_000
START = 1_700_000_000 * SECOND


def write(
    server: Metrics,
    job: Job,
    name: str,
    points: Sequence[tuple[int, int, float]],
    *,
    attempt: int = 1,
    from_step: int = 0,
) -> None:
    """One message of points: step, seconds since START, value."""
    client = server.ingest()
    series = definition(job.uid, name)
    token = server.token(job.uid, attempt=attempt, from_step=from_step)
    sequence = client.open(1, token, series=[series]) + 1
    columns = series_pb2.PointColumns(
        series_id=series.series_id,
        steps=[step for step, _, _ in points],
        times_unix_us=[START + seconds * SECOND for _, seconds, _ in points],
        values=[value for _, _, value in points],
    )
    client.points(1, sequence, columns)
    client.wait_stored(1, sequence)
    client.close()


def query(server: Metrics, job: Job, name: str, **request: int) -> pb.SeriesData:
    selector = pb.SeriesSelector(names=[name])
    (series,) = server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, selector=selector, **request)).series
    return series


def summary(server: Metrics, job: Job, name: str) -> series_pb2.SeriesSummary:
    request = pb.SummarizeJobsRequest(jobs=[job.name], selector=pb.SeriesSelector(names=[name]))
    (series,) = server.metrics().SummarizeJobs(request).series
    return series.summary


# Below and above `few_rows`: the service makes the buckets, or ClickHouse does, of rows or of rollups.
@pytest.mark.parametrize("samples", [15, 3_600])
def test_an_hour_of_samples_at_step_zero_is_not_one_bucket(server: Metrics, book: JobBook, samples: int) -> None:
    job = submit(book)
    write(server, job, GPU, [(0, index * 3_600 // samples, float(index)) for index in range(samples)])
    for axis in (pb.SERIES_AXIS_STEP, pb.SERIES_AXIS_TIME):
        series = query(server, job, GPU, axis=axis, buckets_max=60)
        assert series.axis == pb.SERIES_AXIS_TIME
        assert len(series.buckets.counts) > min(samples, 30) - 1
        assert sum(series.buckets.counts) == samples
        assert list(series.buckets.lasts) == sorted(series.buckets.lasts)
        assert all(first <= START + 3_600 * SECOND for first in series.buckets.axis_firsts)
    relative = query(server, job, GPU, axis=pb.SERIES_AXIS_RELATIVE_TIME, buckets_max=60)
    assert (relative.axis, relative.buckets.axis_firsts[0]) == (pb.SERIES_AXIS_RELATIVE_TIME, 0)
    assert sum(relative.buckets.counts) == samples


def test_after_a_resume_the_last_system_metric_is_the_newest(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    write(server, job, GPU, [(step, step, 1.0) for step in range(100)])
    write(server, job, GPU, [(40, 200, 2.0), (41, 201, 3.0)], attempt=2, from_step=40)
    found = summary(server, job, GPU)
    assert (found.count, found.last, found.last_step) == (102, 3.0, 41)
    assert found.last_time_unix_us == START + 201 * SECOND
    points = query(server, job, GPU).points
    assert list(points.values[-2:]) == [2.0, 3.0]


@pytest.mark.parametrize("count", [18, 400])
def test_jobs_are_side_by_side_on_relative_time(server: Metrics, book: JobBook, count: int) -> None:
    jobs = [submit(book), submit(book)]
    for index, job in enumerate(jobs):
        write(server, job, LOSS, [(step, 1_000 * index + step, float(step)) for step in range(count)])
    request = pb.CompareJobsRequest(
        jobs=[job.name for job in jobs],
        selector=pb.SeriesSelector(names=[LOSS]),
        axis=pb.SERIES_AXIS_RELATIVE_TIME,
        buckets_max=20,
    )
    response = server.metrics().CompareJobs(request)
    first, second = (job.curves[0] for job in response.jobs)
    assert first.buckets == second.buckets or list(first.buckets.lasts) == list(second.buckets.lasts)
    assert list(first.buckets.axis_firsts) == list(second.buckets.axis_firsts)
    assert [job.origin_time_unix_us for job in response.jobs] == [START, START + 1_000 * SECOND]
    request.axis = pb.SERIES_AXIS_TIME
    first, second = (job.curves[0] for job in server.metrics().CompareJobs(request).jobs)
    assert first.buckets.axis_lasts[-1] >= START + (count - 1) * SECOND
    assert second.buckets.axis_lasts[-1] >= START + (1_000 + count - 1) * SECOND


@pytest.mark.parametrize("count", [15, 600])
def test_bounds_are_on_the_axis_and_exact(server: Metrics, book: JobBook, count: int) -> None:
    job = submit(book)
    write(server, job, LOSS, [(step, step, float(step)) for step in range(count)])
    write(server, job, GPU, [(step, step, float(step)) for step in range(count)])
    low, high = 3, count - 4
    bounds = {
        pb.SERIES_AXIS_STEP: (low, high),
        pb.SERIES_AXIS_TIME: (START + low * SECOND, START + high * SECOND),
        pb.SERIES_AXIS_RELATIVE_TIME: (low * SECOND, high * SECOND),
    }
    for name in (LOSS, GPU):
        for axis, (first, last) in bounds.items():
            for buckets_max in (0, 1, 7):
                series = query(server, job, name, axis=axis, axis_min=first, axis_max=last, buckets_max=buckets_max)
                if buckets_max:
                    assert sum(series.buckets.counts) == high - low + 1
                    assert (series.buckets.firsts[0], series.buckets.lasts[-1]) == (low, high)
                    assert len(series.buckets.counts) <= buckets_max
                else:
                    assert list(series.points.steps) == list(range(low, high + 1))


def test_what_is_cut_away_does_not_count_on_any_axis(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(1, 2))
    write(server, job, LOSS, [(step, step, 1.0) for step in range(300)])
    write(server, job, LOSS, [(step, 1_000 + step, 2.0) for step in range(130, 200)], attempt=2, from_step=130)
    for axis in (pb.SERIES_AXIS_STEP, pb.SERIES_AXIS_TIME, pb.SERIES_AXIS_RELATIVE_TIME):
        series = query(server, job, LOSS, axis=axis, buckets_max=50)
        assert sum(series.buckets.counts) == 200
        assert series.buckets.lasts[-1] == 2.0
        assert len(query(server, job, LOSS, axis=axis).points.steps) == 200


def test_an_axis_that_is_none_is_refused(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    with refused() as errors:
        server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name, axis=17))  # type: ignore[arg-type]  # wrong
    assert isinstance(errors[0], InvalidArgument)
    assert "SERIES_AXIS_RELATIVE_TIME" in errors[0].message
