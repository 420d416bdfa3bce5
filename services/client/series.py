"""Series of jobs: every point as it was logged, or buckets; summaries, comparisons, and points as they come."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1.series_pb2 import BucketColumns, Series, SeriesDefinition
from sihlai.scheduler.v1.job_pb2 import Job

from services.client.call import METRICS, Break, Operation, Reading, ask, follow, pages
from services.client.frame import Frame
from services.client.job import state_name
from services.client.name import job_name, short
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


class _Several(Generic[Item]):
    """Several series. No tuple: libraries take tuples for columns before they ask for a stream of Arrow."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = tuple(items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def frame(self) -> Frame:
        """All of it as one table."""
        raise NotImplementedError

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame().__arrow_c_stream__(requested_schema)


class Curves(_Several[Curve]):
    """Several series, exact: every point, in the order of steps (`system/…` by time)."""

    def __getitem__(self, label: str) -> Curve:
        return {curve.label: curve for curve in self}[label]

    def frame(self) -> Frame:
        """One row a point."""
        lengths = [len(curve.steps) for curve in self]
        columns: dict[str, Any] = {
            name: [value for curve, length in zip(self, lengths, strict=True) for value in [text(curve)] * length]
            for name, text in (("job", _job_text), ("series", _name_text), ("context", _context_text))
        }
        for name, kind in (("steps", "q"), ("times_unix_us", "q"), ("values", "d")):
            column = array(kind)
            for curve in self:
                column.extend(getattr(curve, name))
            columns[{"steps": "step", "times_unix_us": "time", "values": "value"}[name]] = column
        return Frame(columns, CURVE_KINDS)


class Buckets(_Several[pb.SeriesData]):
    """Several series in buckets: no spike and no NaN disappears in one."""

    def frame(self) -> Frame:
        """One row a bucket."""
        columns: dict[str, list[Any]] = {"series": [], "context": []}
        for data in self:
            count = len(data.buckets.counts)
            columns["series"] += [data.definition.name] * count
            columns["context"] += [json.dumps(dict(data.definition.context), sort_keys=True)] * count
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


def exact(wanted: Selection) -> Operation[Curves]:
    """Every point of the series."""
    request = wanted.request()
    found: dict[int, tuple[SeriesDefinition, array[int], array[int], array[float]]] = {}
    while True:
        page = yield from ask(METRICS.QuerySeries, request)
        for data in page.series:
            series_id = data.definition.series_id
            _, steps, times, values = found.setdefault(series_id, (data.definition, array("q"), array("q"), array("d")))
            steps.extend(data.points.steps)
            times.extend(data.points.times_unix_us)
            values.extend(data.points.values)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    curves = (
        Curve(
            job=request.job,
            name=definition.name,
            context=dict(definition.context),
            unit=definition.unit,
            steps=steps,
            times_unix_us=times,
            values=values,
        )
        for definition, steps, times, values in found.values()
    )
    return Curves(sorted(curves, key=lambda curve: curve.label))


def in_buckets(wanted: Selection, n: int = 200) -> Operation[Buckets]:
    """At most `n` buckets of each series, for drawing."""
    request = wanted.request()
    request.buckets_max = n
    return Buckets((yield from ask(METRICS.QuerySeries, request)).series)


def summarised(jobs: Sequence[str], names: Sequence[str] = ()) -> Operation[list[Series]]:
    """Last, lowest and highest values of the series of jobs."""
    found: list[Series] = []
    for begin in range(0, len(jobs), JOBS_MAX):
        request = pb.SummarizeJobsRequest(jobs=jobs[begin : begin + JOBS_MAX], selector=pb.SeriesSelector(names=names))
        found += [series for page in (yield from pages(METRICS.SummarizeJobs, request)) for series in page.series]
    return found


def compared(jobs: Sequence[str], names: Sequence[str] = ()) -> Operation[pb.CompareJobsResponse]:
    """Jobs side by side: where their configurations differ, and these series."""
    request = pb.CompareJobsRequest(jobs=[job_name(job) for job in jobs], selector=pb.SeriesSelector(names=names))
    return (yield from ask(METRICS.CompareJobs, request))


def watched(
    request: pb.WatchMetricsRequest, *, on_break: Break = lambda error: None
) -> Reading[pb.WatchMetricsResponse]:
    """The answers of WatchMetrics up to `ended`, over broken connections. The request is changed."""

    def request_at(cursor: str) -> pb.WatchMetricsRequest:
        request.cursor = cursor or request.cursor
        return request

    return follow(
        METRICS.WatchMetrics,
        request_at,
        is_last=lambda answer: answer.WhichOneof("message") == "ended",
        on_break=on_break,
    )


def jobs_frame(jobs: Sequence[Job], config: Iterable[str] = (), best: Iterable[str] = ()) -> Operation[Frame]:
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
    series = (yield from summarised([job.name for job in jobs], best)) if best and jobs else []
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


def _job_text(curve: Curve) -> str:
    return short(curve.job)


def _name_text(curve: Curve) -> str:
    return curve.name


def _context_text(curve: Curve) -> str:
    return json.dumps(dict(curve.context), sort_keys=True)
