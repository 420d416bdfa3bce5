"""`sihlai project`: create, list, show."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from sihlai.conversion.v1.dataset_pb2 import Credentials, DatasetSource
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.cli.name import project_name, short
from services.cli.session import CommandError, Session, command
from services.cli.table import moment, projects_table

PAGE_SIZE = 1_000
app = typer.Typer(no_args_is_help=True, help="What a team trains on: a dataset, described once.")

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Such as `digits`.")]


@app.command("create")
@command
async def create_project(
    session: Session,
    project: Project,
    training: Annotated[
        str, typer.Option("--training", help="The training dataset: a folder, file:///… or s3://bucket/prefix.")
    ],
    validation: Annotated[
        str | None, typer.Option("--validation", help="The validation dataset; without one, jobs split the other.")
    ] = None,
    display_name: Annotated[str, typer.Option("--name", help="A name for people.")] = "",
    endpoint_url: Annotated[str, typer.Option(help="The address of an S3-compatible server.")] = "",
    region: Annotated[str, typer.Option(help="The bucket's region.")] = "",
    credentials_file: Annotated[
        Path | None,
        typer.Option(help="A file with three lines: access key id, secret access key, and perhaps a session token."),
    ] = None,
) -> None:
    """Make a project."""
    credentials = _read_credentials(credentials_file) if credentials_file else None

    def source(text: str) -> DatasetSource:
        return DatasetSource(uri=dataset_uri(text), endpoint_url=endpoint_url, region=region, credentials=credentials)

    request = pb.CreateProjectRequest(
        project_id=project_name(project).removeprefix("projects/"),
        project=pb.Project(display_name=display_name, training_dataset=source(training)),
        request_id=str(uuid.uuid4()),
    )
    if validation:
        request.project.validation_dataset.CopyFrom(source(validation))
    answer = await session.services.projects.CreateProject(request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.line(f"created {short(answer.project.name)}")


@app.command("list")
@command
async def list_projects(session: Session) -> None:
    """List all projects."""
    found = pb.ListProjectsResponse()
    token = ""
    while True:
        request = pb.ListProjectsRequest(page_size=PAGE_SIZE, page_token=token)
        page = await session.services.projects.ListProjects(request)
        found.projects.extend(page.projects)
        token = page.next_page_token
        if not token:
            break
    if session.output.as_json:
        session.output.json(found)
    else:
        session.output.show(projects_table(found.projects))


@app.command("show")
@command
async def show_project(session: Session, project: Project) -> None:
    """Show one project."""
    answer = await session.services.projects.GetProject(pb.GetProjectRequest(name=project_name(project)))
    if session.output.as_json:
        session.output.json(answer)
        return
    found = answer.project
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, value in (
        ("project", short(found.name)),
        ("name", found.display_name),
        ("training dataset", _source_text(found.training_dataset)),
        ("validation dataset", _source_text(found.validation_dataset) or "split from training"),
        ("created", moment(found.create_time)),
        ("changed", moment(found.update_time)),
        ("uid", found.uid),
    ):
        if value:
            table.add_row(f"[dim]{label}[/dim]", value)
    session.output.show(table)


def dataset_uri(text: str) -> str:
    """A uri as it is; a path becomes a file:// uri."""
    return text if "://" in text else Path(text).expanduser().resolve().as_uri()


def _read_credentials(path: Path) -> Credentials:
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(lines) not in (2, 3):
        raise CommandError(
            f"{path} must hold an access key id, a secret access key and perhaps a session token, each on a line of "
            f"its own, but has {len(lines)} lines"
        )
    return Credentials(
        access_key_id=lines[0], secret_access_key=lines[1], session_token=lines[2] if len(lines) == 3 else ""
    )


def _source_text(source: DatasetSource) -> str:
    server = f" at {source.endpoint_url}" if source.endpoint_url else ""
    return f"{source.uri}{server}" + (" with credentials" if source.has_credentials else "")
