"""`sihlai dataset`: tasks, plan, inspect, validate, convert.

They ask the conversion service that runs; where none does, or with --local, they start one for as long as they last.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer
from sihlai.conversion.v1 import conversion_service_pb2 as pb
from sihlai.conversion.v1 import task_pb2
from sihlai.conversion.v1.dataset_pb2 import Credentials, DatasetSource

from services.cli.conversion import NAME, OwnService, own_service, runs
from services.cli.dataset_table import (
    finding_line,
    inspection_drawing,
    plan_drawing,
    result_drawing,
    tasks_table,
    totals_drawing,
)
from services.cli.progress import WorkBar
from services.cli.project import dataset_uri
from services.cli.session import EXIT_FAILED, CommandError, Session, command
from services.cli.specification import SpecificationError, parsed_task

if TYPE_CHECKING:  # the stubs of mypy-protobuf alone know it
    from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceAsyncStub

PAGE_SIZE = 1_000
INSPECT_SECONDS_MAX = 24 * 3_600.0
"""An inspection looks into every image the first time; whoever waits knows how many there are."""
WHERE = "Where the services are"
BUCKET = "S3-compatible storage"

app = typer.Typer(
    no_args_is_help=True,
    help="Datasets: looked into, validated, converted from one task into another. Without a service that runs they are "
    "read on this machine.",
)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, file:///… or s3://bucket/prefix.")]
AnnotationSet = Annotated[
    str, typer.Option(metavar="NAME", help="Which annotation set, where the dataset has several.")
]
Via = Annotated[
    list[str] | None, typer.Option(metavar="TASK", help="A task that the path must pass; may be repeated, in order.")
]
Local = Annotated[
    bool, typer.Option("--local", help="Work on this machine, even if a service runs.", rich_help_panel=WHERE)
]
AllowRoot = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Work on this machine may read it, beside the dataset, your home and the current folder.",
        rich_help_panel=WHERE,
    ),
]
EndpointUrl = Annotated[
    str, typer.Option(metavar="URL", help="The address of an S3-compatible server.", rich_help_panel=BUCKET)
]
Region = Annotated[str, typer.Option(help="The bucket's region; else AWS_REGION.", rich_help_panel=BUCKET)]


@app.command("tasks")
@command
async def list_tasks(session: Session, local: Local = False) -> None:
    """List the tasks: what their annotations look like, and where each leads."""
    found = pb.ListTasksResponse()
    async with _service(session, local=local) as service:
        token = ""
        while True:
            page = await service.ListTasks(pb.ListTasksRequest(page_size=PAGE_SIZE, page_token=token))
            found.tasks.extend(page.tasks)
            token = page.next_page_token
            if not token:
                break
    if session.output.as_json:
        session.output.json(found)
    else:
        session.output.show(tasks_table(found.tasks))


@app.command("plan")
@command
async def plan_conversion(
    session: Session,
    start: Annotated[
        str, typer.Argument(metavar="FROM|SOURCE", help="A task, or a dataset (a folder, file:///… or s3://…).")
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="A task, such as object-detection.")],
    via: Via = None,
    annotation_set: AnnotationSet = "",
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Show the way from one task to another, and what each step loses."""
    request = pb.PlanConversionRequest(to=parsed_task(to), via=_tasks(via), annotation_set=annotation_set)
    sources = []
    task = _task_or_none(start)
    if task is not None:
        setattr(request, "from", task)  # a word of Python's
    else:
        sources = [_source(session, start, endpoint_url, region)]
        request.source.CopyFrom(sources[0])
    async with _service(session, sources, local=local, allow_root=allow_root) as service:
        answer = await service.PlanConversion(request)
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
    """Show what a dataset holds: images and sizes, annotation sets, the balance of their categories."""
    found = _source(session, source, endpoint_url, region)
    request = pb.InspectDatasetRequest(source=found)
    async with _service(session, [found], local=local, allow_root=allow_root) as service:
        with WorkBar(session.output, "inspect"):
            answer = await service.InspectDataset(request, timeout=INSPECT_SECONDS_MAX)
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
        int, typer.Option(min=0, help="At most so many findings, the rest is counted; 0 is the service's limit.")
    ] = 0,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Find everything that is wrong with a dataset. Exit code 1 where there is an error; warnings are none."""
    sources = [_source(session, text, endpoint_url, region) for text in (source, validation) if text is not None]
    request = pb.ValidateDatasetRequest(source=sources[0], findings_max=findings)
    if len(sources) > 1:
        request.validation_source.CopyFrom(sources[1])
    totals = None
    async with _service(session, sources, local=local, allow_root=allow_root) as service:
        with WorkBar(session.output, "validate") as bar:
            async for answer in service.ValidateDataset(request):
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
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Drop and count annotations with errors instead of refusing the dataset.")
    ] = False,
    min_size: Annotated[
        float | None, typer.Option(min=0, help="Keypoints to boxes: grow boxes to so many pixels a side.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Keypoints to boxes: grow boxes by this share on each side.")
    ] = None,
    category_name: Annotated[str | None, typer.Option(help="Keypoints to boxes: the category of all boxes.")] = None,
    min_pixels: Annotated[
        int | None, typer.Option(min=1, help="Classes to labels: present with at least so many pixels.")
    ] = None,
    local: Local = False,
    allow_root: AllowRoot = None,
    endpoint_url: EndpointUrl = "",
    region: Region = "",
) -> None:
    """Convert a dataset into another task. What was made before is found again; the source stays as it is.

    The result lies in the service's store; where none runs, in the data folder, as with `sihlai up`.
    """
    found = _source(session, source, endpoint_url, region)
    request = pb.ConvertDatasetRequest(
        source=found,
        annotation_set=annotation_set,
        to=parsed_task(to),
        via=_tasks(via),
        options=_options(min_size, margin, category_name, min_pixels),
        request_id=str(uuid.uuid4()),
        lenient=lenient,
    )
    result = None
    async with _service(session, [found], local=local, allow_root=allow_root, keep=True) as service:
        with WorkBar(session.output, "convert") as bar:
            async for answer in service.ConvertDataset(request):
                if session.output.as_json:
                    session.output.json(answer)
                if answer.WhichOneof("message") == "progress":
                    bar.show(answer.progress)
                else:
                    result = answer.result
    if result is None:
        raise CommandError("the conversion ended early, without its result: try again, and it goes on where it was")
    if not session.output.as_json:
        session.output.show(result_drawing(result))
        session.output.line(result.dataset.uri)


@contextlib.asynccontextmanager
async def _service(
    session: Session,
    sources: Sequence[DatasetSource] = (),
    *,
    local: bool,
    allow_root: Sequence[Path] | None = None,
    keep: bool = False,
) -> AsyncIterator[ConversionServiceAsyncStub]:
    """The service that runs, else one of the command's own that may read the sources; `keep`: its results stay."""
    endpoints = session.services.endpoints
    if not local and await asyncio.to_thread(runs, endpoints):
        yield session.services.conversion
        return
    parts = [urlsplit(source.uri) for source in sources]
    roots = [Path(unquote(part.path)) for part in parts if part.scheme == "file"]
    hosts = [urlsplit(source.endpoint_url).netloc for source in sources if source.endpoint_url]
    own = OwnService(
        environ=session.environ,
        allowed_roots=[root.expanduser().resolve() for root in (*roots, *(allow_root or ()), Path.home(), Path.cwd())],
        allowed_endpoint_hosts=[host for host in hosts if host],
        store=endpoints.folder.of(NAME) if keep else None,
    )
    async with own_service(own) as service:
        yield service


def _source(session: Session, text: str, endpoint_url: str, region: str) -> DatasetSource:
    """Where a dataset lies; the credentials for a bucket are those of the environment."""
    uri = dataset_uri(text)
    if not uri.startswith("s3://"):
        return DatasetSource(uri=uri)
    environ = session.environ
    region = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION", "")
    source = DatasetSource(uri=uri, endpoint_url=endpoint_url, region=region)
    credentials = Credentials(
        access_key_id=environ.get("AWS_ACCESS_KEY_ID", ""),
        secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY", ""),
        session_token=environ.get("AWS_SESSION_TOKEN", ""),
    )
    if credentials.access_key_id or credentials.secret_access_key:
        source.credentials.CopyFrom(credentials)
    return source


def _task_or_none(text: str) -> task_pb2.Task.ValueType | None:
    """The task of this name; None for what can only be a dataset. Raises SpecificationError where it is neither."""
    try:
        return parsed_task(text)
    except SpecificationError as error:
        if "/" in text or Path(text).expanduser().is_dir():
            return None
        raise SpecificationError(f"{error}; nor is there a folder {text!r}") from error


def _tasks(texts: Sequence[str] | None) -> list[task_pb2.Task.ValueType]:
    return [parsed_task(text) for text in texts or ()]


def _options(
    min_size: float | None, margin: float | None, category_name: str | None, min_pixels: int | None
) -> pb.ConversionOptions:
    options = pb.ConversionOptions()
    if min_size is not None or margin is not None or category_name is not None:
        keypoint = pb.ConversionOptions.KeypointToDetection(
            min_size=min_size, margin=margin, category_name=category_name
        )
        options.steps.add(keypoint_to_detection=keypoint)
    if min_pixels is not None:
        options.steps.add(semantic_to_multilabel=pb.ConversionOptions.SemanticToMultilabel(min_pixels=min_pixels))
    return options
