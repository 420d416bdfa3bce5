"""What the requests of several services have in common: jobs by name, and sizes of pages."""

from __future__ import annotations

from collections.abc import Sequence

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.job import JobFacts
from services.metrics.job_wire import require_job_names
from services.metrics.jobs import Jobs

PAGE_SIZE_MAX = 1_000
PAGE_BYTES_MAX = 3 * 2**20
"""Of a list. A client in any language takes messages of 4 MiB when nobody tells it otherwise."""
JOBS_MAX = 100


async def named(jobs: Jobs, names: Sequence[str], *, field: str) -> list[JobFacts]:
    """The jobs of these names, or NotFound, InvalidArgument, Unavailable."""
    require_names(names, field=field)
    return await jobs.named(names)


def require_names(names: Sequence[str], *, field: str) -> None:
    """Raise InvalidArgument unless these are the names of one job or of several."""
    if not 1 <= len(names) <= JOBS_MAX:
        description = f"has {len(names)} names, but must have 1 to {JOBS_MAX}"
        raise InvalidArgument([Violation(field=field, description=description)])
    require_job_names(names, field=field)


def require_not_negative(field: str, value: int) -> None:
    """Raise InvalidArgument for a number below 0."""
    if value < 0:
        raise InvalidArgument([Violation(field=field, description=f"is {value}, but must not be below 0")])
