"""ConversionReportService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

from typing import Any

from sihlai.scheduler.v1 import conversion_report_service_pb2 as messages
from sihlai.scheduler.v1 import conversion_report_service_pb2_grpc

from services.chassis.errors import NotFound, Reason
from services.chassis.log import get_logger
from services.scheduler.domain.view import JobView
from services.scheduler.objects.conversion_reports import ConversionReportStore, ReportKey
from services.scheduler.store.jobs import JobStore
from services.scheduler.wire.conversion_report import media_type_of, report_from_json, report_ids_of, report_name
from services.scheduler.wire.names import job_ids_of, page_size_of, page_token, page_token_after
from services.scheduler.wire.page import PAGE_BYTES_MAX

log = get_logger(__name__)

KEY_FORM = "[0-9]{1,18}-[a-z]+-[a-z0-9-]+"


class ConversionReportServicer(conversion_report_service_pb2_grpc.ConversionReportServiceServicer):
    """Reports of conversions: `jobs` says which attempts a job had, `store` what they kept."""

    def __init__(self, jobs: JobStore, store: ConversionReportStore) -> None:
        self._jobs = jobs
        self._store = store

    async def ListConversionReports(
        self, request: messages.ListConversionReportsRequest, context: Any
    ) -> messages.ListConversionReportsResponse:
        limit = page_size_of(request.page_size)
        after = ReportKey.from_id(page_token_after(request.page_token, request.parent, form=KEY_FORM))
        view, _ = await self._jobs.get(*job_ids_of(request.parent, "parent"))
        keys = await self._store.keys(view.job.uid, [attempt.epoch for attempt in view.attempts])
        keys = [key for key in keys if after is None or key.order > after.order]
        response = messages.ListConversionReportsResponse()
        bytes_left = PAGE_BYTES_MAX
        # One after the other: with their findings they are too large to be in memory all at once.
        for index, key in enumerate(keys):
            report = await self._listed(view, key) if index < limit else None
            bytes_left -= report.ByteSize() if report is not None else 0
            if index == limit or (bytes_left < 0 and response.conversion_reports):
                response.next_page_token = page_token(keys[index - 1].report_id, request.parent)
                break
            if report is not None:
                response.conversion_reports.append(report)
        return response

    async def GetConversionReport(
        self, request: messages.GetConversionReportRequest, context: Any
    ) -> messages.GetConversionReportResponse:
        project_id, job_id, key = report_ids_of(request.name)
        view, _ = await self._jobs.get(project_id, job_id)
        report = await self._read(view, key)
        response = messages.GetConversionReportResponse(conversion_report=report)
        if file := report.result.contact_sheet:
            response.contact_sheet = await self._store.read(view.job.uid, key, file)
            response.media_type = media_type_of(file)
        return response

    async def _listed(self, view: JobView, key: ReportKey) -> messages.ConversionReport | None:
        """The report without its findings; None where there is none any more, or where it cannot be read."""
        try:
            report = await self._read(view, key)
        except NotFound as error:
            log.warning("conversion_report_not_whole", report=key.report_id, problem=error.message)
            return None
        report.ClearField("findings")
        return report

    async def _read(self, view: JobView, key: ReportKey) -> messages.ConversionReport:
        attempt = next((attempt.number for attempt in view.attempts if attempt.epoch == key.epoch), None)
        if attempt is None:
            name = report_name(view.job.name, key)
            raise NotFound(Reason.CONVERSION_REPORT_NOT_FOUND, f"{name} does not exist", {"name": name})
        content = await self._store.read(view.job.uid, key)
        return report_from_json(content, view.job.name, key, attempt)
