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

from services.cli.dataset_options import (
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
from services.cli.session import Session, command
from services.cli.specification import enum_value

Format = Annotated[
    str,
    typer.Argument(
        metavar="FORMAT",
        help="coco-instances, coco-keypoints, coco-panoptic, yolo-detect, yolo-segment, pascal-voc or image-folders.",
    ),
]
Destination = Annotated[
    str,
    typer.Argument(metavar="DESTINATION", help="Where to write: a new or empty folder, file:///… or s3://…."),
]
CopyImages = Annotated[bool, typer.Option("--copy-images", help="Copy the images too; else they stay where they are.")]


@command
async def import_dataset(
    session: Session,
    foreign: Format,
    source: Source,
    destination: Destination,
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
    """Write another tool's dataset in the native format. What is wrong with it is listed on the way."""
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
    )
    async with opened_service(session, [found], destination=written, local=local, allow_root=allow_root) as service:
        await show_work(session, "import", service.ImportDataset(request))


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
    """Write a dataset in another tool's format, converted into its task first; say what the format cannot say."""
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
    async with opened_service(session, [found], destination=written, local=local, allow_root=allow_root) as service:
        await show_work(session, "export", service.ExportDataset(request))


def _format(text: str) -> ForeignFormat.ValueType:
    return ForeignFormat.ValueType(enum_value(ForeignFormat.DESCRIPTOR, text, "format"))


def _unannotated(text: str | None) -> Unannotated.ValueType:
    """The format's own habit where nothing is given."""
    return Unannotated.ValueType(enum_value(Unannotated.DESCRIPTOR, text, "unannotated") if text is not None else 0)
