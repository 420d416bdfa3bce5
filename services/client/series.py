"""Series of jobs: every point as it was logged, or buckets; summaries, comparisons, and points as they come."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1.series_pb2 import BucketColumns, Series
from sihlai.scheduler.v1.job_pb2 import Job

from services.client.call import METRICS, Break, Reading, Transport, ask, follow, whole
from services.client.frame import Frame
from services.client.job import state_name
from services.client.name import job_name, short
from services.client.number import whole_number
from services.client.specification import value_at

Item = TypeVar("Item")
JOBS_MAX = 100
"""How many jobs one call takes."""
BUCKET_COLUMNS = tuple(field.name for field in BucketColumns.DESCRIPTOR.fields)
KINDS = {FieldDescriptor.CPPTYPE_INT64: int, FieldDescriptor.CPPTYPE_DOUBLE: float}
BUCKET_KINDS = {"series": str, "context": str} | {
    field.name.removesuffix("s"): KINDS[field.cpp_type] for field in BucketColumns.DESCRIPTOR.fields
}
CURVE_KINDS = {"job": str, "series": str, "context": str, "step": int, "time": datetime, "value": float}


@dataclass(frozen=True)
class Selection:
    """Series of a job by their names; `*` stands for any text, and no name for all."""

    job: str
    names: Sequence[str]

    def request(self) -> pb.QuerySeriesRequest:
        """What asks for them."""
        return pb.QuerySeriesRequest(job=job_name(self.job), selector=pb.SeriesSelector(names=self.names))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series of a job. All columns have the same length; NaN and infinities stay as they are."""

    job: str
    name: str
    context: Mapping[str, str]
    unit: str
    steps: Sequence[int]
    times_unix_us: Sequence[int]
    values: Sequence[float]

    @property
    def label(self) -> str:
        """The name, with its context in braces."""
        return label_of(self.name, self.context)


class _Several(ABC, Generic[Item]):
    """Several series. No tuple: libraries take tuples for columns before they ask for a stream of Arrow."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = tuple(items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @abstractmethod
    def frame(self) -> Frame:
        """All of it as one table."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame().__arrow_c_stream__(requested_schema)


class Curves(_Several[Curve]):
    """Several series, exact: every point, in the order of steps (`system/…` by time)."""

    def __getitem__(self, label: str) -> Curve:
        return {curve.label: curve for curve in self}[label]

    def frame(self) -> Frame:
        """One row a point."""
        columns: dict[str, Any] = {name: [] for name in ("job", "series", "context")}
        columns |= {"step": array("q"), "time": array("q"), "value": array("d")}
        for curve in self:
            count = len(curve.steps)
            columns["job"] += [short(curve.job)] * count
            columns["series"] += [curve.name] * count
            columns["context"] += [_context_text(curve.context)] * count
            columns["step"].extend(curve.steps)
            columns["time"].extend(curve.times_unix_us)
            columns["value"].extend(curve.values)
        return Frame(columns, CURVE_KINDS)


class Buckets(_Several[pb.SeriesData]):
    """Several series in buckets: no spike and no NaN disappears in one."""

    def frame(self) -> Frame:
        """One row a bucket."""
        columns: dict[str, list[Any]] = {"series": [], "context": []}
        for data in self:
            count = len(data.buckets.counts)
            columns["series"] += [data.definition.name] * count
            columns["context"] += [_context_text(data.definition.context)] * count
        for name in BUCKET_COLUMNS:
            columns[name.removesuffix("s")] = [value for data in self for value in getattr(data.buckets, name)]
        return Frame(columns, BUCKET_KINDS)


def label_of(name: str, context: Mapping[str, str]) -> str:
    """The series' name, with its context in braces."""
    inner = ", ".join(f"{key}={value}" for key, value in sorted(context.items()))
    return f"{name}{{{inner}}}" if inner else name


def lower_is_better(name: str) -> bool:
    """Whether a series is a loss or an error, by the last part of its name."""
    last = name.rpartition("/")[2]
    return last.endswith(("loss", "error", "mae", "rmse", "error_rate", "seconds"))


async def exact(transport: Transport, wanted: Selection) -> Curves:
    """Every point of the series."""
    request = wanted.request()
    found: dict[int, pb.SeriesData] = {}
    while True:
        page = await ask(transport, METRICS.QuerySeries, request)
        for data in page.series:
            found.setdefault(data.definition.series_id, pb.SeriesData()).MergeFrom(data)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    curves = (
        Curve(
            job=request.job,
            name=data.definition.name,
            context=dict(data.definition.context),
            unit=data.definition.unit,
            steps=array("q", data.points.steps),
            times_unix_us=array("q", data.points.times_unix_us),
            values=array("d", data.points.values),
        )
        for data in found.values()
    )
    return Curves(sorted(curves, key=lambda curve: curve.label))


async def in_buckets(transport: Transport, wanted: Selection, n: int = 200) -> Buckets:
    """At most `n` buckets of each series, for drawing."""
    request = wanted.request()
    request.buckets_max = whole_number(n, "n", at_least=1)
    return Buckets((await ask(transport, METRICS.QuerySeries, request)).series)


def watched(
    transport: Transport, request: pb.WatchMetricsRequest, *, on_break: Break = lambda error: None
) -> Reading[pb.WatchMetricsResponse]:
    """The answers of WatchMetrics up to `ended`, over broken connections. The request is changed."""
    return follow(
        transport,
        METRICS.WatchMetrics,
        request,
        is_last=lambda answer: answer.WhichOneof("message") == "ended",
        on_break=on_break,
    )


async def jobs_frame(
    transport: Transport, jobs: Sequence[Job], config: Iterable[str] = (), best: Iterable[str] = ()
) -> Frame:
    """One row a job: its state and times, fields of its configuration by path, and the better end of each series.

    A job without the field or the series has None there. Raises SpecificationError where no job could have the field.
    """
    best = list(best)
    columns: dict[str, list[Any]] = {
        "job": [short(job.name) for job in jobs],
        "state": [state_name(job.state) for job in jobs],
        "iteration": [job.progress.iteration for job in jobs],
    }
    kinds: dict[str, type] = {"job": str, "state": str, "iteration": int}
    for name in ("create_time", "start_time", "end_time"):
        kinds[name] = datetime
        columns[name] = [getattr(job, name).ToMicroseconds() if job.HasField(name) else None for job in jobs]
    for path in config:
        columns[path] = [value_at(job.spec, path) for job in jobs]
    series: list[Series] = []
    for begin in range(0, len(jobs) if best else 0, JOBS_MAX):
        names = [job.name for job in jobs[begin : begin + JOBS_MAX]]
        request = pb.SummarizeJobsRequest(jobs=names, selector=pb.SeriesSelector(names=best))
        series += (await whole(transport, METRICS.SummarizeJobs, request)).series
    by_place = {(each.job, label_of(each.definition.name, each.definition.context)): each for each in series}
    for name in best:
        columns[name] = [_best(by_place.get((job.name, name))) for job in jobs]
        kinds[name] = float
    return Frame(columns, kinds)


def _best(series: Series | None) -> float | None:
    if series is None:
        return None
    summary = series.summary
    if lower_is_better(series.definition.name):
        return summary.minimum if summary.HasField("minimum") else None
    return summary.maximum if summary.HasField("maximum") else None


def _context_text(context: Mapping[str, str]) -> str:
    return json.dumps(dict(context), sort_keys=True)
