"""All points as a file: what counts, each once, in both formats, over pages of points and of series."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from sihlai.metrics.v1 import metrics_service_pb2 as pb

from services.chassis.errors import InvalidArgument, NotFound
from tests.metrics.client import IngestClient, Metrics, columns, definition, refused
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"
GPU = "system/gpu"
ODD = 'a "quoted", name'


def exported(server: Metrics, job: Job, **request: Any) -> bytes:
    return b"".join(r.chunk for r in server.metrics().ExportMetrics(pb.ExportMetricsRequest(job=job.name, **request)))


def rows_of_arrow(content: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(content).read_all().to_pylist()
    return [row | {"context": dict(row["context"])} for row in rows]


def rows_of_csv(content: bytes) -> list[dict[str, Any]]:
    return [
        {
            "name": row["name"],
            "context": json.loads(row["context"] or "{}"),
            "unit": row["unit"],
            "step": int(row["step"]),
            "time": datetime.fromisoformat(row["time"]),
            "value": float(row["value"]),
        }
        for row in csv.DictReader(io.StringIO(content.decode()))
    ]


def series_of(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Each series in its own order; AssertionError where one is torn apart."""
    found: dict[str, list[tuple[int, float]]] = {}
    for before, row in zip([None, *rows], rows, strict=False):
        assert row["name"] not in found or (before and before["name"] == row["name"]), "a series is in two places"
        found.setdefault(row["name"], []).append((row["step"], row["value"]))
    return found


@pytest.fixture
def two_attempts(server: Metrics, book: JobBook) -> Job:
    """The second goes on at step 4,000; system metrics are not cut. Pages of the test's service hold 5,000 points."""
    job = submit(book, attempts=(1, 2))
    for attempt, first in ((1, 0), (2, 4_000)):
        client = server.ingest()
        names = [definition(job.uid, name) for name in (LOSS, ODD, GPU)]
        client.open(1, server.token(job.uid, attempt=attempt, from_step=first), series=names)
        steps = list(range(first, first + 5_000))
        values = [float(step + attempt * 100_000) for step in steps]
        values[7], values[8], values[9] = math.nan, math.inf, -math.inf
        client.points(1, 1, *(columns(job.uid, name, steps, values) for name in (LOSS, ODD, GPU)))
        client.wait_stored(1, 1)
        client.close()
    return job


@pytest.mark.parametrize(
    ("file_format", "read"),
    [
        (pb.EXPORT_FORMAT_UNSPECIFIED, rows_of_arrow),
        (pb.EXPORT_FORMAT_ARROW, rows_of_arrow),
        (pb.EXPORT_FORMAT_CSV, rows_of_csv),
    ],
)
def test_every_point_that_counts_is_in_the_file_once(
    server: Metrics, two_attempts: Job, file_format: Any, read: Any
) -> None:
    rows = read(exported(server, two_attempts, format=file_format))
    found = series_of(rows)
    assert set(found) == {LOSS, ODD, GPU}
    assert len(found[GPU]) == 10_000
    for name in (LOSS, ODD):
        assert [step for step, _ in found[name]] == list(range(9_000))
        values = [value for _, value in found[name]]
        assert values[3_999] == 103_999.0
        assert values[4_000] == 204_000.0
        assert math.isnan(values[7])
        assert math.isnan(values[4_007])
        assert (values[8], values[9]) == (math.inf, -math.inf)
    assert all(row["context"] == {} and row["time"].tzinfo is not None for row in rows)


def test_a_selector_chooses_and_contexts_come_along(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    named = [definition(job.uid, LOSS, context={"class": 'cat "1"'}), definition(job.uid, "other")]
    ingest.open(1, server.token(job.uid), series=named)
    ingest.points(1, 1, columns(job.uid, LOSS, [3], [0.5], context={"class": 'cat "1"'}))
    ingest.points(1, 2, columns(job.uid, "other", [3], [0.5]))
    ingest.wait_stored(1, 2)
    selector = pb.SeriesSelector(names=["digits/*"])
    for rows in (
        rows_of_arrow(exported(server, job, selector=selector)),
        rows_of_csv(exported(server, job, selector=selector, format=pb.EXPORT_FORMAT_CSV)),
    ):
        (row,) = rows
        assert (row["name"], row["context"], row["step"], row["value"]) == (LOSS, {"class": 'cat "1"'}, 3, 0.5)
        assert row["time"] == datetime(2023, 11, 14, 22, 13, 20, 3_000, tzinfo=UTC)


def test_more_series_than_an_answer_takes_are_all_in_the_file(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    names = [f"values/{number:04d}" for number in range(1_100)] + [GPU]
    ingest.open(1, server.token(job.uid), series=[definition(job.uid, name) for name in names])
    ingest.points(1, 1, *(columns(job.uid, name, [1, 2], [1.0, 2.0]) for name in names))
    ingest.wait_stored(1, 1)
    found = series_of(rows_of_arrow(exported(server, job)))
    assert found == {name: [(1, 1.0), (2, 2.0)] for name in names}


def test_a_job_without_points_gives_a_file_without_rows(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    assert pa.ipc.open_stream(exported(server, job)).read_all().num_rows == 0
    assert exported(server, job, format=pb.EXPORT_FORMAT_CSV).decode().split() == [
        '"name","context","unit","step","time","value"'
    ]


def test_an_unknown_job_and_an_unknown_format_are_refused(server: Metrics, book: JobBook) -> None:
    with refused() as errors:
        exported(server, Job(name="projects/digits/jobs/nobody", uid=""))
    assert isinstance(errors[0], NotFound)
    with refused() as errors:
        exported(server, submit(book), format=9)
    assert isinstance(errors[0], InvalidArgument)
