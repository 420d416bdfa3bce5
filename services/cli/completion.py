"""Names that a shell completes, asked of the services: within a second, or not at all.

The shell asks while a person types: whatever goes wrong is no name. What this needs is imported then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

SECONDS_MAX = 1.0
NAMES_MAX = 200


def projects(incomplete: str) -> list[str]:
    """Projects that begin so."""
    return [name for name in _asked(_projects) if name.startswith(incomplete)]


def jobs(incomplete: str) -> list[str]:
    """Projects that begin so, then the jobs of the one that is named."""
    project, slash, _ = incomplete.partition("/")
    if not slash:
        return [name for name in ("@last", *(f"{name}/" for name in _asked(_projects))) if name.startswith(incomplete)]
    return [name for name in _asked(lambda: _jobs(project)) if name.startswith(incomplete)]


def _asked(names: Callable[[], Sequence[str]]) -> Sequence[str]:
    from services.chassis.errors import SihlaiError
    from services.client.context import NoContextError
    from services.client.endpoints import NoEndpointError
    from services.client.name import NameFormatError

    try:
        return names()
    except (SihlaiError, NoContextError, NoEndpointError, NameFormatError, OSError):
        return ()


def _projects() -> list[str]:
    from sihlai.scheduler.v1.project_service_pb2 import ListProjectsRequest

    from services.client.call import PROJECTS, ask
    from services.client.connecting import connect
    from services.client.name import short

    with connect() as client:
        request = ListProjectsRequest(page_size=NAMES_MAX)
        return [
            short(project.name) for project in client.run(ask(PROJECTS.ListProjects, request, SECONDS_MAX)).projects
        ]


def _jobs(project: str) -> list[str]:
    from sihlai.scheduler.v1.job_service_pb2 import ListJobsRequest

    from services.client.call import JOBS, ask
    from services.client.connecting import connect
    from services.client.name import project_name, short

    with connect() as client:
        request = ListJobsRequest(parent=project_name(project), page_size=NAMES_MAX)
        return [short(job.name) for job in client.run(ask(JOBS.ListJobs, request, SECONDS_MAX)).jobs]
