"""LogService: from wire, one call, to wire. No rule and no SQL stands here."""

# ruff: noqa: N802, D102 — the methods are named and described in the .proto files.

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, TypeAlias

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc

from services.chassis.serialized import send
from services.metrics.clickhouse.lines import LineStore
from services.metrics.follow.following import Following
from services.metrics.follow.tail import LineSource, Tails
from services.metrics.jobs import Jobs
from services.metrics.rows import require_regex
from services.metrics.servicer.page_token import page_token_to_text, place_from_page_token
from services.metrics.servicer.request import PAGE_SIZE_MAX, named, require_not_negative
from services.metrics.wire import log as wire
from services.metrics.writer_key import WriterKind

SOURCES_PAGE_SIZE_DEFAULT = 50
SOURCES_SCOPE = "sources"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LogServicer(log_service_pb2_grpc.LogServiceServicer):
    """Lines out. The messages of TailLogs are bytes: add it with `serialized_streams`."""

    def __init__(self, jobs: Jobs, following: Following, tails: Tails, lines: LineStore, *, tail_last_max: int) -> None:
        self._jobs = jobs
        self._following = following
        self._tails = tails
        self._lines = lines
        self._tail_last_max = tail_last_max

    async def TailLogs(  # type: ignore[override]  # it writes bytes, and returns nothing
        self, request: log_service_pb2.TailLogsRequest, context: Context
    ) -> None:
        start = wire.start_from_proto(request, tail_last_max=self._tail_last_max)
        wanted = wire.log_filter_from_proto(request.filter)
        if wanted.regex:
            await asyncio.to_thread(require_regex, wanted)
        (job,) = await named(self._jobs, [request.job], field="job")
        make_source = partial(LineSource, self._tails, job_uid=job.uid, wanted=wanted)
        begin = partial(self._tails.begin, job.uid, start, wanted)
        if request.follow:
            responses = self._following.follow(job, WriterKind.LINES, wanted, make_source, begin)
        else:
            responses = self._following.read(make_source(), begin)
        await send(responses, context)

    async def ListLogFields(
        self, request: log_service_pb2.ListLogFieldsRequest, context: Context
    ) -> log_service_pb2.ListLogFieldsResponse:
        require_not_negative("page_size", request.page_size)
        (job,) = await named(self._jobs, [request.job], field="job")
        after = place_from_page_token(request.page_token, [job], SOURCES_SCOPE, str)
        size = min(request.page_size or SOURCES_PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        fields = await self._lines.fields(job.uid)
        sources = [source for source in fields.sources if after is None or source > after]
        return wire.log_fields_to_proto(
            fields,
            sources=sources[:size],
            is_first=after is None,
            next_page_token=page_token_to_text([job], SOURCES_SCOPE, sources[size - 1]) if len(sources) > size else "",
        )
