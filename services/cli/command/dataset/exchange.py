"""`sihlai dataset import` and `export`: datasets in the formats of other tools, from and to the native one."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from sihlai.conversion.v1.conversion_service_pb2 import (
    ExportDatasetRequest,
    ForeignFormat,
    ImportDatasetRequest,
    Unannotated,
)
from sihlai.conversion.v1.task_pb2 import Task

from services.cli.command.dataset.options import (
    GOES_ON,
    AllowRoot,
    AnnotationSet,
    CategoryName,
    EndpointUrl,
    Lenient,
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
    show_work,
)
from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError
from services.cli.session import Session, command
from services.client.call import CONVERSION, read
from services.client.dataset import task_of
from services.client.specification import enum_value

FORMATS = tuple(
    name.removeprefix("FOREIGN_FORMAT_").lower().replace("_", "-") for name in list(ForeignFormat.keys())[1:]
)
AUTO = "auto"
Format = Annotated[
    str,
    typer.Argument(metavar="FORMAT", help=f"{', '.join(FORMATS[:-2])} or {FORMATS[-2]}."),
]
Destination = Annotated[
    str,
    typer.Argument(
        metavar="DESTINATION", help="Where to write: a new or empty folder, file:///…, s3://…, gs://… or az://…."
    ),
]
CopyImages = Annotated[bool, typer.Option("--copy-images", help="Copy the images too; else they stay where they are.")]


@command
async def import_dataset(
    session: Session,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FORMAT] SOURCE DESTINATION",
            help="The source: a folder, file:///…, s3://…, gs://… or az://…. Where to write: a new or empty folder, "
            "file:///…, s3://…, gs://… or az://…. Without a format it is found from the files.",
        ),
    ],
    foreign: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}: found from the files.")
    ] = AUTO,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Which task, where the source says several things, such as boxes and masks."),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Which part, such as train or val, where there are several.")
    ] = "",
    unannotated: Annotated[
        str | None,
        typer.Option(
            metavar="null|empty", help="What an image without annotations means, if not what the format does."
        ),
    ] = None,
    lenient: Lenient = False,
    copy_images: CopyImages = False,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Write another tool's dataset in the native format. What is wrong with it is listed on the way.

    It is made in a hidden folder beside the destination, where the same command goes on after an interruption; the
    index of its images is kept in the data folder.

    Example: sihlai dataset import photos/ native/ --split train --copy-images
    """
    if not 2 <= len(words) <= 3:
        message = f"{len(words)} words were given, but a source and a destination were wanted"
        raise CommandError(message, exit_code=EXIT_NOT_UNDERSTOOD)
    *formats, source, destination = words
    foreign = formats[0] if formats else foreign
    found, written = (dataset_source(session, text, endpoint_url, region) for text in (source, destination))
    request = ImportDatasetRequest(
        source=found,
        format=_format(foreign),
        destination=written,
        unannotated=_unannotated(unannotated),
        request_id=str(uuid.uuid4()),
        split=split,
        lenient=lenient,
        copy_images=copy_images,
        task=task_of(task) if task is not None else Task.TASK_UNSPECIFIED,
    )
    async with opened_service(
        session, [found], destination=written, local=local, allow_root=allow_root, interrupted=GOES_ON
    ) as service:
        await show_work(session, "import", service.iterate(read, CONVERSION.ImportDataset, request))


@command
async def export_dataset(
    session: Session,
    foreign: Format,
    source: Source,
    destination: Destination,
    annotation_set: AnnotationSet = "",
    via: Via = None,
    lenient: Lenient = False,
    copy_images: CopyImages = False,
    min_size: MinSize = None,
    margin: Margin = None,
    category_name: CategoryName = None,
    min_pixels: MinPixels = None,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Write a dataset in another tool's format, converted into its task first; say what the format cannot say.

    It is made in a hidden folder beside the destination, where the same command goes on after an interruption.

    Example: sihlai dataset export yolo-detect ~/data/streets ~/data/yolo
    """
    found, written = (dataset_source(session, text, endpoint_url, region) for text in (source, destination))
    request = ExportDatasetRequest(
        source=found,
        annotation_set=annotation_set,
        format=_format(foreign),
        destination=written,
        request_id=str(uuid.uuid4()),
        via=parsed_tasks(via),
        options=conversion_options(min_size, margin, category_name, min_pixels),
        lenient=lenient,
        copy_images=copy_images,
    )
    async with opened_service(
        session, [found], destination=written, local=local, allow_root=allow_root, interrupted=GOES_ON
    ) as service:
        await show_work(session, "export", service.iterate(read, CONVERSION.ExportDataset, request))


def _format(text: str) -> ForeignFormat.ValueType:
    return ForeignFormat.ValueType(enum_value(ForeignFormat.DESCRIPTOR, text, "format"))


def _unannotated(text: str | None) -> Unannotated.ValueType:
    """The format's own habit where nothing is given."""
    return Unannotated.ValueType(enum_value(Unannotated.DESCRIPTOR, text, "unannotated") if text is not None else 0)
