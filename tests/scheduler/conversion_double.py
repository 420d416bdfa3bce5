"""A double of the conversion service at the wire, for a scheduler that asks it about datasets."""

from __future__ import annotations

from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc

from services.chassis import rpc
from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, SihlaiError, Unavailable


class Conversion(conversion_service_pb2_grpc.ConversionServiceServicer):
    """A conversion service that knows one answer; the real one has tests of its own."""

    def __init__(self, refusal: SihlaiError | None) -> None:
        self.refusal = refusal
        self.refused_uris: set[str] = set()
        """Where they are not empty, of these datasets alone."""
        self.inspected: conversion_service_pb2.InspectDatasetResponse | None = None
        self.asked: list[conversion_service_pb2.PlanConversionRequest] = []

    async def PlanConversion(self, request, context):  # noqa: N802 - the RPC's name
        self.asked.append(request)
        if self.refusal is not None and (not self.refused_uris or request.source.uri in self.refused_uris):
            raise self.refusal
        return conversion_service_pb2.PlanConversionResponse()

    async def InspectDataset(self, request, context):  # noqa: N802 - the RPC's name
        if self.inspected is None:
            raise Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, "away", {})
        return self.inspected


async def conversion_server(conversion: Conversion) -> rpc.Server:
    server = rpc.Server(ServerConfig(drain_seconds=0.1), OpenGuard())
    server.add(
        "sihlai.conversion.v1.ConversionService",
        lambda s: conversion_service_pb2_grpc.add_ConversionServiceServicer_to_server(conversion, s),
    )
    await server.start()
    return server
