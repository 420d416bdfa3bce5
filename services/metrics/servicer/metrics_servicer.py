"""MetricsService: from wire, one call, to wire. No rule and no SQL stands here."""

# ruff: noqa: N802, D102 — the methods are named and described in the .proto files.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc
from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc, series_pb2

from services.chassis.errors import InvalidArgument, Reason, ResourceExhausted, Violation
from services.chassis.serialized import send
from services.metrics.cursor import encode_cursor
from services.metrics.follow.following import Following
from services.metrics.follow.watch import PointSource, Watches
from services.metrics.job import JobFacts
from services.metrics.jobs import Jobs
from services.metrics.point import Selector, SeriesDefinition, Summary
from services.metrics.query.compare import BUCKETS_DEFAULT, compare_jobs
from services.metrics.query.export import exported
from services.metrics.query.query import Curve, PageStart, Queries
from services.metrics.servicer.page_token import page_token_to_text, place_from_page_token
from services.metrics.servicer.request import (
    PAGE_BYTES_MAX,
    PAGE_SIZE_MAX,
    named,
    require_names,
    require_not_negative,
)
from services.metrics.wire import series as wire_series
from services.metrics.wire.export import export_file
from services.metrics.writer_key import WriterKind

PAGE_SIZE_DEFAULT = 200
BUCKETS_MAX = 10_000
FIELD_BYTES_MAX = 8
"""What a message takes in a list beside its own bytes."""
ENVELOPE_BYTES_MAX = 2**16
"""What an answer holds beside its series: a page token."""
CHUNK_BYTES = 2**20
"""Of a file that goes out in pieces."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Series out. The messages of WatchMetrics are bytes: add it with `serialized_streams`."""

    def __init__(
        self, jobs: Jobs, queries: Queries, following: Following, watches: Watches, *, message_bytes_max: int
    ) -> None:
        self._jobs = jobs
        self._queries = queries
        self._following = following
        self._watches = watches
        self._answer_bytes_max = message_bytes_max - ENVELOPE_BYTES_MAX

    async def ListSeries(
        self, request: metrics_service_pb2.ListSeriesRequest, context: Context
    ) -> metrics_service_pb2.ListSeriesResponse:
        require_not_negative("page_size", request.page_size)
        (job,) = await named(self._jobs, [request.job], field="job")
        scope = f"series {request.name_prefix}"
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        after = place_from_page_token(request.page_token, [job], scope, wire_series.series_place_from_key)
        series, last = await self._page([job], Selector(), name_prefix=request.name_prefix, after=after, size=size)
        return metrics_service_pb2.ListSeriesResponse(
            series=series, next_page_token=page_token_to_text([job], scope, last) if last else ""
        )

    async def QuerySeries(
        self, request: metrics_service_pb2.QuerySeriesRequest, context: Context
    ) -> metrics_service_pb2.QuerySeriesResponse:
        _require_buckets(request.buckets_max)
        selector = wire_series.selector_from_proto(request.selector)
        layout = wire_series.layout_from_proto(request, buckets_max=request.buckets_max)
        (job,) = await named(self._jobs, [request.job], field="job")
        scope = f"points {selector} {layout}"
        start = place_from_page_token(request.page_token, [job], scope, wire_series.page_start_from_key)
        selection, origins = await asyncio.gather(
            self._queries.select([job.uid], selector), self._queries.origins([job.uid], layout.axis)
        )

        async def read() -> tuple[list[Curve], PageStart | None]:
            if layout.buckets_max:
                return (await self._queries.buckets(selection, layout, origins))[job.uid], None
            return await self._queries.points(selection, layout, origins, start=start)

        if request.with_cursor:
            (curves, following), places, overlapping = await self._queries.with_places([job.uid], read)
            cursor = encode_cursor(job.uid, WriterKind.POINTS, places[job.uid])
        else:
            (curves, following), cursor, overlapping = await read(), "", frozenset()
        key = "" if following is None else wire_series.page_start_to_key(following)
        series = await asyncio.to_thread(lambda: [wire_series.curve_to_proto(curve) for curve in curves])
        response = metrics_service_pb2.QuerySeriesResponse(
            series=series,
            next_page_token=page_token_to_text([job], scope, key) if key else "",
            cursor=cursor,
            cursor_overlaps=bool(overlapping),
            origin_time_unix_us=origins.get(job.uid, 0),
        )
        self._require_fits(response)
        return response

    async def WatchMetrics(  # type: ignore[override]  # it writes bytes, and returns nothing
        self, request: metrics_service_pb2.WatchMetricsRequest, context: Context
    ) -> None:
        selector = wire_series.selector_from_proto(request.selector)
        (job,) = await named(self._jobs, [request.job], field="job")
        make_source = partial(PointSource, self._watches, job_uid=job.uid, selector=selector)
        begin = partial(self._watches.begin, job.uid, request.cursor)
        responses = self._following.follow(job, WriterKind.POINTS, selector, make_source, begin)
        await send(responses, context)

    async def SummarizeJobs(
        self, request: metrics_service_pb2.SummarizeJobsRequest, context: Context
    ) -> metrics_service_pb2.SummarizeJobsResponse:
        require_not_negative("page_size", request.page_size)
        selector = wire_series.selector_from_proto(request.selector)
        jobs = list({job.uid: job for job in await named(self._jobs, request.jobs, field="jobs")}.values())
        scope = f"summaries {selector}"
        size = min(request.page_size or PAGE_SIZE_MAX, PAGE_SIZE_MAX)
        after = place_from_page_token(request.page_token, jobs, scope, wire_series.series_place_from_key)
        series, last = await self._page(jobs, selector, name_prefix="", after=after, size=size)
        return metrics_service_pb2.SummarizeJobsResponse(
            series=series, next_page_token=page_token_to_text(jobs, scope, last) if last else ""
        )

    async def CompareJobs(
        self, request: metrics_service_pb2.CompareJobsRequest, context: Context
    ) -> metrics_service_pb2.CompareJobsResponse:
        _require_buckets(request.buckets_max)
        require_names(request.jobs, field="jobs")
        selector = wire_series.selector_from_proto(request.selector) if request.HasField("selector") else None
        layout = wire_series.layout_from_proto(request, buckets_max=request.buckets_max or BUCKETS_DEFAULT)
        comparison = await compare_jobs(
            self._jobs, self._queries, request.jobs, selector, layout, with_places=request.with_cursors
        )
        response = await asyncio.to_thread(wire_series.comparison_to_proto, comparison)
        self._require_fits(response)
        return response

    async def ExportMetrics(
        self, request: metrics_service_pb2.ExportMetricsRequest, context: Context
    ) -> AsyncIterator[metrics_service_pb2.ExportMetricsResponse]:
        selector = wire_series.selector_from_proto(request.selector)
        file = export_file(request.format)
        (job,) = await named(self._jobs, [request.job], field="job")
        async for curves in exported(self._queries, job.uid, selector):
            for chunk in _chunks(await asyncio.to_thread(file.add, curves)):
                yield chunk
        for chunk in _chunks(file.end()):
            yield chunk

    async def _page(
        self,
        jobs: Sequence[JobFacts],
        selector: Selector,
        *,
        name_prefix: str,
        after: tuple[str, str, int] | None,
        size: int,
    ) -> tuple[list[series_pb2.Series], str]:
        """A page of series with points, and the key after which the next begins; empty at the end."""
        by_uid = {job.uid: job for job in jobs}
        page, more = await self._queries.page(list(by_uid), selector, name_prefix=name_prefix, after=after, size=size)
        bytes_max = min(PAGE_BYTES_MAX, self._answer_bytes_max)
        return await asyncio.to_thread(_page_to_proto, by_uid, page, more, bytes_max)

    def _require_fits(
        self, response: metrics_service_pb2.QuerySeriesResponse | metrics_service_pb2.CompareJobsResponse
    ) -> None:
        size_bytes = response.ByteSize()
        if size_bytes > self._answer_bytes_max:
            message = (
                f"the answer has {size_bytes} bytes, but {self._answer_bytes_max} is the most: ask for fewer series"
            )
            metadata = {"what": "message_bytes_max", "limit": str(self._answer_bytes_max)}
            raise ResourceExhausted(Reason.LIMIT_REACHED, message, metadata)


def _page_to_proto(
    by_uid: Mapping[str, JobFacts],
    page: Sequence[tuple[str, SeriesDefinition, Summary | None]],
    more: bool,
    bytes_max: int,
) -> tuple[list[series_pb2.Series], str]:
    """As many as fit, at least one, and the key of the last that was looked at where something follows."""
    series: list[series_pb2.Series] = []
    size_bytes, last = 0, ""
    for job_uid, definition, summary in page:
        if summary is not None:
            proto = wire_series.series_to_proto(by_uid[job_uid], definition, summary)
            size_bytes += proto.ByteSize() + FIELD_BYTES_MAX
            if series and size_bytes > bytes_max:
                return series, last
            series.append(proto)
        last = wire_series.series_place_to_key(job_uid, definition)
    return series, last if more else ""


def _chunks(content: bytes) -> Iterator[metrics_service_pb2.ExportMetricsResponse]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield metrics_service_pb2.ExportMetricsResponse(chunk=content[start : start + CHUNK_BYTES])


def _require_buckets(buckets_max: int) -> None:
    if not 0 <= buckets_max <= BUCKETS_MAX:
        description = f"is {buckets_max}, but must be from 0 to {BUCKETS_MAX}"
        raise InvalidArgument([Violation(field="buckets_max", description=description)])
