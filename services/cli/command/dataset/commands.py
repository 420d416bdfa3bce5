"""`sihlai dataset`: its tree of commands. Import and export stand in `exchange`, preview in `preview`.

They ask the conversion service that runs; where none does, or with --local, they start one for as long as they last.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer
from sihlai.conversion.v1 import conversion_service_pb2 as pb
from sihlai.conversion.v1 import task_pb2

from services.cli.command.dataset.exchange import export_dataset, import_dataset
from services.cli.command.dataset.images import list_images
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
from services.cli.command.dataset.preview import preview_dataset
from services.cli.error import EXIT_FAILED, CommandError
from services.cli.session import Session, command
from services.cli.view.dataset_table import (
    finding_line,
    inspection_drawing,
    plan_drawing,
    tasks_table,
    totals_drawing,
)
from services.cli.view.progress import WorkBar
from services.client.call import CONVERSION, ask, read, whole
from services.client.dataset import task_of
from services.client.number import INT32_MAX
from services.client.specification import SpecificationError

app = typer.Typer(
    no_args_is_help=True,
    help="Datasets: looked into, validated, converted from one task into another. Without a service that runs they are "
    "read on this machine.",
)


@app.command("tasks")
@command
async def list_tasks(session: Session, local: Local = False) -> None:
    """List the tasks: what their annotations look like, and where each leads.

    Example: sihlai dataset tasks
    """
    async with opened_service(session, local=local) as service:
        found = await service.run(whole, CONVERSION.ListTasks, pb.ListTasksRequest())
    if session.output.as_json:
        session.output.json(found)
    else:
        session.output.show(tasks_table(found.tasks))


@app.command("plan")
@command
async def plan_conversion(
    session: Session,
    start: Annotated[
        str,
        typer.Argument(
            metavar="FROM|SOURCE", help="A task, or a dataset (a folder, file:///…, s3://…, gs://… or az://…)."
        ),
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="A task, such as object-detection.")],
    via: Via = None,
    annotation_set: AnnotationSet = "",
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Show the way from one task to another, and what each step loses.

    Example: sihlai dataset plan panoptic-segmentation object-detection
    """
    request = pb.PlanConversionRequest(to=task_of(to), via=parsed_tasks(via), annotation_set=annotation_set)
    sources = []
    task = _task_or_none(start)
    if task is not None:
        request.from_task = task
    else:
        sources = [dataset_source(session, start, endpoint_url, region)]
        request.source.CopyFrom(sources[0])
    async with opened_service(session, sources, local=local, allow_root=allow_root) as service:
        answer = await service.run(ask, CONVERSION.PlanConversion, request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(plan_drawing(answer))


@app.command("inspect")
@command
async def inspect_dataset(
    session: Session,
    source: Source,
    all_categories: Annotated[bool, typer.Option("--all", help="All categories, also where there are many.")] = False,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Show what a dataset holds: images and sizes, annotation sets, the balance of their categories.

    Example: sihlai dataset inspect ~/data/streets
    """
    found = dataset_source(session, source, endpoint_url, region)
    request = pb.StreamInspectionRequest(source=found)
    answer = None
    async with opened_service(session, [found], local=local, allow_root=allow_root) as service:
        with WorkBar(session.output, "inspect") as bar:
            async for message in service.iterate(read, CONVERSION.StreamInspection, request):
                if message.HasField("inspection"):
                    answer = message.inspection
                else:
                    bar.show(message.progress)
    if answer is None:
        raise CommandError("the inspection ended early, without its result: try again")
    if session.output.as_json:
        session.output.json(answer)
    else:
        width = session.output.console.width
        session.output.show(inspection_drawing(answer, width=width, all_categories=all_categories))


@app.command("validate")
@command
async def validate_dataset(
    session: Session,
    source: Source,
    validation: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The validation dataset that goes with it, to compare.")
    ] = None,
    findings: Annotated[
        int,
        typer.Option(
            min=0, max=INT32_MAX, help="At most so many findings, the rest is counted; 0 is the service's limit."
        ),
    ] = 0,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Find everything that is wrong with a dataset. Exit code 1 where there is an error; warnings are none.

    Example: sihlai dataset validate ~/data/streets
    """
    sources = [dataset_source(session, text, endpoint_url, region) for text in (source, validation) if text is not None]
    request = pb.ValidateDatasetRequest(source=sources[0], findings_max=findings)
    if len(sources) > 1:
        request.validation_source.CopyFrom(sources[1])
    totals = None
    async with opened_service(session, sources, local=local, allow_root=allow_root) as service:
        with WorkBar(session.output, "validate") as bar:
            async for answer in service.iterate(read, CONVERSION.ValidateDataset, request):
                kind = answer.WhichOneof("message")
                if session.output.as_json:
                    session.output.json(answer)
                elif kind == "finding":
                    bar.say(finding_line(answer.finding))
                elif kind == "progress":
                    bar.show(answer.progress)
                if kind == "totals":
                    totals = answer.totals
    if totals is None:
        raise CommandError("the validation ended early, without its totals: try again")
    if not session.output.as_json:
        session.output.show(totals_drawing(totals))
    if totals.errors:
        raise typer.Exit(EXIT_FAILED)


@app.command("convert")
@command
async def convert_dataset(
    session: Session,
    source: Source,
    to: Annotated[str, typer.Argument(metavar="TASK", help="The task that is wanted, such as object-detection.")],
    via: Via = None,
    annotation_set: AnnotationSet = "",
    destination: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Where to write: a new or empty folder or prefix; else the store."),
    ] = None,
    lenient: Lenient = False,
    min_size: MinSize = None,
    margin: Margin = None,
    category_name: CategoryName = None,
    min_pixels: MinPixels = None,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Convert a dataset into another task. What was made before is found again; the source stays as it is.

    Without --destination the result lies in the service's store; where none runs, in the data folder, as with
    `sihlai up`. It is made there, or in a hidden folder beside the destination, where the same command goes on.

    Example: sihlai dataset convert ~/data/streets object-detection --destination ~/data/boxes
    """
    found = dataset_source(session, source, endpoint_url, region)
    written = dataset_source(session, destination, endpoint_url, region) if destination is not None else None
    request = pb.ConvertDatasetRequest(
        source=found,
        annotation_set=annotation_set,
        to=task_of(to),
        via=parsed_tasks(via),
        options=conversion_options(min_size, margin, category_name, min_pixels),
        request_id=str(uuid.uuid4()),
        lenient=lenient,
    )
    if written is not None:
        request.destination.CopyFrom(written)
    async with opened_service(
        session,
        [found],
        destination=written,
        local=local,
        allow_root=allow_root,
        keep=True,
        interrupted=GOES_ON,
    ) as service:
        no_path = "none: the annotations already were what was wanted"
        await show_work(
            session, "conversion", service.iterate(read, CONVERSION.ConvertDataset, request), no_path=no_path
        )


app.command("images")(list_images)
app.command("preview")(preview_dataset)
app.command("import")(import_dataset)
app.command("export")(export_dataset)


def _task_or_none(text: str) -> task_pb2.Task.ValueType | None:
    """The task of this name; None for what can only be a dataset. Raises SpecificationError where it is neither."""
    try:
        return task_of(text)
    except SpecificationError as error:
        if "/" in text or Path(text).expanduser().is_dir():
            return None
        raise SpecificationError(f"{error}; nor is there a folder {text!r}") from error
