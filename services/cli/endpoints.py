"""Where the services are: flags first, then the environment, then what `sihlai up` wrote into the data folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub
from sihlai.logs.v1.log_service_pb2_grpc import LogServiceStub
from sihlai.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from sihlai.runner.v1.runner_admin_service_pb2_grpc import RunnerAdminServiceStub
from sihlai.scheduler.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from sihlai.scheduler.v1.conversion_report_service_pb2_grpc import ConversionReportServiceStub
from sihlai.scheduler.v1.job_service_pb2_grpc import JobServiceStub
from sihlai.scheduler.v1.project_service_pb2_grpc import ProjectServiceStub

from services.chassis.rpc import channel
from services.cli.folder import DataFolder, read_endpoints

if TYPE_CHECKING:  # the stubs of mypy-protobuf alone know these
    from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceAsyncStub
    from sihlai.logs.v1.log_service_pb2_grpc import LogServiceAsyncStub
    from sihlai.metrics.v1.metrics_service_pb2_grpc import MetricsServiceAsyncStub
    from sihlai.runner.v1.runner_admin_service_pb2_grpc import RunnerAdminServiceAsyncStub
    from sihlai.scheduler.v1.checkpoint_service_pb2_grpc import CheckpointServiceAsyncStub
    from sihlai.scheduler.v1.conversion_report_service_pb2_grpc import ConversionReportServiceAsyncStub
    from sihlai.scheduler.v1.job_service_pb2_grpc import JobServiceAsyncStub
    from sihlai.scheduler.v1.project_service_pb2_grpc import ProjectServiceAsyncStub


class NoEndpointError(Exception):
    """Nobody said where a service is; the message is for a person."""


def default_data_folder(environ: Mapping[str, str]) -> Path:
    """SIHLAI_DATA, else `sihlai` in the user's folder for data (XDG_DATA_HOME, else ~/.local/share)."""
    if environ.get("SIHLAI_DATA"):
        return Path(environ["SIHLAI_DATA"]).expanduser()
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "sihlai"


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """The addresses by service, as far as they are known, and the folder where they were looked for."""

    addresses: Mapping[str, str]
    folder: DataFolder

    def address(self, service: str) -> str:
        """The service's address, or NoEndpointError with what to do."""
        if address := self.addresses.get(service):
            return address
        raise NoEndpointError(
            f"the address of the {service} service is not known: start everything with `sihlai up`, or give "
            f"--{service} HOST:PORT, or set SIHLAI_{service.upper()}_ADDRESS "
            f"(nothing is up in {self.folder.root})"
        )


def resolve(*, flags: Mapping[str, str | None], data: Path | None, environ: Mapping[str, str]) -> Endpoints:
    """Look everywhere, in order. `flags` is by service."""
    folder = DataFolder(root=data or default_data_folder(environ))
    found = read_endpoints(folder)
    addresses = {
        service: flag or environ.get(f"SIHLAI_{service.upper()}_ADDRESS") or found.get(service, "")
        for service, flag in flags.items()
    }
    return Endpoints(addresses=addresses, folder=folder)


class Services:
    """Clients of the services, one channel each, opened with the first use. An async context manager closes them."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._open = AsyncExitStack()
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Services:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def projects(self) -> ProjectServiceAsyncStub:
        """The scheduler's projects."""
        return ProjectServiceStub(self._channel("scheduler"))

    @property
    def jobs(self) -> JobServiceAsyncStub:
        """The scheduler's jobs."""
        return JobServiceStub(self._channel("scheduler"))

    @property
    def checkpoints(self) -> CheckpointServiceAsyncStub:
        """The scheduler's checkpoints."""
        return CheckpointServiceStub(self._channel("scheduler"))

    @property
    def conversion_reports(self) -> ConversionReportServiceAsyncStub:
        """What conversions gave for the scheduler's jobs."""
        return ConversionReportServiceStub(self._channel("scheduler"))

    @property
    def runners(self) -> RunnerAdminServiceAsyncStub:
        """The scheduler's runners."""
        return RunnerAdminServiceStub(self._channel("scheduler"))

    @property
    def metrics(self) -> MetricsServiceAsyncStub:
        """Series."""
        return MetricsServiceStub(self._channel("metrics"))

    @property
    def logs(self) -> LogServiceAsyncStub:
        """Log lines."""
        return LogServiceStub(self._channel("metrics"))

    @property
    def conversion(self) -> ConversionServiceAsyncStub:
        """Datasets."""
        return ConversionServiceStub(self._channel("conversion"))

    def _channel(self, service: str) -> grpc.aio.Channel:
        if service not in self._channels:
            opened = channel(self.endpoints.address(service))
            self._open.push_async_callback(opened.close)
            self._channels[service] = opened
        return self._channels[service]
