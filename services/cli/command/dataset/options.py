"""What the commands of `sihlai dataset` share: options, where a dataset lies, the service that works, its stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote_to_bytes, urlsplit

import typer
from sihlai.conversion.v1.conversion_service_pb2 import (
    ConversionOptions,
    ConvertDatasetResponse,
    ExportDatasetResponse,
    ImportDatasetResponse,
)
from sihlai.conversion.v1.dataset_pb2 import DatasetSource, S3Key
from sihlai.conversion.v1.task_pb2 import Task

from services.chassis.endpoints import data_folder, usual_roots
from services.cli.credentials import read_credentials
from services.cli.error import CommandError
from services.cli.machine.conversion import NAME, OwnService, own_service, runs
from services.cli.session import Session
from services.cli.view.dataset_table import finding_line, result_drawing
from services.cli.view.progress import WorkBar
from services.client.dataset import dataset_uri, task_of
from services.client.face import AsyncClient
from services.client.number import INT64_MAX, number

WHERE = "Where the services are"
BUCKET = "S3-compatible storage"
STEPS = "How steps convert"

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, file:///…, s3://…, gs://… or az://….")]
AnnotationSet = Annotated[
    str, typer.Option(metavar="NAME", help="Which annotation set, where the dataset has several.")
]
Via = Annotated[
    list[str] | None, typer.Option(metavar="TASK", help="A task that the path must pass; may be repeated, in order.")
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Drop and count annotations with errors instead of refusing the dataset.")
]
MinSize = Annotated[
    float | None,
    typer.Option(help="Keypoints to boxes: grow boxes to so many pixels a side.", rich_help_panel=STEPS),
]
Margin = Annotated[
    float | None,
    typer.Option(help="Keypoints to boxes: grow boxes by this share on each side.", rich_help_panel=STEPS),
]
CategoryName = Annotated[
    str | None, typer.Option(help="Keypoints to boxes: the category of all boxes.", rich_help_panel=STEPS)
]
MinPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=INT64_MAX,
        help="Classes to labels: present with at least so many pixels.",
        rich_help_panel=STEPS,
    ),
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


@contextlib.asynccontextmanager
async def opened_service(
    session: Session,
    sources: Sequence[DatasetSource] = (),
    *,
    destination: DatasetSource | None = None,
    local: bool,
    allow_root: Sequence[Path] | None = None,
    keep: bool = False,
    interrupted: str = "nothing was changed",
) -> AsyncIterator[AsyncClient]:
    """The service that runs, else one of the command's own that may read the sources and write to the destination.

    `keep`: what it puts into its own store must stay. `interrupted`: what is said to who ends the command meanwhile.
    """
    opened = _opened_service(session, sources, destination, local=local, allow_root=allow_root or (), keep=keep)
    try:
        async with opened as service:
            yield service
    except (KeyboardInterrupt, asyncio.CancelledError):
        session.output.note(f"interrupted: {interrupted}")
        raise


@contextlib.asynccontextmanager
async def _opened_service(
    session: Session,
    sources: Sequence[DatasetSource],
    destination: DatasetSource | None,
    *,
    local: bool,
    allow_root: Sequence[Path],
    keep: bool,
) -> AsyncIterator[AsyncClient]:
    endpoints = session.client.driver.endpoints
    if not local and await asyncio.to_thread(runs, endpoints):
        yield session.client
        return
    written = [destination] if destination is not None else []
    home = endpoints.up or data_folder(session.environ)
    usual = usual_roots(session.environ)
    roots = [*_folders(sources), *(root.expanduser().resolve() for root in allow_root), *usual]
    hosts = [urlsplit(source.endpoint_url).netloc for source in (*sources, *written) if source.endpoint_url]
    own = OwnService(
        environ=session.environ,
        allowed_roots=roots,
        allowed_destination_roots=[*(folder.parent for folder in _folders(written)), *usual] if written else [],
        allowed_endpoint_hosts=[host for host in hosts if host],
        closed=home,
        store=None if home is None else await asyncio.to_thread(_own_store, home / NAME, keep),
    )
    async with own_service(own) as service:
        yield service


def _own_store(folder: Path, keep: bool) -> Path | None:
    """The data folder's store, or, where nothing has to stay and it cannot be written, none."""
    if not keep:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
    return folder


def dataset_source(session: Session, text: str, endpoint_url: str, region: str) -> DatasetSource:
    """Where a dataset lies; the credentials for a bucket are those of the environment, as its own tools name them."""
    uri, environ = dataset_uri(text), session.environ
    scheme = uri.partition("://")[0]
    source = DatasetSource(uri=uri)
    if scheme == "file":
        return source
    source.endpoint_url = endpoint_url
    if scheme == "s3":
        source.region = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION", "")
        key = S3Key(
            access_key_id=environ.get("AWS_ACCESS_KEY_ID", ""),
            secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY", ""),
            session_token=environ.get("AWS_SESSION_TOKEN", ""),
        )
        if key.access_key_id or key.secret_access_key:
            source.credentials.s3.CopyFrom(key)
    elif scheme == "gs" and environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        source.credentials.CopyFrom(read_credentials(Path(environ["GOOGLE_APPLICATION_CREDENTIALS"])))
    elif scheme == "az" and environ.get("AZURE_STORAGE_SAS_TOKEN"):
        source.credentials.azure_sas_token = environ["AZURE_STORAGE_SAS_TOKEN"]
    elif scheme == "az" and environ.get("AZURE_STORAGE_KEY"):
        source.credentials.azure_account_key = environ["AZURE_STORAGE_KEY"]
    return source


GOES_ON = "nothing is at its destination yet, and the same command goes on where this one was"


async def show_work(
    session: Session,
    phase: str,
    answers: AsyncIterable[ConvertDatasetResponse]
    | AsyncIterable[ImportDatasetResponse]
    | AsyncIterable[ExportDatasetResponse],
    *,
    no_path: str = "",
) -> None:
    """Show progress and findings as they come, then the result, where it lies last; as JSON, each answer is a line.

    Raises CommandError where the stream ends without a result.
    """
    result = None
    with WorkBar(session.output, phase) as bar:
        async for answer in answers:
            if session.output.as_json:
                session.output.json(answer)
            if answer.HasField("result"):
                result = answer.result
            elif answer.HasField("progress"):
                bar.show(answer.progress)
            elif not isinstance(answer, ConvertDatasetResponse) and not session.output.as_json:
                bar.say(finding_line(answer.finding))
    if result is None:
        raise CommandError(f"the {phase} ended early, without its result: try again")
    if not session.output.as_json:
        for finding in result.findings:
            session.output.show(finding_line(finding))
        session.output.show(result_drawing(result, no_path=no_path))
        session.output.line(result.dataset.uri)


def parsed_tasks(texts: Sequence[str] | None) -> list[Task.ValueType]:
    """The tasks of a repeated option, in order."""
    return [task_of(text) for text in texts or ()]


def conversion_options(
    min_size: float | None, margin: float | None, category_name: str | None, min_pixels: int | None
) -> ConversionOptions:
    """The options of a conversion's steps; what is not given stays unset."""
    options = ConversionOptions()
    if min_size is not None or margin is not None or category_name is not None:
        for name, value in {"--min-size": min_size, "--margin": margin}.items():
            number(value or 0.0, name)
        keypoint = ConversionOptions.KeypointToDetection(min_size=min_size, margin=margin, category_name=category_name)
        options.steps.add(keypoint_to_detection=keypoint)
    if min_pixels is not None:
        options.steps.add(semantic_to_multilabel=ConversionOptions.SemanticToMultilabel(min_pixels=min_pixels))
    return options


def _folders(sources: Sequence[DatasetSource]) -> list[Path]:
    """Those of the datasets that lie on this machine."""
    parts = [urlsplit(source.uri) for source in sources]
    return [
        Path(os.fsdecode(unquote_to_bytes(part.path))).expanduser().resolve() for part in parts if part.scheme == "file"
    ]
