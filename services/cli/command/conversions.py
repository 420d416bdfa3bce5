"""`sihlai job conversions`: what conversions made of a job's datasets, for each of its heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from sihlai.scheduler.v1 import conversion_report_service_pb2 as pb
from sihlai.scheduler.v1.conversion_report_service_pb2 import ConversionReport

from services.cli.command.arguments import JobArgument
from services.cli.session import Session, command
from services.cli.view.dataset_table import counted, path_text
from services.cli.view.listing import Column, Listing
from services.cli.view.text import shown
from services.client.call import CONVERSION_REPORTS, ask, whole
from services.client.name import job_name, short


@command
async def show_conversions(
    session: Session,
    job: JobArgument,
    sheets: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the contact sheets into this folder.")
    ] = None,
) -> None:
    """Show what conversions gave for each head: what came in, what went out, what was dropped and why.

    With --json every report comes whole, with its findings, a line each.

    Example: sihlai job conversions digits/first --sheets seen
    """
    name = job_name(job)
    reports = newest(await _reports(session, name))
    if session.output.as_json or sheets:
        for report in reports:
            request = pb.GetConversionReportRequest(name=report.name)
            whole = await session.client.run(ask, CONVERSION_REPORTS.GetConversionReport, request)
            sheet = _write_sheet(whole, sheets) if sheets and whole.contact_sheet else None
            if session.output.as_json:
                session.output.json(whole.conversion_report)
            elif sheet:
                session.output.note(f"wrote {sheet}")
    if session.output.as_json:
        return
    if reports:
        session.output.show(reports_drawing(reports))
    else:
        session.output.note(f"there is no report of a conversion for {short(name)} yet")


def newest(reports: Iterable[ConversionReport]) -> list[ConversionReport]:
    """Of each head and dataset the newest attempt's report; they come newest first."""
    found: dict[tuple[str, int], ConversionReport] = {}
    for report in reports:
        found.setdefault((report.head, report.split), report)
    return list(found.values())


def reports_drawing(reports: Sequence[ConversionReport]) -> RenderableType:
    """One row a report."""
    table = Listing(
        Column(name="head"),
        Column(name="dataset"),
        Column(name="path", goes=2, breaks=True),
        Column(name="labelled images", goes=3),
        Column(name="annotations", goes=4),
        Column(name="dropped", goes=1, breaks=True),
        Column(name="found", goes=5, breaks=True),
        Column(name="sheet", goes=6, breaks=True),
    )
    for report in reports:
        result = report.result
        table.add_row(
            Text(shown(report.head)),
            split_name(report.split),
            _path(report),
            f"{result.labelled_in:,} → {result.labelled_out:,} of {result.images_in:,}",
            f"{result.annotations_in:,} → {result.annotations_out:,}",
            _dropped(report),
            _found(report),
            Text(shown(result.contact_sheet)),
        )
    attempts = sorted({report.attempt for report in reports})
    said = f"as attempt {attempts[0]} found them" if len(attempts) == 1 else "each as its newest attempt found it"
    return Group(table, Text(f"\n{said}", style="dim"))


def split_name(split: pb.DatasetSplit.ValueType) -> str:
    """`training` or `validation`."""
    return pb.DatasetSplit.Name(split).removeprefix("DATASET_SPLIT_").lower()


async def _reports(session: Session, name: str) -> list[ConversionReport]:
    request = pb.ListConversionReportsRequest(parent=name)
    answer = await session.client.run(whole, CONVERSION_REPORTS.ListConversionReports, request)
    return list(answer.conversion_reports)


def _write_sheet(whole: pb.GetConversionReportResponse, folder: Path) -> Path:
    """The picture under a name of its head and dataset."""
    report = whole.conversion_report
    folder.mkdir(parents=True, exist_ok=True)
    suffix = PurePosixPath(report.result.contact_sheet).suffix
    path = folder / PurePosixPath(f"{report.head}-{split_name(report.split)}{suffix}").name
    path.write_bytes(whole.contact_sheet)
    return path


def _path(report: ConversionReport) -> Text:
    steps = report.result.steps
    return path_text(steps[0].from_task, steps) if steps else Text("as annotated", style="dim")


def _dropped(report: ConversionReport) -> Text:
    dropped = report.result.dropped
    if not dropped:
        return Text("nothing", style="green")
    return Text(
        "\n".join(f"{each.annotations:,} in {counted(each.images, 'image')}: {shown(each.rule)}" for each in dropped)
    )


def _found(report: ConversionReport) -> Text:
    """Errors of a lenient conversion, and warnings."""
    counts = {"error": report.result.errors, "warning": report.result.warnings}
    said = ", ".join(counted(count, noun) for noun, count in counts.items() if count)
    return Text(said, style="yellow") if said else Text("nothing", style="green")
