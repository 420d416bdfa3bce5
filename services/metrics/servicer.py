"""The three services of this process: from wire, one call, to wire. No rule and no SQL stands here."""

# ruff: noqa: N802, D102 — the methods are named and described in the .proto files.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import (
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, Reason, Unimplemented, Violation
from services.metrics import wire, wire_jobs, wire_series
from services.metrics.compare import BUCKETS_DEFAULT, compare_jobs
from services.metrics.following import Batch, CaughtUp, Ended, Following, Heartbeat
from services.metrics.ingest import Ingest, Opening
from services.metrics.job import JobFacts
from services.metrics.jobs import Jobs
from services.metrics.lines import LineStore
from services.metrics.page_token import last_from_page_token, page_token_to_text
from services.metrics.query import Queries
from services.metrics.rows import LineRows, PointRows
from services.metrics.series import SeriesStore
from services.metrics.store import Store
from services.metrics.stream import IngestStream
from services.metrics.tail import LineReading
from services.metrics.watch import PointReading
from services.metrics.writer import Finish, WriterKind

PAGE_SIZE_DEFAULT = 200
PAGE_SIZE_MAX = 1_000
SOURCES_PAGE_SIZE_DEFAULT = 50
SOURCES_SCOPE = "sources"
JOBS_MAX = 100
BUCKETS_MAX = 10_000

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """Points and lines in."""

    def __init__(self, ingest: Ingest, *, limits: wire.MessageLimits, stopping: asyncio.Event) -> None:
        self._ingest = ingest
        self._limits = limits
        self._stopping = stopping

    async def Ingest(
        self, request_iterator: AsyncIterator[ingest_service_pb2.IngestRequest], context: Context
    ) -> AsyncIterator[ingest_service_pb2.IngestResponse]:
        stream = IngestStream(self._ingest)
        reader = asyncio.create_task(self._read(stream, request_iterator))
        stopper = asyncio.create_task(self._stop(stream, reader))
        try:
            async for answer in stream.answers():
                yield wire.ingest_response_from_answer(answer)
        finally:
            reader.cancel()
            stopper.cancel()
            stream.close()

    async def _read(self, stream: IngestStream, requests: AsyncIterator[ingest_service_pb2.IngestRequest]) -> None:
        try:
            async for request in requests:
                await self._handle(stream, request)
            stream.end()
        except Exception as error:  # noqa: BLE001  # it is raised where the answers are made
            stream.fail(error)

    async def _handle(self, stream: IngestStream, request: ingest_service_pb2.IngestRequest) -> None:
        size_bytes = request.ByteSize()
        stream.received(size_bytes)
        match wire.ingest_message_from_proto(request, self._limits):
            case Opening() as opening:
                await stream.open(request.writer, opening)
            case (PointRows() | LineRows()) as rows:
                await stream.put(request.writer, rows, size_bytes)
            case wire.Renewal(token=token):
                await stream.renew(request.writer, token)
            case Finish() as finish:
                await stream.finish(request.writer, finish)

    async def _stop(self, stream: IngestStream, reader: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        reader.cancel()
        stream.go_away()


class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Series out."""

    def __init__(
        self,
        jobs: Jobs,
        queries: Queries,
        following: Following,
        store: Store,
        series: SeriesStore,
        *,
        page_rows: int,
    ) -> None:
        self._jobs = jobs
        self._queries = queries
        self._following = following
        self._store = store
        self._series = series
        self._page_rows = page_rows

    async def ListSeries(
        self, request: metrics_service_pb2.ListSeriesRequest, context: Context
    ) -> metrics_service_pb2.ListSeriesResponse:
        _require_not_negative("page_size", request.page_size)
        (job,) = await _named(self._jobs, [request.job], field="job")
        scope = f"series {request.name_prefix}"
        after = wire_series.series_id_from_key(last_from_page_token(request.page_token, job, scope))
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        page, more = await self._queries.page(job, name_prefix=request.name_prefix, after=after, size=size)
        return metrics_service_pb2.ListSeriesResponse(
            series=[wire_series.series_to_proto(job, series) for series in page],
            next_page_token=page_token_to_text(job, scope, str(page[-1].definition.series_id)) if more else "",
        )

    async def QuerySeries(
        self, request: metrics_service_pb2.QuerySeriesRequest, context: Context
    ) -> metrics_service_pb2.QuerySeriesResponse:
        _require_buckets(request.buckets_max)
        selector = wire_series.selector_from_proto(request.selector)
        (job,) = await _named(self._jobs, [request.job], field="job")
        step_min = request.step_min if request.HasField("step_min") else None
        step_max = request.step_max if request.HasField("step_max") else None
        selection = await self._queries.select([job.uid], selector)
        if request.buckets_max:
            by_job = await self._queries.buckets(
                selection, step_min=step_min, step_max=step_max, buckets_max=request.buckets_max
            )
            curves = by_job[job.uid]
        else:
            curves = await self._queries.points(selection, step_min=step_min, step_max=step_max)
        return metrics_service_pb2.QuerySeriesResponse(series=[wire_series.curve_to_proto(curve) for curve in curves])

    async def WatchMetrics(
        self, request: metrics_service_pb2.WatchMetricsRequest, context: Context
    ) -> AsyncIterator[metrics_service_pb2.WatchMetricsResponse]:
        (job,) = await _named(self._jobs, [request.job], field="job")
        reading = PointReading(
            self._store,
            self._series,
            job_uid=job.uid,
            selector=wire_series.selector_from_proto(request.selector),
            cursor=request.cursor,
            page_rows=self._page_rows,
        )
        events = self._following.events(job, WriterKind.POINTS, reading, follow=True)
        async for event in events:
            response = metrics_service_pb2.WatchMetricsResponse(cursor=event.cursor)
            match event:
                case Batch(rows=rows):
                    response.points.CopyFrom(wire_series.live_points_to_proto(rows))
                case CaughtUp():
                    response.caught_up.SetInParent()
                case Heartbeat():
                    response.heartbeat.SetInParent()
                case Ended(state=state, complete=complete):
                    response.ended.state = job_pb2.JobState.ValueType(state)
                    response.ended.points_complete = complete
            yield response

    async def SummarizeJobs(
        self, request: metrics_service_pb2.SummarizeJobsRequest, context: Context
    ) -> metrics_service_pb2.SummarizeJobsResponse:
        jobs = await _named(self._jobs, request.jobs, field="jobs")
        selector = wire_series.selector_from_proto(request.selector)
        selection = await self._queries.select(list(dict.fromkeys(job.uid for job in jobs)), selector)
        found = await self._queries.summarize(selection)
        return metrics_service_pb2.SummarizeJobsResponse(
            series=[wire_series.series_to_proto(job, series) for job in jobs for series in found[job.uid]]
        )

    async def CompareJobs(
        self, request: metrics_service_pb2.CompareJobsRequest, context: Context
    ) -> metrics_service_pb2.CompareJobsResponse:
        _require_buckets(request.buckets_max)
        _require_names(request.jobs, field="jobs")
        selector = wire_series.selector_from_proto(request.selector) if request.HasField("selector") else None
        comparison = await compare_jobs(
            self._jobs, self._queries, request.jobs, selector, buckets_max=request.buckets_max or BUCKETS_DEFAULT
        )
        return wire_series.comparison_to_proto(comparison)

    async def ExportMetrics(
        self, request: metrics_service_pb2.ExportMetricsRequest, context: Context
    ) -> AsyncIterator[metrics_service_pb2.ExportMetricsResponse]:
        message = "ExportMetrics is not served yet: use QuerySeries"
        raise Unimplemented(Reason.NOT_IMPLEMENTED, message, {"method": "ExportMetrics"})
        yield metrics_service_pb2.ExportMetricsResponse()  # type: ignore[unreachable]  # a yield makes it a stream


@dataclass(frozen=True, kw_only=True)
class TailLimits:
    """How much a tail reads and sends at once."""

    page_lines: int
    batch_bytes_max: int
    last_max: int


class LogServicer(log_service_pb2_grpc.LogServiceServicer):
    """Lines out."""

    def __init__(self, jobs: Jobs, following: Following, store: Store, *, limits: TailLimits) -> None:
        self._jobs = jobs
        self._following = following
        self._store = store
        self._lines = LineStore(store)
        self._limits = limits

    async def TailLogs(
        self, request: log_service_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[log_service_pb2.TailLogsResponse]:
        start = wire.start_from_proto(request, tail_last_max=self._limits.last_max)
        wanted = wire.log_filter_from_proto(request.filter)
        (job,) = await _named(self._jobs, [request.job], field="job")
        reading = LineReading(
            self._store,
            self._lines,
            job_uid=job.uid,
            start=start,
            wanted=wanted,
            page_lines=self._limits.page_lines,
            batch_bytes_max=self._limits.batch_bytes_max,
        )
        events = self._following.events(job, WriterKind.LINES, reading, follow=request.follow)
        async for event in events:
            response = log_service_pb2.TailLogsResponse(cursor=event.cursor)
            match event:
                case Batch(rows=rows):
                    response.batch.CopyFrom(wire.log_batch_to_proto(rows))
                case CaughtUp():
                    response.caught_up.SetInParent()
                case Heartbeat():
                    response.heartbeat.SetInParent()
                case Ended(state=state, complete=complete):
                    response.ended.state = job_pb2.JobState.ValueType(state)
                    response.ended.logs_complete = complete
            yield response

    async def ListLogFields(
        self, request: log_service_pb2.ListLogFieldsRequest, context: Context
    ) -> log_service_pb2.ListLogFieldsResponse:
        _require_not_negative("page_size", request.page_size)
        (job,) = await _named(self._jobs, [request.job], field="job")
        after = last_from_page_token(request.page_token, job, SOURCES_SCOPE)
        size = min(request.page_size or SOURCES_PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        fields = await self._lines.fields(job.uid)
        sources = [source for source in fields.sources if after is None or source > after]
        return wire.log_fields_to_proto(
            fields,
            sources=sources[:size],
            is_first=after is None,
            next_page_token=page_token_to_text(job, SOURCES_SCOPE, sources[size - 1]) if len(sources) > size else "",
        )


async def _named(jobs: Jobs, names: Sequence[str], *, field: str) -> list[JobFacts]:
    _require_names(names, field=field)
    return await jobs.named(names)


def _require_names(names: Sequence[str], *, field: str) -> None:
    if not 1 <= len(names) <= JOBS_MAX:
        description = f"has {len(names)} names, but must have 1 to {JOBS_MAX}"
        raise InvalidArgument([Violation(field=field, description=description)])
    wire_jobs.require_job_names(names, field=field)


def _require_not_negative(field: str, value: int) -> None:
    if value < 0:
        raise InvalidArgument([Violation(field=field, description=f"is {value}, but must not be below 0")])


def _require_buckets(buckets_max: int) -> None:
    if not 0 <= buckets_max <= BUCKETS_MAX:
        description = f"is {buckets_max}, but must be from 0 to {BUCKETS_MAX}"
        raise InvalidArgument([Violation(field="buckets_max", description=description)])
