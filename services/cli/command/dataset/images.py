"""`sihlai dataset images`: the images of a dataset, one a row, those of one side of a job's split too."""

from __future__ import annotations

from typing import Annotated

import typer
from sihlai.conversion.v1 import conversion_service_pb2 as pb

from services.cli.command.dataset.options import (
    AllowRoot,
    AnnotationSet,
    EndpointUrl,
    Local,
    Region,
    Source,
    Via,
    dataset_source,
    opened_service,
)
from services.cli.session import Session, command
from services.cli.view.dataset_table import images_table
from services.client.dataset import images_of

SPLIT = "As a job splits its training dataset"


@command
async def list_images(
    session: Session,
    source: Source,
    to: Annotated[str | None, typer.Option(metavar="TASK", help="As they are after a conversion.")] = None,
    via: Via = None,
    annotation_set: AnnotationSet = "",
    category: Annotated[str, typer.Option(help="Only images with this category, label or identity.")] = "",
    rule: Annotated[str, typer.Option(help="Only images with a finding of this rule, such as no_area.")] = "",
    split: Annotated[
        str | None,
        typer.Option(metavar="training|validation", help="Only images on this side.", rich_help_panel=SPLIT),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="The job's data.validation_split.share; 0.2.", rich_help_panel=SPLIT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The job's data.validation_split.seed; 0.", rich_help_panel=SPLIT)
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="A head of the job; repeated for each, in order. Without it what is listed.",
            rich_help_panel=SPLIT,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """List the images of a dataset by name, with what is known of each.

    Example: sihlai dataset images ~/data/streets --split validation
    """
    found = dataset_source(session, source, endpoint_url, region)
    async with opened_service(session, [found], local=local, allow_root=allow_root) as service:
        images = await service.run(
            images_of,
            found,
            to=to,
            via=via or (),
            annotation_set=annotation_set,
            category=category,
            rule=rule,
            split=split,
            share=share,
            seed=seed,
            heads=head or (),
            limit=limit,
        )
    if session.output.as_json:
        session.output.json(pb.ListImagesResponse(images=images))
    else:
        session.output.show(images_table(images))
