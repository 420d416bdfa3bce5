"""Projects: made, read, listed, deleted."""

from __future__ import annotations

import uuid
from pathlib import Path

from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.client.call import PROJECTS, Operation, ask, pages
from services.client.dataset import source_of
from services.client.name import project_name


def created(
    name: str,
    training: str | Path | DatasetSource,
    validation: str | Path | DatasetSource | None = None,
    *,
    display_name: str = "",
) -> Operation[pb.Project]:
    """A new project; without a validation dataset its jobs split the training one."""
    request = pb.CreateProjectRequest(
        project_id=project_name(name).removeprefix("projects/"),
        project=pb.Project(
            display_name=display_name,
            training_dataset=source_of(training),
            validation_dataset=source_of(validation) if validation is not None else None,
        ),
        request_id=str(uuid.uuid4()),
    )
    return (yield from ask(PROJECTS.CreateProject, request)).project


def got(name: str) -> Operation[pb.Project]:
    """The project as it is now."""
    return (yield from ask(PROJECTS.GetProject, pb.GetProjectRequest(name=project_name(name)))).project


def listed() -> Operation[list[pb.Project]]:
    """All projects by name."""
    found = yield from pages(PROJECTS.ListProjects, pb.ListProjectsRequest())
    return [project for page in found for project in page.projects]


def deleted(name: str) -> Operation[None]:
    """Delete a project with its ended jobs."""
    yield from ask(
        PROJECTS.DeleteProject, pb.DeleteProjectRequest(name=project_name(name), request_id=str(uuid.uuid4()))
    )
