"""What every server says of itself: its version, and, where it is the scheduler, where the other services are."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from sihlai.installation.v1 import installation_service_pb2 as messages
from sihlai.installation.v1 import installation_service_pb2_grpc

SERVICE = messages.DESCRIPTOR.services_by_name["InstallationService"].full_name
PACKAGE = "sihlai"


class InstallationServicer(installation_service_pb2_grpc.InstallationServiceServicer):
    """`addresses` by service, as clients reach them."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._answer = messages.GetInstallationResponse(version=version(PACKAGE), addresses=addresses)

    async def GetInstallation(
        self, request: messages.GetInstallationRequest, context: Any
    ) -> messages.GetInstallationResponse:
        return self._answer
