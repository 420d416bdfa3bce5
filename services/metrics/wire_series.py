"""Series, points, summaries and comparisons on the wire."""

from __future__ import annotations

from sihlai.metrics.v1 import metrics_service_pb2, series_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.buckets import Buckets
from services.metrics.compare import ComparedJob, Comparison
from services.metrics.job import JobFacts
from services.metrics.point import Selector, SeriesDefinition, Summary
from services.metrics.query import Curve, SummarizedSeries
from services.metrics.rows import PointColumns
from services.metrics.watch import AttemptPoints

NAMES_MAX = 1_000


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
    """Which series are meant."""
    if len(proto.names) > NAMES_MAX:
        description = f"has {len(proto.names)} names, but {NAMES_MAX} is the most"
        raise InvalidArgument([Violation(field="selector.names", description=description)])
    return Selector(names=tuple(proto.names), context=tuple(sorted(proto.context.items())))


def series_to_proto(job: JobFacts, series: SummarizedSeries) -> series_pb2.Series:
    """A series of a job, in short."""
    return series_pb2.Series(
        job=job.name,
        job_uid=job.uid,
        definition=definition_to_proto(series.definition),
        summary=_summary_to_proto(series.summary),
    )


def curve_to_proto(curve: Curve) -> metrics_service_pb2.SeriesData:
    """A series with its points or buckets."""
    return metrics_service_pb2.SeriesData(
        definition=definition_to_proto(curve.definition),
        points=None if curve.points is None else _columns_to_proto(curve.points),
        buckets=None if curve.buckets is None else _buckets_to_proto(curve.buckets),
        truncated=curve.truncated,
    )


def live_points_to_proto(points: AttemptPoints) -> metrics_service_pb2.LivePoints:
    """Points of one attempt."""
    return metrics_service_pb2.LivePoints(
        new_series=[definition_to_proto(definition) for definition in points.new_definitions],
        columns=[_columns_to_proto(columns) for columns in points.columns],
        attempt=points.attempt,
        from_step=points.from_step,
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


def series_id_from_key(key: str | None) -> int | None:
    """The series after which a page begins, from the key in its token; a token of ours always holds a number."""
    return None if key is None else int(key)


def _compared_job_to_proto(job: ComparedJob, *, with_state: bool) -> metrics_service_pb2.ComparedJob:
    return metrics_service_pb2.ComparedJob(
        job=job.facts.name,
        job_uid=job.facts.uid,
        state=job_pb2.JobState.ValueType(job.facts.state if with_state else 0),
        series=[series_to_proto(job.facts, series) for series in job.series],
        curves=[curve_to_proto(curve) for curve in job.curves],
    )


def _summary_to_proto(summary: Summary) -> series_pb2.SeriesSummary:
    return series_pb2.SeriesSummary(
        count=summary.count,
        last=summary.last,
        last_step=summary.last_step,
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
        first_steps=buckets.first_steps,
        last_steps=buckets.last_steps,
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
