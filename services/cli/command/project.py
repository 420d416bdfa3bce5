"""`sihlai project`: create, list, show, update, delete, rotate-key."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from sihlai.conversion.v1.dataset_pb2 import Credentials, DatasetSource
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.cli.command.arguments import ProjectArgument
from services.cli.credentials import profile_credentials, read_credentials
from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError
from services.cli.question import confirm
from services.cli.session import Session, command
from services.cli.view.table import moment, projects_table
from services.cli.view.text import safe
from services.client.call import PROJECTS, ask, whole
from services.client.dataset import dataset_uri
from services.client.name import project_name, short

app = typer.Typer(no_args_is_help=True, help="What a team trains on: a dataset, described once.")


Profile = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use the S3 key of this profile in ~/.aws/credentials.")
]


@app.command("create")
@command
async def create_project(
    session: Session,
    project: ProjectArgument,
    training: Annotated[
        str, typer.Option("--training", help="The training dataset: a folder, file:///…, s3://…, gs://… or az://….")
    ],
    validation: Annotated[
        str | None, typer.Option("--validation", help="The validation dataset; without one, jobs split the other.")
    ] = None,
    display_name: Annotated[str, typer.Option("--name", help="A name for people.")] = "",
    endpoint_url: Annotated[str, typer.Option(help="The address of an S3-compatible server.")] = "",
    region: Annotated[str, typer.Option(help="The bucket's region.")] = "",
    credentials_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with an S3 key's access key id, secret access key and perhaps session token, a line each, "
            "with the JSON of a Google service account's key, or with an Azure account's key or SAS token."
        ),
    ] = None,
    profile: Profile = None,
) -> None:
    """Make a project.

    Example: sihlai project create digits --training ~/data/digits
    """
    credentials = _credentials(session, credentials_file, profile)
    _check_folders(session, training, validation)

    def source(text: str) -> DatasetSource:
        return DatasetSource(uri=dataset_uri(text), endpoint_url=endpoint_url, region=region, credentials=credentials)

    request = pb.CreateProjectRequest(
        project_id=project_name(project).removeprefix("projects/"),
        project=pb.Project(display_name=display_name, training_dataset=source(training)),
        request_id=str(uuid.uuid4()),
    )
    if validation:
        request.project.validation_dataset.CopyFrom(source(validation))
    answer = await session.client.run(ask, PROJECTS.CreateProject, request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.line(f"created {short(answer.project.name)}")


@app.command("list")
@command
async def list_projects(session: Session) -> None:
    """List all projects.

    Example: sihlai project list -o name
    """
    found = await session.client.run(whole, PROJECTS.ListProjects, pb.ListProjectsRequest())
    if session.output.as_json:
        session.output.json(found)
    else:
        session.output.show(projects_table(found.projects))


@app.command("show")
@command
async def show_project(session: Session, project: ProjectArgument) -> None:
    """Show one project.

    Example: sihlai project show digits
    """
    answer = await session.client.run(ask, PROJECTS.GetProject, pb.GetProjectRequest(name=project_name(project)))
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
            table.add_row(f"[dim]{label}[/dim]", safe(value))
    session.output.show(table)


@app.command("update")
@command
async def update_project(
    session: Session,
    project: ProjectArgument,
    training: Annotated[str | None, typer.Option("--training", help="Another training dataset.")] = None,
    validation: Annotated[str | None, typer.Option("--validation", help="Another validation dataset.")] = None,
    no_validation: Annotated[bool, typer.Option("--no-validation", help="Split the training one.")] = False,
    display_name: Annotated[str | None, typer.Option("--name", help="Another name for people.")] = None,
    endpoint_url: Annotated[str, typer.Option(help="The address of an S3-compatible server, for new datasets.")] = "",
    region: Annotated[str, typer.Option(help="The bucket's region, for new datasets.")] = "",
    credentials_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with an S3 key's access key id, secret access key and perhaps session token, a line each, "
            "with the JSON of a Google service account's key, or with an Azure account's key or SAS token."
        ),
    ] = None,
    profile: Profile = None,
) -> None:
    """Change a project. Jobs keep the dataset that they were submitted with.

    Example: sihlai project update digits --training ~/data/more-digits
    """
    if validation and no_validation:
        raise CommandError("give either --validation or --no-validation", exit_code=EXIT_NOT_UNDERSTOOD)
    credentials = _credentials(session, credentials_file, profile)
    _check_folders(session, training, validation)
    request = pb.UpdateProjectRequest(project=pb.Project(name=project_name(project)), request_id=str(uuid.uuid4()))
    for field, text in (("training_dataset", training), ("validation_dataset", validation)):
        if text:
            source = DatasetSource(
                uri=dataset_uri(text), endpoint_url=endpoint_url, region=region, credentials=credentials
            )
            getattr(request.project, field).CopyFrom(source)
            request.update_mask.paths.append(field)
    if no_validation:
        request.update_mask.paths.append("validation_dataset")
    if credentials and not training and not validation:
        request.project.training_dataset.credentials.CopyFrom(credentials)
        request.update_mask.paths.append("training_dataset.credentials")
    if display_name is not None:
        request.project.display_name = display_name
        request.update_mask.paths.append("display_name")
    if not request.update_mask.paths:
        raise CommandError(
            "nothing is to be changed: give --training, --validation, --no-validation, --name, --credentials-file or "
            "--profile",
            exit_code=EXIT_NOT_UNDERSTOOD,
        )
    answer = await session.client.run(ask, PROJECTS.UpdateProject, request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.line(f"changed {short(answer.project.name)}: {', '.join(request.update_mask.paths)}")


@app.command("delete")
@command
async def delete_project(
    session: Session,
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a project with its ended jobs. Nothing brings them back; with an active job it is refused.

    Example: sihlai project delete digits --yes
    """
    name = project_name(project)
    if not yes:
        confirm(
            f"delete {short(name)} with all its jobs, for good?",
            otherwise=f"{short(name)} and its jobs would be gone for good",
        )
    answer = await session.client.run(
        ask, PROJECTS.DeleteProject, pb.DeleteProjectRequest(name=name, request_id=str(uuid.uuid4()))
    )
    if session.output.as_json:
        session.output.json(answer)
    elif answer.done:
        session.output.line(f"deleted {short(name)}")
    else:
        session.output.line(f"deleted {short(name)}; its checkpoints are still being removed")


@app.command("rotate-key")
@command
async def rotate_key(session: Session) -> None:
    """Seal the stored credentials of all projects with a new key, and forget the old one; everything keeps running.

    A copy of the scheduler's database from before needs the old key file: keep them together, or neither.

    Example: sihlai project rotate-key
    """
    request = pb.RotateCredentialsKeyRequest(request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, PROJECTS.RotateCredentialsKey, request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.line(f"sealed {answer.resealed_count} credentials anew, with key {answer.key_id}")


def _check_folders(session: Session, *places: str | None) -> None:
    """A folder that is not there is refused, or, where the services are on other machines, a remark."""
    for place in places:
        if not place or "://" in place or Path(place).expanduser().is_dir():
            continue
        problem = f"there is no folder {Path(place).expanduser()}"
        if session.client.driver.endpoints.up is not None:
            raise CommandError(problem)
        session.output.note(f"warning: {problem} on this machine")


def _credentials(session: Session, file: Path | None, profile: str | None) -> Credentials | None:
    if file and profile:
        raise CommandError("give either --credentials-file or --profile", exit_code=EXIT_NOT_UNDERSTOOD)
    return read_credentials(file) if file else profile_credentials(profile, session.environ) if profile else None


def _source_text(source: DatasetSource) -> str:
    server = f" at {source.endpoint_url}" if source.endpoint_url else ""
    return f"{source.uri}{server}" + (" with credentials" if source.credentials_stored else "")
