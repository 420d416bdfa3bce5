"""`sihlai metrics export`: every point of a job as a file, for notebooks and spreadsheets."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from sihlai.metrics.v1 import metrics_service_pb2 as pb

from services.chassis.files import replacing
from services.cli.command.arguments import JobArgument
from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError
from services.cli.session import Session, command
from services.client.call import METRICS, read
from services.client.name import job_name

FORMATS = {
    ".csv": pb.EXPORT_FORMAT_CSV,
    ".arrow": pb.EXPORT_FORMAT_ARROW,
    ".arrows": pb.EXPORT_FORMAT_ARROW,
}
STANDARD_OUTPUT = Path("-")


@command
async def export_metrics(
    session: Session,
    job: JobArgument,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SERIES]...", help="Names such as train/loss, with * for any text.")
    ] = None,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="FILE",
            help="What to write: .csv, or .arrow for Arrow's streaming format; - is standard output, as CSV.",
        ),
    ] = STANDARD_OUTPUT,
) -> None:
    """Write every point of a job that counts into a file: name, context, unit, step, time, value.

    Example: sihlai metrics export digits/first --to points.arrow
    """
    request = pb.ExportMetricsRequest(job=job_name(job), selector=pb.SeriesSelector(names=names or []))
    if to == STANDARD_OUTPUT:
        request.format = pb.EXPORT_FORMAT_CSV
        await _write(session, request, sys.stdout.buffer)
        return
    if to.suffix not in FORMATS:
        problem = f"{to} ends in none of {', '.join(FORMATS)}: the ending says which format to write"
        raise CommandError(problem, exit_code=EXIT_NOT_UNDERSTOOD)
    request.format = FORMATS[to.suffix]
    try:
        with replacing(to) as file:
            size_bytes = await _write(session, request, file)
    except OSError as error:
        raise CommandError(f"{to} cannot be written: {error.strerror}") from error
    if session.output.as_json:
        session.output.json({"file": str(to), "size_bytes": size_bytes})
    else:
        session.output.line(str(to))


async def _write(session: Session, request: pb.ExportMetricsRequest, file: BinaryIO) -> int:
    """Write the file as it comes, and return its bytes."""
    size_bytes = 0
    async for answer in session.client.iterate(read, METRICS.ExportMetrics, request):
        await asyncio.to_thread(file.write, answer.chunk)
        size_bytes += len(answer.chunk)
    await asyncio.to_thread(file.flush)
    return size_bytes
