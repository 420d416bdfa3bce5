"""What an installation is made of, as its services tell."""

from __future__ import annotations

import dataclasses
from typing import Any

from sihlai.installation.v1.installation_service_pb2 import GetInstallationRequest, GetInstallationResponse

from services.client.call import INSTALLATION, Operation, ask

SECONDS_MAX = 10.0


def installed(service: str = "scheduler") -> Operation[GetInstallationResponse]:
    """What a service says of itself; the scheduler knows where the others are."""
    method: Any = dataclasses.replace(INSTALLATION.GetInstallation, at=service)  # type: ignore[type-var]
    answer: GetInstallationResponse = yield from ask(method, GetInstallationRequest(), SECONDS_MAX)
    return answer
