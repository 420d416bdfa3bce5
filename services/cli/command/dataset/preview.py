"""`sihlai dataset preview`: a contact sheet of a dataset, or of what a conversion would make of it, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from sihlai.conversion.v1.conversion_service_pb2 import PreviewDatasetRequest
from sihlai.conversion.v1.task_pb2 import TASK_UNSPECIFIED

from services.cli.command.dataset.options import (
    AllowRoot,
    AnnotationSet,
    CategoryName,
    EndpointUrl,
    Local,
    Margin,
    MinPixels,
    MinSize,
    Region,
    Source,
    Via,
    conversion_options,
    dataset_source,
    opened_service,
    parsed_tasks,
)
from services.cli.error import CommandError
from services.cli.session import Session, command
from services.cli.view.progress import WorkBar
from services.client.call import CONVERSION, ask
from services.client.dataset import task_of
from services.client.number import INT32_MAX

PREVIEW_SECONDS_MAX = 24 * 3_600.0
"""The first look at a dataset reads every image's header; whoever waits knows how many there are."""
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg"}
SAME_SUFFIXES = {".jpeg": ".jpg"}


@command
async def preview_dataset(
    session: Session,
    source: Source,
    to: Annotated[
        str | None, typer.Option(metavar="TASK", help="Show beside each image what this conversion makes of it.")
    ] = None,
    via: Via = None,
    annotation_set: AnnotationSet = "",
    images: Annotated[
        int, typer.Option(min=0, max=INT32_MAX, help="At most so many images; 0 is the service's number.")
    ] = 0,
    image: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An image to show, by file name; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write; else here, named after the dataset. Ends in .png or .jpg."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    min_size: MinSize = None,
    margin: Margin = None,
    category_name: CategoryName = None,
    min_pixels: MinPixels = None,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Draw a contact sheet: images with their annotations on them, and with --to what becomes of those.

    Photos make a JPEG, flat pictures a PNG: the file's ending is changed to what it is.

    Example: sihlai dataset preview ~/data/streets --to object-detection
    """
    found = dataset_source(session, source, endpoint_url, region)
    request = PreviewDatasetRequest(
        source=found,
        annotation_set=annotation_set,
        to=task_of(to) if to is not None else TASK_UNSPECIFIED,
        via=parsed_tasks(via),
        options=conversion_options(min_size, margin, category_name, min_pixels),
        images_max=images,
        images=image or (),
    )
    async with opened_service(session, [found], local=local, allow_root=allow_root) as service:
        with WorkBar(session.output, "preview"):
            answer = await service.run(ask, CONVERSION.PreviewDataset, request, PREVIEW_SECONDS_MAX)
    path = with_suffix(file or default_path(found.uri), SUFFIXES.get(answer.media_type, ""))
    write_picture(path, answer.content, force=force)
    if session.output.as_json:
        about = {"path": str(path), "media_type": answer.media_type, "images": list(answer.images)}
        session.output.json(about)
    else:
        session.output.line(str(path))


def default_path(uri: str) -> Path:
    """In the current folder, named after the dataset's."""
    name = Path(unquote(urlsplit(uri).path)).name or urlsplit(uri).netloc
    return Path(f"{name or 'dataset'}-preview")


def with_suffix(path: Path, suffix: str) -> Path:
    """The path with the ending that tells what the file is; one that is no picture's is kept, as part of the name."""
    known = SAME_SUFFIXES.get(path.suffix.lower(), path.suffix.lower())
    if known == suffix:
        return path
    return path.with_suffix(suffix) if known in SUFFIXES.values() else path.with_name(path.name + suffix)


def write_picture(path: Path, content: bytes, *, force: bool) -> None:
    """Write the file. Raises CommandError where there is one already, unless it may be replaced."""
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise CommandError(f"{path} is there already: give --output another name, or --force to replace it") from error
