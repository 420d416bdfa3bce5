"""IngestService: from wire, one call, to wire."""

# ruff: noqa: N802, D102 — the methods are named and described in the .proto files.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from sihlai.metrics.v1 import ingest_service_pb2, ingest_service_pb2_grpc

from services.chassis.errors import SihlaiError
from services.metrics.ingest.opening import Openings
from services.metrics.ingest.stream import IngestStream
from services.metrics.ingest.writer import Opening
from services.metrics.rows import LineRows, PointRows
from services.metrics.wire import ingest as wire
from services.metrics.writer_key import Finish, WriterKey

INLINE_BYTES_MAX = 2**18
"""A larger request is turned into rows by a thread: a hundred thousand lines would hold everybody else up."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """Points and lines in."""

    def __init__(
        self,
        openings: Openings,
        *,
        limits: wire.MessageLimits,
        on_finish: Callable[[WriterKey], None],
        stopping: asyncio.Event,
    ) -> None:
        self._openings = openings
        self._limits = limits
        self._on_finish = on_finish
        self._stopping = stopping

    async def Ingest(
        self, request_iterator: AsyncIterator[ingest_service_pb2.IngestRequest], context: Context
    ) -> AsyncIterator[ingest_service_pb2.IngestResponse]:
        stream = IngestStream(self._openings, on_finish=self._on_finish)
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
        try:
            if size_bytes > INLINE_BYTES_MAX:
                message = await asyncio.to_thread(wire.ingest_message_from_proto, request, self._limits)
            else:
                message = wire.ingest_message_from_proto(request, self._limits)
        except SihlaiError as error:
            if request.HasField("open"):
                stream.refuse_opening(request.writer, error)
            else:
                await stream.refuse(request.writer, error, sequence=wire.sequence_of(request))
            return
        match message:
            case Opening() as opening:
                stream.open(request.writer, opening)
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
