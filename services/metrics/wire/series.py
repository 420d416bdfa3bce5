"""Series, points, summaries and comparisons on the wire."""

from __future__ import annotations

import json

from sihlai.metrics.v1 import metrics_service_pb2, series_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.buckets import Buckets
from services.metrics.clickhouse.wanted import Position
from services.metrics.cursor import PLACE_MAX, encode_cursor
from services.metrics.grid import AXIS_MAX, AXIS_MIN, Axis, Bounds
from services.metrics.job import JobFacts
from services.metrics.point import Selector, SeriesDefinition, Summary, selector_violations
from services.metrics.query.compare import ComparedJob, Comparison
from services.metrics.query.query import Curve, Layout, PageStart
from services.metrics.rows import PointColumns
from services.metrics.writer_key import ATTEMPT_MAX, RANK_MAX, ROWS_MAX, WriterKind

AXES = {
    metrics_service_pb2.SERIES_AXIS_UNSPECIFIED: Axis.STEP,
    metrics_service_pb2.SERIES_AXIS_STEP: Axis.STEP,
    metrics_service_pb2.SERIES_AXIS_TIME: Axis.TIME,
    metrics_service_pb2.SERIES_AXIS_RELATIVE_TIME: Axis.RELATIVE_TIME,
}
SERIES_ID_MAX = 2**64 - 1
POSITION_RANGES = {
    "series_id": (0, SERIES_ID_MAX),
    "place": (-(2**63), 2**63 - 1),
    "attempt": (0, ATTEMPT_MAX),
    "sequence": (0, PLACE_MAX),
    "row": (0, ROWS_MAX),
    "rank": (0, RANK_MAX),
}
"""What each number of a Position may be, in the order in which a token says them."""
AXIS_NUMBERS = {axis: number for number, axis in AXES.items()}


def definition_from_proto(proto: series_pb2.SeriesDefinition) -> SeriesDefinition:
    """What a series is; whether it may be so is checked by `definition_violations`."""
    return SeriesDefinition(
        series_id=proto.series_id,
        name=proto.name,
        context=tuple(sorted(proto.context.items())),
        unit=proto.unit,
    )


def definition_to_proto(definition: SeriesDefinition) -> series_pb2.SeriesDefinition:
    """What a series is."""
    return series_pb2.SeriesDefinition(
        series_id=definition.series_id, name=definition.name, context=dict(definition.context), unit=definition.unit
    )


def selector_from_proto(proto: metrics_service_pb2.SeriesSelector) -> Selector:
    """Which series are meant, or InvalidArgument for more names or longer ones than can be matched soon."""
    selector = Selector(names=tuple(proto.names), context=tuple(sorted(proto.context.items())))
    problems = selector_violations(selector, field="selector")
    if problems:
        raise InvalidArgument(problems)
    return selector


def layout_from_proto(
    proto: metrics_service_pb2.QuerySeriesRequest | metrics_service_pb2.CompareJobsRequest, *, buckets_max: int
) -> Layout:
    """What curves are laid out by."""
    if proto.axis not in AXES:
        names = ", ".join(metrics_service_pb2.SeriesAxis.keys())
        raise InvalidArgument([Violation(field="axis", description=f"is {proto.axis}, but must be one of {names}")])
    low = proto.axis_min if proto.HasField("axis_min") else AXIS_MIN
    high = proto.axis_max if proto.HasField("axis_max") else AXIS_MAX
    return Layout(axis=AXES[proto.axis], bounds=Bounds(low=low, high=high), buckets_max=buckets_max)


def series_to_proto(job: JobFacts, definition: SeriesDefinition, summary: Summary) -> series_pb2.Series:
    """A series of a job, in short."""
    return series_pb2.Series(
        job=job.name,
        job_uid=job.uid,
        definition=definition_to_proto(definition),
        summary=_summary_to_proto(summary),
    )


def curve_to_proto(curve: Curve) -> metrics_service_pb2.SeriesData:
    """A series with its points or buckets."""
    return metrics_service_pb2.SeriesData(
        definition=definition_to_proto(curve.definition),
        points=None if curve.points is None else _columns_to_proto(curve.points),
        buckets=None if curve.buckets is None else _buckets_to_proto(curve.buckets),
        truncated=curve.truncated,
        axis=AXIS_NUMBERS[curve.axis],
    )


def comparison_to_proto(comparison: Comparison) -> metrics_service_pb2.CompareJobsResponse:
    """Jobs side by side."""
    missing = comparison.differences is None
    return metrics_service_pb2.CompareJobsResponse(
        jobs=[_compared_job_to_proto(job, with_state=not missing) for job in comparison.jobs],
        differences=[
            metrics_service_pb2.ConfigurationDifference(path=difference.path, values=difference.values)
            for difference in comparison.differences or ()
        ],
        configurations_missing=missing,
    )


def page_start_to_key(start: PageStart) -> str:
    """Where a page of points begins, as the key of its token."""
    after = start.after
    place = None if after is None else [getattr(after, name) for name in POSITION_RANGES]
    return json.dumps([start.by_time, place], separators=(",", ":"))


def page_start_from_key(key: str) -> PageStart:
    """Where the page begins, from the key in its token. ValueError or TypeError where it is none of ours."""
    by_time, place = json.loads(key)
    if not isinstance(by_time, bool):
        raise TypeError("by_time is a boolean")
    if place is None:
        return PageStart(by_time=by_time, after=None)
    numbers = zip(POSITION_RANGES.items(), place, strict=True)
    after = Position(**{name: _number(value, *ends) for (name, ends), value in numbers})
    return PageStart(by_time=by_time, after=after)


def series_place_to_key(job_uid: str, definition: SeriesDefinition) -> str:
    """The place of a series in a list, as the key of its token."""
    return json.dumps([job_uid, definition.name, definition.series_id], separators=(",", ":"))


def series_place_from_key(key: str) -> tuple[str, str, int]:
    """Job uid, name and id, from the key in a token. ValueError or TypeError where it is none of ours."""
    job_uid, name, series_id = json.loads(key)
    return _text(job_uid), _text(name), _number(series_id, 0, SERIES_ID_MAX)


def _number(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    value.encode()  # JSON can say what UTF-8 cannot
    return value


def _compared_job_to_proto(job: ComparedJob, *, with_state: bool) -> metrics_service_pb2.ComparedJob:
    return metrics_service_pb2.ComparedJob(
        job=job.facts.name,
        job_uid=job.facts.uid,
        state=job_pb2.JobState.ValueType(job.facts.state if with_state else 0),
        series=[series_to_proto(job.facts, series.definition, series.summary) for series in job.series],
        curves=[curve_to_proto(curve) for curve in job.curves],
        cursor="" if job.places is None else encode_cursor(job.facts.uid, WriterKind.POINTS, job.places),
        cursor_overlaps=job.places_overlap,
        origin_time_unix_us=job.origin,
    )


def _summary_to_proto(summary: Summary) -> series_pb2.SeriesSummary:
    return series_pb2.SeriesSummary(
        count=summary.count,
        last=summary.last,
        last_step=summary.last_step,
        last_time_unix_us=summary.last_time_unix_us,
        minimum=summary.minimum,
        minimum_step=summary.minimum_step,
        maximum=summary.maximum,
        maximum_step=summary.maximum_step,
        nan_count=summary.nan_count,
        positive_infinity_count=summary.positive_infinity_count,
        negative_infinity_count=summary.negative_infinity_count,
    )


def _columns_to_proto(columns: PointColumns) -> series_pb2.PointColumns:
    return series_pb2.PointColumns(
        series_id=columns.series_id,
        steps=columns.steps.tolist(),
        times_unix_us=columns.times_unix_us.tolist(),
        values=columns.values.tolist(),
    )


def _buckets_to_proto(buckets: Buckets) -> series_pb2.BucketColumns:
    lists = {name: column.tolist() for name, column in buckets.columns.items()}
    return series_pb2.BucketColumns(
        axis_firsts=buckets.firsts,
        axis_lasts=buckets.lasts,
        minimums=lists["minimum"],
        maximums=lists["maximum"],
        firsts=lists["first"],
        lasts=lists["last"],
        means=lists["mean"],
        counts=lists["count"],
        nan_counts=lists["nan_count"],
        positive_infinity_counts=lists["positive_infinity_count"],
        negative_infinity_counts=lists["negative_infinity_count"],
        last_times_unix_us=lists["last_time_unix_us"],
    )
