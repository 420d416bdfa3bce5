"""The demo's chapter on datasets: one of scenes, converted into five tasks, drawn, and compared with what is known.

It talks to the conversion service as any client does, and reads the converted datasets' files as a runner would.
"""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image
from rich.table import Table
from rich.text import Text
from sihlai.conversion.v1.conversion_service_pb2 import (
    ConversionResult,
    ConvertDatasetRequest,
    PreviewDatasetRequest,
)
from sihlai.conversion.v1.dataset_pb2 import DatasetSource

from services.cli.demo.audit import Audit
from services.cli.demo.scenes import (
    CATEGORIES,
    COARSE,
    CROWD,
    EMPTY,
    IGNORED,
    THINGS,
    UNANNOTATED,
    VOID,
    Scene,
    write_scenes,
)
from services.cli.demo.screen import Screen
from services.cli.demo.truth import KINDS, Converted, Kind, compare
from services.cli.error import CommandError
from services.cli.view.dataset_table import task_name
from services.cli.view.table import size_text
from services.client.call import CONVERSION, ask, read
from services.client.face import AsyncClient

SHOWN = (0, COARSE[0], EMPTY[0], CROWD, IGNORED, 1, UNANNOTATED[0], VOID)
"""The scenes of the contact sheets, one of each kind."""
SHEET_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg"}


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """A conversion that was made, and how long its call took."""

    kind: Kind
    result: ConversionResult
    seconds: float


async def show_conversions(client: AsyncClient, *, screen: Screen, audit: Audit, folder: Path, sheets: Path) -> None:
    """Convert a dataset that is written into `folder`, check what comes out, and write contact sheets into `sheets`."""
    screen.heading("One dataset of scenes, for five more tasks")
    scenes = await asyncio.to_thread(write_scenes, folder)
    segments = sum(len(scene.seen) for scene in scenes)
    screen.say(
        f"{len(scenes)} scenes of handwritten digits with {segments} segments of {len(THINGS)} things and "
        f"{len(CATEGORIES) - len(THINGS)} kinds of stuff, as panoptic maps in the native format"
    )
    source = DatasetSource(uri=folder.resolve().as_uri())
    conversions = [await _convert(client, source, kind) for kind in KINDS]
    screen.show(_table(conversions))
    screen.say("")
    screen.show(_losses_table(conversions))
    for conversion in conversions:
        await asyncio.to_thread(_check, conversion, scenes, audit)
    last = conversions[-1]
    _check_repeated(last, await _convert(client, source, last.kind), audit)
    sheets.mkdir()
    for kind in KINDS:
        await _draw(client, source, kind, scenes, audit, sheets)
    screen.say(f"contact sheets, before and after: {sheets}")


async def _convert(client: AsyncClient, source: DatasetSource, kind: Kind) -> _Conversion:
    began = time.monotonic()
    result = None
    request = ConvertDatasetRequest(source=source, to=kind.task, request_id=str(uuid.uuid4()))
    async for answer in client.iterate(read, CONVERSION.ConvertDataset, request):
        if answer.WhichOneof("message") == "result":
            result = answer.result
    if result is None:
        raise CommandError(f"the conversion into {task_name(kind.task)} ended without its result")
    return _Conversion(kind=kind, result=result, seconds=time.monotonic() - began)


def _check(conversion: _Conversion, scenes: Sequence[Scene], audit: Audit) -> None:
    """Compare what the service counted, and what its files hold, with what is known of the scenes."""
    kind, result = conversion.kind, conversion.result
    wanted = [each for scene in scenes if (each := kind.wanted(scene)) is not None]
    counts = {
        "images": (result.images_in, len(scenes)),
        "segments in": (result.annotations_in, sum(len(scene.seen) for scene in scenes)),
        "labelled images out": (result.labelled_out, len(wanted)),
        f"{kind.noun} out": (result.annotations_out, sum(map(len, wanted))),
        "errors": (result.errors, 0),
        "warnings": (result.warnings, 0),
    }
    problems = [f"wanted {want} {what}, found {found}" for what, (found, want) in counts.items() if found != want]
    place = Path(unquote(urlsplit(result.dataset.uri).path))
    summary, different = compare(kind, Converted(place), scenes)
    audit.check(
        f"panoptic → {task_name(kind.task)}, exactly as drawn",
        found=summary,
        problem="; ".join([*problems, *different]),
    )


def _check_repeated(first: _Conversion, again: _Conversion, audit: Audit) -> None:
    """The same conversion once more is none: what was made is found."""
    problems = []
    if not again.result.reused:
        problems.append("it was made anew")
    if again.result.dataset != first.result.dataset:
        problems.append(f"wanted {first.result.dataset.uri}, found {again.result.dataset.uri}")
    audit.check(
        "a repeated conversion finds what is there",
        found=f"in {again.seconds * 1_000:.0f} ms",
        problem="; ".join(problems),
    )


async def _draw(
    client: AsyncClient, source: DatasetSource, kind: Kind, scenes: Sequence[Scene], audit: Audit, sheets: Path
) -> None:
    wanted = [scenes[index].name for index in SHOWN]
    request = PreviewDatasetRequest(source=source, to=kind.task, images=wanted)
    answer = await client.run(ask, CONVERSION.PreviewDataset, request)
    suffix = SHEET_SUFFIXES.get(answer.media_type, "")
    sheet = sheets / f"{task_name(kind.task).replace(' ', '-')}{suffix}"
    sheet.write_bytes(answer.content)
    problems = []
    if list(answer.images) != wanted:
        problems.append(f"wanted {', '.join(wanted)}, found {', '.join(answer.images) or 'none'}")
    if not suffix:
        problems.append(f"wanted a PNG or JPEG file, found {answer.media_type!r}")
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        size = f"{image.width} by {image.height} pixels"
    audit.check(
        f"contact sheet of {task_name(kind.task)}",
        found=f"{len(answer.images)} scenes on {size}, {size_text(len(answer.content))}",
        problem="; ".join(problems),
    )


def _table(conversions: Sequence[_Conversion]) -> Table:
    """A row each: the way, counts and times."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("to", "by way of"):
        table.add_column(column, overflow="fold")
    for column in ("images", "annotations", "took", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for conversion in conversions:
        result = conversion.result
        table.add_row(
            task_name(conversion.kind.task),
            ", ".join(task_name(step.to) for step in result.steps[:-1]),
            f"{result.images_in}",
            f"{result.annotations_in} → {result.annotations_out}",
            f"{conversion.seconds * 1_000:.0f} ms",
            f"{result.images_in / conversion.seconds:,.0f}",
        )
    return table


def _losses_table(conversions: Sequence[_Conversion]) -> Table:
    """A row for each step that was taken, once."""
    steps = {
        f"{task_name(step.from_task)} → {task_name(step.to)}": step
        for conversion in conversions
        for step in conversion.result.steps
    }
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("step", overflow="fold")
    table.add_column("loses", overflow="fold")
    for name, step in steps.items():
        table.add_row(name, ", ".join(step.losses) or Text("nothing", style="green"))
    return table
