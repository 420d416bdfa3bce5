"""Reports of conversions: from the object store's JSON to protos, and their names."""

from __future__ import annotations

from google.protobuf import json_format
from sihlai.scheduler.v1 import conversion_report_service_pb2 as messages

from services.chassis.errors import NotFound, Reason
from services.scheduler.objects.conversion_reports import ReportKey
from services.scheduler.wire.names import job_ids_of, wrong_name

COLLECTION = "conversionReports"
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def report_ids_of(name: str, field: str = "name") -> tuple[str, str, ReportKey]:
    """Project, job and key in `projects/{project}/jobs/{job}/conversionReports/{report}`."""
    parent, _, report_id = name.rpartition(f"/{COLLECTION}/")
    key = ReportKey.from_id(report_id)
    if key is None:
        pattern = f"projects/{{project}}/jobs/{{job}}/{COLLECTION}/{{epoch}}-{{training|validation}}-{{head}}"
        raise wrong_name(name, pattern, field)
    return *job_ids_of(parent, field), key


def report_name(job_name: str, key: ReportKey) -> str:
    """The resource name."""
    return f"{job_name}/{COLLECTION}/{key.report_id}"


def report_from_json(content: bytes, job_name: str, key: ReportKey, attempt: int) -> messages.ConversionReport:
    """The report that a runner wrote, named for its place. NotFound where it is none, or is of another place.

    A report that was copied to another place would tell of another attempt's conversion.
    """
    name = report_name(job_name, key)
    try:
        report = json_format.Parse(content, messages.ConversionReport(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise _not_whole(name, str(error)) from error
    split = messages.DatasetSplit.Value(f"DATASET_SPLIT_{key.split.upper()}")
    if (report.epoch, report.split, report.head, report.attempt) != (key.epoch, split, key.head, attempt):
        found = f"attempt {report.attempt}, epoch {report.epoch}, split {report.split}, head {report.head!r}"
        raise _not_whole(name, f"it is of {found}")
    report.name = name
    return report


def media_type_of(file: str) -> str:
    """What kind of picture a file is by its name; empty for what is none."""
    return next((media_type for suffix, media_type in MEDIA_TYPES.items() if file.lower().endswith(suffix)), "")


def _not_whole(name: str, problem: str) -> NotFound:
    message = f"there is no report {name}: what lies in its place cannot be read: {problem}"
    return NotFound(Reason.CONVERSION_REPORT_NOT_FOUND, message, {"name": name})
