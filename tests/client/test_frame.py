"""Frames as the libraries of data scientists take them: whole, with what is missing apart from what is not a number."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from sihlai.metrics.v1.metrics_service_pb2 import SeriesData, SummarizeJobsResponse
from sihlai.metrics.v1.series_pb2 import BucketColumns, Series, SeriesDefinition, SeriesSummary
from sihlai.scheduler.v1.job_pb2 import JOB_STATE_RUNNING, Job

from services.client.frame import Frame
from services.client.series import Buckets, Curve, Curves, jobs_frame
from services.client.specification import SpecificationError

Rows = list[dict[str, Any]]


def by_pandas(table: Any) -> Rows:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame.from_arrow(table).to_dict("records")


def by_polars(table: Any) -> Rows:
    polars = pytest.importorskip("polars")
    return polars.DataFrame(table).to_dicts()


def by_duckdb(given: Any) -> Rows:
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql("SELECT * FROM given")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


READERS = [by_pandas, by_polars, by_duckdb]
CURVES = Curves(
    [
        Curve(
            job="projects/digits/jobs/first",
            name=name,
            context={"head": "digits"},
            unit="",
            steps=array("q", (1, 2, 3)),
            times_unix_us=array("q", (1_000_000, 2_000_000, 3_000_000)),
            values=array("d", values),
        )
        for name, values in (("train/loss", (0.5, math.nan, math.inf)), ("train/rate", (1.0, 1.0, 1.0)))
    ]
)


def job(job_id: str, **spec: Any) -> Job:
    made = Job(name=f"projects/digits/jobs/{job_id}", state=JOB_STATE_RUNNING)
    json_format.ParseDict(spec, made.spec)
    return made


def frame_of(jobs: list[Job], config: list[str], best: list[str], answer: SummarizeJobsResponse) -> Frame:
    """What the operation makes, where the service answers this."""

    class Answering:
        async def ask(self, method: object, request: object, seconds: float) -> SummarizeJobsResponse:
            return answer

    transport: Any = Answering()
    return asyncio.run(jobs_frame(transport, jobs, config, best))


@pytest.mark.parametrize("rows_of", READERS)
def test_curves_are_taken_as_they_are(rows_of: Callable[[Any], Rows]) -> None:
    rows = rows_of(CURVES)
    assert list(rows[0]) == ["job", "series", "context", "step", "time", "value"]
    assert [(row["series"], row["step"]) for row in rows] == [
        (name, step) for name in ("train/loss", "train/rate") for step in (1, 2, 3)
    ]
    assert (rows[0]["job"], rows[0]["context"], rows[0]["value"]) == ("digits/first", '{"head": "digits"}', 0.5)
    assert math.isnan(rows[1]["value"])
    assert rows[2]["value"] == math.inf
    assert (rows[1]["time"] - rows[0]["time"]).total_seconds() == 1
    assert rows[0]["time"].timestamp() == 1


@pytest.mark.parametrize("rows_of", READERS)
def test_buckets_are_taken_as_they_are(rows_of: Callable[[Any], Rows]) -> None:
    columns = BucketColumns(axis_firsts=[1], axis_lasts=[4], minimums=[0.5], maximums=[2], counts=[4], nan_counts=[1])
    columns.firsts[:] = columns.lasts[:] = columns.means[:] = [1.0]
    for field in BucketColumns.DESCRIPTOR.fields:
        if not getattr(columns, field.name):
            getattr(columns, field.name).append(0)
    found = Buckets([SeriesData(definition=SeriesDefinition(name="train/loss"), buckets=columns)])
    (row,) = rows_of(found)
    assert (row["series"], row["axis_first"], row["minimum"], row["nan_count"]) == ("train/loss", 1, 0.5, 1)


@pytest.mark.parametrize("rows_of", READERS)
def test_jobs_are_a_row_each_with_nothing_where_they_have_nothing(rows_of: Callable[[Any], Rows]) -> None:
    first = job("first", trainer={"batch_size": 8, "adamw": {"weight_decay": 0.5}}, labels={"run": "1"})
    second = job("second", trainer={"sgd": {}}, labels={"run": "a"})
    first.create_time.FromSeconds(7)
    loss = Series(
        job=first.name, definition=SeriesDefinition(name="valid/loss"), summary=SeriesSummary(minimum=0.25, maximum=1)
    )
    config = ["trainer.batch_size", "trainer.adamw.weight_decay", "labels.run", "model.heads[1].id"]
    frame = frame_of([first, second], config, ["valid/loss", "other"], SummarizeJobsResponse(series=[loss]))
    one, two = ({key: None if missing(value) else value for key, value in row.items()} for row in rows_of(frame))
    assert (one["job"], one["state"], two["job"]) == ("digits/first", "running", "digits/second")
    assert [one[path] for path in (*config, "valid/loss", "other")] == [8, 0.5, "1", None, 0.25, None]
    assert [two[path] for path in (*config, "valid/loss", "other")] == [None, None, "a", None, None, None]
    assert one["create_time"].timestamp() == 7
    assert two["create_time"] is None


def missing(value: Any) -> bool:
    """What pandas calls missing: it has no None in columns of numbers and times."""
    return value is None or value != value  # NaN and NaT


def test_frames_without_rows_have_the_same_columns_as_those_with_some() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    assert pyarrow.table(Curves([])).schema == pyarrow.table(CURVES).schema
    nothing = frame_of([job("first")], [], ["valid/loss"], SummarizeJobsResponse())
    assert pyarrow.table(nothing).schema.field("valid/loss").type == pyarrow.float64()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("trainer.batchsize", "trainer.batchsize: Trainer has no field 'batchsize': did you mean batch_size?"),
        ("trainer.adamw.weight", "AdamW has no field 'weight': did you mean weight_decay?"),
        ("model.heads.id", "model.heads.id: heads is a list: heads[0] was wanted, not 'id'"),
        ("trainer.batch_size.x", "trainer.batch_size.x: batch_size has no fields"),
    ],
)
def test_a_path_that_no_job_could_have_is_told(path: str, sentence: str) -> None:
    with pytest.raises(SpecificationError) as told:
        frame_of([job("first")], [path], [], SummarizeJobsResponse())
    assert sentence in str(told.value)
