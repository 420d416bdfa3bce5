"""`sihlai predict`: a model, used on images."""

from __future__ import annotations

import enum
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from sihlai.scheduler.v1.checkpoint_service_pb2 import GetCheckpointRequest

from services.cli.command.arguments import ModelArgument
from services.cli.command.checkpoint import download_files
from services.cli.error import EXIT_FAILED, CommandError
from services.cli.machine.predictor import MODEL_FILES, Prediction, predicted
from services.cli.session import Session, command
from services.cli.view.listing import Column, Listing
from services.client.call import CHECKPOINTS, ask
from services.client.name import checkpoint_name

CONFIG_FILE = "config.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class Device(enum.StrEnum):
    """Where a prediction is computed."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@command
async def predict_images(
    session: Session,
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")],
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="FOLDER", help="Write pictures of the predictions, and maps.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Say what a model sees on images: a table, JSON a line each, or pictures in a folder.

    Example: sihlai predict digits/first/best photos --draw seen
    """
    files = images_in(images)
    with tempfile.TemporaryDirectory(prefix="sihlai-model-") as temporary:
        folder = await model_folder(session, model, Path(temporary))
        await _tell(session, folder, files, draw, device)


async def model_folder(session: Session, model: str, temporary: Path, besides: tuple[str, ...] = ()) -> Path:
    """The folder of a model: itself, or a temporary one into which the checkpoint of that name is downloaded.

    `besides`: other files that are wanted where the checkpoint has them.
    """
    folder = Path(model)
    if not folder.is_dir():
        name = checkpoint_name(model)
        found = await session.client.run(ask, CHECKPOINTS.GetCheckpoint, GetCheckpointRequest(name=name))
        more = [file.name for file in found.checkpoint.files if file.name in besides]
        await download_files(session, found.checkpoint, temporary, only=[*MODEL_FILES, *more])
        return temporary
    if not (folder / CONFIG_FILE).is_file():
        raise CommandError(f"{folder} is no model: a checkpoint's {' and '.join(MODEL_FILES)} were wanted in it")
    return folder


def images_in(paths: list[Path]) -> list[Path]:
    """The files, and in the place of a folder the images below it, in the order of their names."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file())
        if not below:
            raise CommandError(f"there is no image below {path}: files that end in {', '.join(IMAGE_SUFFIXES)} count")
        found += below
    return found


async def _tell(session: Session, folder: Path, images: list[Path], draw: Path | None, device: Device) -> None:
    drawn_column = () if draw is None else (Column(name="drawn", goes=1, breaks=True),)
    columns = (Column(name="image", breaks=True), Column(name="head", breaks=True))
    table = Listing(*columns, Column(name="prediction", breaks=True), *drawn_column)
    unreadable = 0
    progress = Progress(
        TextColumn("{task.completed} of {task.total} images"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        console=session.output.errors,
        transient=True,
        disable=not session.output.draws_progress,
    )
    bar = progress.add_task("", total=len(images), rate=0.0)
    began: float | None = None
    seconds = 0.0
    if not progress.disable:
        progress.start()
    async for found in _with_end(predicted(folder, images, draw=draw, device=device.value), progress.stop):
        began = began or time.perf_counter()  # the model is there with the first one
        seconds = max(1e-6, time.perf_counter() - began)
        progress.update(bar, advance=1, rate=progress.tasks[0].completed / seconds)
        unreadable += found.error is not None
        if session.output.as_json:
            session.output.json(found.to_json())
        elif found.error is not None:
            table.add_row(escape(found.image), "", f"[red]{escape(found.error)}[/red]", *("" for _ in drawn_column))
        else:
            for head, summary in found.summaries.items():
                drawn = () if draw is None else (escape(str(found.heads[head]["drawn"])),)
                table.add_row(escape(found.image), escape(head), escape(summary), *drawn)
    if not session.output.as_json:
        session.output.show(table)
    if began is not None and len(images) > 1 and not session.output.as_json:
        session.output.note(f"{len(images)} images, {(len(images) - 1) / max(1e-6, seconds):.1f} images/s")
    if unreadable:
        raise typer.Exit(EXIT_FAILED)


async def _with_end(found: AsyncIterator[Prediction], end: Callable[[], None]) -> AsyncIterator[Prediction]:
    """The same, and `end` is called behind the last one, however it comes to that."""
    try:
        async for each in found:
            yield each
    finally:
        end()
