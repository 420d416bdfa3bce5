"""ProjectService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sihlai.scheduler.v1 import project_service_pb2 as messages
from sihlai.scheduler.v1 import project_service_pb2_grpc

from services.chassis.auth.principal import Principal, current_principal
from services.chassis.log import get_logger
from services.scheduler.deletion import Deletion
from services.scheduler.domain.project import Project
from services.scheduler.seal import Seal
from services.scheduler.store.projects import ProjectStore
from services.scheduler.wire.names import (
    id_violations,
    page_size_of,
    page_token_after,
    project_id_of,
    refuse,
    request_id_violations,
    request_of,
)
from services.scheduler.wire.page import Serialized, page_of
from services.scheduler.wire.project import (
    SourceBounds,
    new_source_from_proto,
    project_change_from_proto,
    project_to_proto,
    project_violations,
)

log = get_logger(__name__)

LIST_SCOPE = "projects"


class ProjectServicer(project_service_pb2_grpc.ProjectServiceServicer):
    """Projects. `new_project_id` makes the id where the caller gives none.

    `deletion_seconds`: how long a deletion waits until `deletion` has taken everything out.
    """

    def __init__(
        self,
        projects: ProjectStore,
        deletion: Deletion,
        *,
        seal: Seal,
        bounds: SourceBounds,
        deletion_seconds: float,
        new_project_id: Callable[[], str],
    ) -> None:
        self._projects = projects
        self._deletion = deletion
        self._deletion_seconds = deletion_seconds
        self._seal = seal
        self._bounds = bounds
        self._new_project_id = new_project_id
        self._rotating = asyncio.Lock()

    async def CreateProject(
        self, request: messages.CreateProjectRequest, context: Any
    ) -> messages.CreateProjectResponse:
        proto = request.project
        refuse(
            request_id_violations(request.request_id)
            + id_violations(request.project_id, "project_id")
            + project_violations(proto, self._bounds)
        )
        validation = proto.validation_dataset if proto.HasField("validation_dataset") else None
        answer = await self._projects.create(
            request_of("CreateProject", request),
            _encode_created,
            project_id=request.project_id or self._new_project_id(),
            display_name=proto.display_name,
            training=new_source_from_proto(proto.training_dataset, self._seal),
            validation=new_source_from_proto(validation, self._seal) if validation is not None else None,
        )
        response = messages.CreateProjectResponse.FromString(answer)
        log.info("project_created", project=response.project.name)
        return response

    async def GetProject(self, request: messages.GetProjectRequest, context: Any) -> messages.GetProjectResponse:
        project = await self._projects.get(project_id_of(request.name))
        return messages.GetProjectResponse(project=project_to_proto(project))

    async def ListProjects(self, request: messages.ListProjectsRequest, context: Any) -> Serialized:
        limit = page_size_of(request.page_size)
        after = page_token_after(request.page_token, LIST_SCOPE)
        found = await self._projects.page(after=after, limit=limit + 1, among=_visible_ids(current_principal()))
        return await page_of(
            found,
            project_to_proto,
            limit=limit,
            place=lambda project: project.project_id,
            scope=LIST_SCOPE,
            answer=lambda projects, token: messages.ListProjectsResponse(projects=projects, next_page_token=token),
        )

    async def UpdateProject(
        self, request: messages.UpdateProjectRequest, context: Any
    ) -> messages.UpdateProjectResponse:
        project_id = project_id_of(request.project.name, "project.name")
        change = project_change_from_proto(request, self._bounds, self._seal)
        answer = await self._projects.update(
            request_of("UpdateProject", request), _encode_updated, project_id=project_id, change=change
        )
        log.info("project_updated", project=request.project.name, fields=list(request.update_mask.paths))
        return messages.UpdateProjectResponse.FromString(answer)

    async def DeleteProject(
        self, request: messages.DeleteProjectRequest, context: Any
    ) -> messages.DeleteProjectResponse:
        project_id = project_id_of(request.name)
        answer = await self._projects.delete(
            request_of("DeleteProject", request), _encode_deleted, project_id=project_id
        )
        log.info("project_deleted", project=request.name)
        response = messages.DeleteProjectResponse.FromString(answer)
        response.done = await self._deletion.is_done(response.uid, seconds=self._deletion_seconds)
        return response

    async def RotateCredentialsKey(
        self, request: messages.RotateCredentialsKeyRequest, context: Any
    ) -> messages.RotateCredentialsKeyResponse:
        refuse(request_id_violations(request.request_id))
        once = request_of("RotateCredentialsKey", request)
        async with self._rotating:
            answer = await self._projects.first_answer(once)
            if answer is None:
                await asyncio.to_thread(self._seal.add_key)
                count = await self._projects.reseal(self._seal.sealed_anew)
                await asyncio.to_thread(self._seal.drop_older)
                log.info("credentials_key_rotated", key=self._seal.key_id, resealed=count)
                made = messages.RotateCredentialsKeyResponse(key_id=self._seal.key_id, resealed_count=count)
                answer = await self._projects.answer(once, made.SerializeToString())
        return messages.RotateCredentialsKeyResponse.FromString(answer)


def _visible_ids(principal: Principal) -> frozenset[str] | None:
    """The ids of the projects that the caller may see; None for all."""
    names = principal.visible_projects()
    return None if names is None else frozenset(name.removeprefix("projects/") for name in names)


def _encode_created(project: Project) -> bytes:
    return messages.CreateProjectResponse(project=project_to_proto(project)).SerializeToString()


def _encode_updated(project: Project) -> bytes:
    return messages.UpdateProjectResponse(project=project_to_proto(project)).SerializeToString()


def _encode_deleted(project: Project) -> bytes:
    return messages.DeleteProjectResponse(uid=project.uid).SerializeToString()
