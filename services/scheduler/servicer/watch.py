"""WatchJobs: jobs in the order of their revisions, first all that there are, then each change.

The snapshot is what changed since the beginning, so a broken stream goes on from any cursor, also in the middle of it.
A job that changes twice between two looks is sent once, as it is then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sihlai.scheduler.v1 import job_service_pb2 as messages

from services.chassis.rpc import until_stopping
from services.scheduler.store.jobs import Changes, JobFilter, JobStore, Removal
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.transaction import Committed
from services.scheduler.wire.job import job_filter_from_proto, job_to_proto
from services.scheduler.wire.names import (
    cursor_from_revision,
    cursor_too_old,
    revision_from_cursor,
    unknown_cursor,
)


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """How a watch is served."""

    page_max: int
    """Jobs that are read at once."""
    progress_seconds: float
    """How long a watch is silent before it says so."""


class JobWatch:
    """All watches of this process; a commit wakes them."""

    def __init__(self, jobs: JobStore, projects: ProjectStore, *, limits: WatchLimits, stopping: asyncio.Event) -> None:
        self._jobs = jobs
        self._projects = projects
        self._limits = limits
        self._stopping = stopping
        self._changed = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """Wake the watches if something has changed."""
        if committed.revision is not None:
            self._changed.set()
            self._changed = asyncio.Event()

    def follow(self, request: messages.WatchJobsRequest) -> AsyncIterator[messages.WatchJobsResponse]:
        """The answers to one watch; Unavailable ends it when the server stops."""
        return until_stopping(self._follow(request), self._stopping)

    async def _follow(self, request: messages.WatchJobsRequest) -> AsyncIterator[messages.WatchJobsResponse]:
        job_filter = job_filter_from_proto(request.parent, request.filter)
        revision = revision_from_cursor(request.cursor)
        # By uid: what is deleted with its project is still told.
        project_uid = None
        if job_filter.project_id is not None:
            project_uid = (await self._projects.get(job_filter.project_id)).uid
        is_caught_up = False
        while True:
            changed = self._changed
            found = await self._jobs.changes(project_uid=project_uid, after=revision, limit=self._limits.page_max)
            _check_cursor(revision, found)
            for response in _responses(found, job_filter, is_new=not request.cursor and not is_caught_up):
                yield response
            revision = found.revision
            if not found.complete:
                continue
            if not is_caught_up:
                is_caught_up = True
                cursor = cursor_from_revision(revision)
                yield messages.WatchJobsResponse(cursor=cursor, caught_up=messages.WatchCaughtUp())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.progress_seconds):
                    await changed.wait()
                    continue
            cursor = cursor_from_revision(revision)
            yield messages.WatchJobsResponse(cursor=cursor, progress=messages.WatchProgress())


def _check_cursor(revision: int, found: Changes) -> None:
    if 0 < revision < found.oldest:
        raise cursor_too_old(found.oldest)
    if revision > found.revision:
        raise unknown_cursor()  # of a database that was replaced since


def _responses(found: Changes, job_filter: JobFilter, *, is_new: bool) -> list[messages.WatchJobsResponse]:
    """A message for each change that the filter lets through. Who `is_new` has nothing that could be removed."""
    responses = []
    for item in found.items:
        if isinstance(item, Removal):
            removed = messages.RemovedJob(name=item.name, uid=item.uid)
            cursor = cursor_from_revision(item.revision)
            responses.append(messages.WatchJobsResponse(cursor=cursor, removed=removed))
            continue
        cursor = cursor_from_revision(item.job.revision)
        if job_filter.matches(item.job):
            responses.append(messages.WatchJobsResponse(cursor=cursor, job=job_to_proto(item)))
        elif job_filter.could_match(item.job) and not is_new:
            removed = messages.RemovedJob(name=item.job.name, uid=item.job.uid)
            responses.append(messages.WatchJobsResponse(cursor=cursor, removed=removed))
    return responses
