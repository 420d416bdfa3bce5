"""sihlai.conversion.v1.ConversionService: from the wire, one call, to the wire."""

# ruff: noqa: N802, D102 — the methods bear the names of the RPCs, which the proto describes.

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceServicer

from services.chassis.rpc import until_stopping
from services.conversion.library import Library
from services.conversion.task import Task
from services.conversion.wire import dataset as wire
from services.conversion.wire import exchange as wire_exchange
from services.conversion.wire import images as wire_images
from services.conversion.wire import preview as wire_preview

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ConversionServicer(ConversionServiceServicer):
    """Serves a library. `stopping` ends streams when the server stops: the next call takes the work up again."""

    def __init__(self, library: Library, stopping: asyncio.Event) -> None:
        self._library = library
        self._stopping = stopping

    async def ListTasks(self, request: service_pb2.ListTasksRequest, context: Context) -> service_pb2.ListTasksResponse:
        begin, end = wire.page_from_proto(request.page_size, request.page_token, len(Task))
        return service_pb2.ListTasksResponse(
            tasks=[wire.description_to_proto(task) for task in list(Task)[begin:end]],
            next_page_token=str(end) if end < len(Task) else "",
        )

    async def PlanConversion(
        self, request: service_pb2.PlanConversionRequest, context: Context
    ) -> service_pb2.PlanConversionResponse:
        way, annotation_set = await self._library.plan(*wire.plan_request_from_proto(request))
        return wire.plan_to_proto(way, annotation_set)

    async def InspectDataset(
        self, request: service_pb2.InspectDatasetRequest, context: Context
    ) -> service_pb2.InspectDatasetResponse:
        return wire.inspection_to_proto(await self._library.inspect(wire.inspect_request_from_proto(request)))

    async def StreamInspection(
        self, request: service_pb2.StreamInspectionRequest, context: Context
    ) -> AsyncIterator[service_pb2.StreamInspectionResponse]:
        items = self._library.stream_inspection(wire.inspect_request_from_proto(request))
        async with contextlib.aclosing(items):
            async for item in until_stopping(items, self._stopping):
                yield wire.streamed_inspection_to_proto(item)

    async def ValidateDataset(
        self, request: service_pb2.ValidateDatasetRequest, context: Context
    ) -> AsyncIterator[service_pb2.ValidateDatasetResponse]:
        items = self._library.validate(*wire.validate_request_from_proto(request))
        async with contextlib.aclosing(items):
            async for item in until_stopping(items, self._stopping):
                yield wire.validation_to_proto(item)

    async def ConvertDataset(
        self, request: service_pb2.ConvertDatasetRequest, context: Context
    ) -> AsyncIterator[service_pb2.ConvertDatasetResponse]:
        items = self._library.convert(wire.convert_request_from_proto(request))
        async with contextlib.aclosing(items):
            async for item in until_stopping(items, self._stopping):
                yield wire.conversion_to_proto(item)

    async def ImportDataset(
        self, request: service_pb2.ImportDatasetRequest, context: Context
    ) -> AsyncIterator[service_pb2.ImportDatasetResponse]:
        items = self._library.exchange.import_dataset(wire_exchange.import_request_from_proto(request))
        async with contextlib.aclosing(items):
            async for item in until_stopping(items, self._stopping):
                yield wire_exchange.import_to_proto(item)

    async def ExportDataset(
        self, request: service_pb2.ExportDatasetRequest, context: Context
    ) -> AsyncIterator[service_pb2.ExportDatasetResponse]:
        items = self._library.exchange.export_dataset(wire_exchange.export_request_from_proto(request))
        async with contextlib.aclosing(items):
            async for item in until_stopping(items, self._stopping):
                yield wire_exchange.export_to_proto(item)

    async def PreviewDataset(
        self, request: service_pb2.PreviewDatasetRequest, context: Context
    ) -> service_pb2.PreviewDatasetResponse:
        preview = await self._library.preview(wire_preview.preview_request_from_proto(request))
        return wire_preview.preview_to_proto(preview)

    async def ListImages(
        self, request: service_pb2.ListImagesRequest, context: Context
    ) -> service_pb2.ListImagesResponse:
        limits = self._library.cataloguer.limits
        page = await self._library.images(wire_images.images_request_from_proto(request, limits))
        return wire_images.images_to_proto(page)

    async def GetImage(self, request: service_pb2.GetImageRequest, context: Context) -> service_pb2.GetImageResponse:
        limits = self._library.cataloguer.limits
        return wire_images.image_to_proto(
            await self._library.image(*wire_images.image_request_from_proto(request, limits))
        )
