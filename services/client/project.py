"""Projects: made, read, listed, deleted."""

from __future__ import annotations

import uuid
from pathlib import Path

from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.client.call import PROJECTS, Transport, ask, whole
from services.client.dataset import source_of
from services.client.name import project_name


async def created(
    transport: Transport,
    name: str,
    training: str | Path | DatasetSource,
    validation: str | Path | DatasetSource | None = None,
    *,
    display_name: str = "",
) -> pb.Project:
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
    return (await ask(transport, PROJECTS.CreateProject, request)).project


async def got(transport: Transport, name: str) -> pb.Project:
    """The project as it is now."""
    return (await ask(transport, PROJECTS.GetProject, pb.GetProjectRequest(name=project_name(name)))).project


async def listed(transport: Transport) -> list[pb.Project]:
    """All projects by name."""
    return list((await whole(transport, PROJECTS.ListProjects, pb.ListProjectsRequest())).projects)


async def deleted(transport: Transport, name: str) -> None:
    """Delete a project with its ended jobs."""
    request = pb.DeleteProjectRequest(name=project_name(name), request_id=str(uuid.uuid4()))
    await ask(transport, PROJECTS.DeleteProject, request)
