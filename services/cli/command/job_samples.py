"""`sihlai job samples`: what a job's model says of a few validation images, beside what is true."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from sihlai.scheduler.v1 import checkpoint_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Checkpoint

from services.cli.command.arguments import JobArgument
from services.cli.command.checkpoint import download_files
from services.cli.error import CommandError
from services.cli.machine.process import PYTHON
from services.cli.session import Session, command
from services.client.call import CHECKPOINTS, whole
from services.client.name import job_name, short
from services.client.number import INT32_MAX

SAMPLES_FILE, CONFIG_FILE = "samples.json", "config.json"
DRAWING_SECONDS_MAX = 300.0


@command
async def draw_samples(
    session: Session,
    job: JobArgument,
    iteration: Annotated[int, typer.Option(help="After this step; else after the last validation that is kept.")] = 0,
    head: Annotated[str, typer.Option(help="Only this head.")] = "",
    images: Annotated[int, typer.Option(help="So many images of each head at most.", min=1, max=INT32_MAX)] = 12,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="The PNG to write; else one of its name.")
    ] = None,
) -> None:
    """Draw a contact sheet of a job's samples, truth beside prediction; with --json they are told and not drawn.

    Example: sihlai job samples digits/first --to sheet.png
    """
    name = job_name(job)
    checkpoint = await _with_samples(session, name, iteration)
    with tempfile.TemporaryDirectory(prefix="sihlai-samples-") as temporary:
        folder = Path(temporary)
        await download_files(session, checkpoint, folder, only=[SAMPLES_FILE, CONFIG_FILE])
        if session.output.as_json:
            found = json.loads((folder / SAMPLES_FILE).read_bytes())
            session.output.json({"checkpoint": checkpoint.name, **found})
            return
        sheet = to or Path(f"{short(checkpoint.name).replace('/', '-')}-samples.png")
        await _draw(folder, sheet, head, images)
    session.output.line(str(sheet))


async def _with_samples(session: Session, job: str, iteration: int) -> Checkpoint:
    """The newest checkpoint that has samples. Raises CommandError where none has."""
    listed = await session.client.run(whole, CHECKPOINTS.ListCheckpoints, pb.ListCheckpointsRequest(parent=job))
    for checkpoint in listed.checkpoints:
        has = any(file.name == SAMPLES_FILE for file in checkpoint.files)
        if has and iteration in (0, checkpoint.iteration):
            return checkpoint
    when = f" after step {iteration}" if iteration else ""
    raise CommandError(
        f"{short(job)} has no checkpoint with samples{when}: each validation gives one, and `sihlai checkpoint list` "
        "shows those that are kept"
    )


async def _draw(folder: Path, sheet: Path, head: str, images: int) -> None:
    """Draw in a process of the runner's: this one has no torch. Raises CommandError."""
    if importlib.util.find_spec("torch") is None:
        raise CommandError("drawing samples needs the runner's libraries: install sihlai[runner], or take --json")
    words = ["--checkpoint", str(folder), "--sheet", str(sheet), "--head", head, "--images", str(images)]
    process = await asyncio.create_subprocess_exec(
        *PYTHON,
        "-m",
        "runner.samples",
        *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), DRAWING_SECONDS_MAX)
    except TimeoutError:
        raise CommandError(f"the samples were not drawn within {DRAWING_SECONDS_MAX:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        last = next((line for line in reversed(errors.decode(errors="replace").splitlines()) if line.strip()), "")
        raise CommandError(f"the samples cannot be drawn: {last.strip() or 'the process said nothing'}")
