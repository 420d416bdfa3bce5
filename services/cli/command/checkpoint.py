"""`sihlai checkpoint`: list, download."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from sihlai.scheduler.v1 import checkpoint_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Checkpoint, CheckpointFile

from services.cli.command.arguments import CheckpointArgument, JobArgument
from services.cli.error import CommandError
from services.cli.session import Session, command
from services.cli.view.table import checkpoints_table, size_text
from services.client.call import CHECKPOINTS, ask, whole
from services.client.checkpoint import downloaded
from services.client.name import checkpoint_name, job_name, short

app = typer.Typer(no_args_is_help=True, help="Models of jobs: listed, downloaded.")


@app.command("list")
@command
async def list_checkpoints(
    session: Session,
    job: JobArgument,
) -> None:
    """List a job's checkpoints, newest first.

    Example: sihlai checkpoint list digits/first
    """
    request = pb.ListCheckpointsRequest(parent=job_name(job))
    found = await session.client.run(whole, CHECKPOINTS.ListCheckpoints, request)
    if session.output.as_json:
        session.output.json(found)
    else:
        session.output.show(checkpoints_table(found.checkpoints))


@app.command("download")
@command
async def download_checkpoint(
    session: Session,
    checkpoint: CheckpointArgument,
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write into; else one of its name.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="Only this file, such as model.safetensors.")] = None,
) -> None:
    """Download a checkpoint's files. A download that was broken off goes on where it was; every file is verified.

    Example: sihlai checkpoint download digits/first/best --to model
    """
    name = checkpoint_name(checkpoint)
    found = (await session.client.run(ask, CHECKPOINTS.GetCheckpoint, pb.GetCheckpointRequest(name=name))).checkpoint
    folder = to or Path(short(found.name).replace("/", "-"))
    await download_files(session, found, folder, only=file)
    if session.output.as_json:
        session.output.json({"checkpoint": found.name, "folder": str(folder), "files": [f.name for f in found.files]})
    else:
        session.output.line(str(folder))


async def download_files(session: Session, checkpoint: Checkpoint, folder: Path, *, only: list[str] | None) -> None:
    """Download the checkpoint's files, or some of them, into the folder, with a bar for each at a terminal."""
    if unknown := set(only or ()) - {file.name for file in checkpoint.files}:
        names = ", ".join(file.name for file in checkpoint.files)
        raise CommandError(f"{short(checkpoint.name)} has no file {', '.join(sorted(unknown))}: it has {names}")
    folder.mkdir(parents=True, exist_ok=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=session.output.errors,
        disable=not session.output.draws_progress,
    )
    with bars:
        for file in checkpoint.files:
            if only and file.name not in only:
                continue
            on_progress = functools.partial(_draw, bars, bars.add_task(file.name, total=file.size_bytes))
            await session.client.run(downloaded, checkpoint, folder, files=[file.name], on_progress=on_progress)
            if bars.disable and not session.output.as_json:
                session.output.note(f"{file.name}: {size_text(file.size_bytes)}, verified")


def _draw(bars: Progress, bar: TaskID, file: CheckpointFile, size_bytes: int) -> None:
    bars.update(bar, completed=size_bytes)
