"""Names that a shell completes, asked of the services: within a second, or not at all.

The shell asks while a person types: whatever goes wrong is no name. Where the services are is said by the words before,
or by the environment, as of every command. What this needs is imported then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from services.client.face import Client

SECONDS_MAX = 1.0
NAMES_MAX = 200
CHECKPOINT_ALIASES = ("best", "last", "final")


def projects(context: typer.Context, incomplete: str) -> list[str]:
    """Projects that begin so."""
    return _asked(context, incomplete, _projects)


def jobs(context: typer.Context, incomplete: str) -> list[str]:
    """Projects that begin so, then the jobs of the one that is named."""
    project, slash, _ = incomplete.partition("/")
    if not slash:
        return _asked(context, incomplete, lambda client: ["@last", *(f"{name}/" for name in _projects(client))])
    return _asked(context, incomplete, lambda client: _jobs(client, project))


def checkpoints(context: typer.Context, incomplete: str) -> list[str]:
    """As `jobs`, then the checkpoints of the one that is named."""
    if incomplete.count("/") < 2:
        return jobs(context, incomplete)
    return _asked(context, incomplete, lambda client: _checkpoints(client, incomplete.rpartition("/")[0]))


def runners(context: typer.Context, incomplete: str) -> list[str]:
    """Runners that begin so."""
    return _asked(context, incomplete, _runners)


def contexts(incomplete: str) -> list[str]:
    """Installations that begin so, as `sihlai context` knows them."""
    from services.chassis.context import LOCAL, NoContextError, contexts_file, read_contexts

    try:
        known = read_contexts(contexts_file(os.environ)).by_name
    except (NoContextError, OSError):
        return []
    return [name for name in (LOCAL, *known) if name.startswith(incomplete)]


def _asked(context: typer.Context, incomplete: str, names: Callable[[Client], Sequence[str]]) -> list[str]:
    from services.chassis.context import NoContextError
    from services.chassis.endpoints import NoEndpointError
    from services.chassis.errors import ConfigurationError, SihlaiError
    from services.client.connecting import connect
    from services.client.name import NameFormatError

    said: dict[str, Any] = context.params
    try:
        with connect(said.get("scheduler") or "", context=said.get("installation"), data=said.get("data")) as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except (SihlaiError, ConfigurationError, NoContextError, NoEndpointError, NameFormatError, OSError):
        return []


def _projects(client: Client) -> list[str]:
    from sihlai.scheduler.v1.project_service_pb2 import ListProjectsRequest

    from services.client.call import PROJECTS, ask
    from services.client.name import short

    request = ListProjectsRequest(page_size=NAMES_MAX)
    return [short(project.name) for project in client.run(ask, PROJECTS.ListProjects, request, SECONDS_MAX).projects]


def _jobs(client: Client, project: str) -> list[str]:
    from sihlai.scheduler.v1.job_service_pb2 import ListJobsRequest

    from services.client.call import JOBS, ask
    from services.client.name import project_name, short

    request = ListJobsRequest(parent=project_name(project), page_size=NAMES_MAX)
    return [short(job.name) for job in client.run(ask, JOBS.ListJobs, request, SECONDS_MAX).jobs]


def _checkpoints(client: Client, job: str) -> list[str]:
    from sihlai.scheduler.v1.checkpoint_service_pb2 import ListCheckpointsRequest

    from services.client.call import CHECKPOINTS, ask
    from services.client.name import job_name, short

    request = ListCheckpointsRequest(parent=job_name(job), page_size=NAMES_MAX)
    found = client.run(ask, CHECKPOINTS.ListCheckpoints, request, SECONDS_MAX).checkpoints
    return [*(f"{job}/{alias}" for alias in CHECKPOINT_ALIASES), *(short(each.name) for each in found)]


def _runners(client: Client) -> list[str]:
    from sihlai.runner.v1.runner_admin_service_pb2 import ListRunnersRequest

    from services.client.call import RUNNERS, ask

    request = ListRunnersRequest(page_size=NAMES_MAX)
    found = client.run(ask, RUNNERS.ListRunners, request, SECONDS_MAX).runners
    return [runner.name.removeprefix("runners/") for runner in found]
