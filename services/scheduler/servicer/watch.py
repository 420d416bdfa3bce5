"""WatchJobs: jobs in the order of their revisions, first all that there are, then each change.

The snapshot is what changed since the beginning, so a broken stream goes on from any cursor, also in the middle of it.
A job that changes twice between two looks is sent once, as it is then. Who is caught up is given what changes from a
window in memory: the database is read once after a commit, however many watch. How far jobs are has no revisions: who
is caught up gets it as often as it is written down, who is not finds it with the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sihlai.scheduler.v1 import job_service_pb2 as messages

from services.chassis.errors import Reason, ResourceExhausted
from services.chassis.rpc import until_stopping
from services.scheduler.domain.job import ACTIVE
from services.scheduler.domain.view import Damaged, JobFilter, JobView
from services.scheduler.store.committed import Committed
from services.scheduler.store.jobs import Changes, JobStore, Removal
from services.scheduler.store.projects import ProjectStore
from services.scheduler.wire.job import is_deleted, job_filter_from_proto, job_to_proto
from services.scheduler.wire.names import (
    cursor_from_revision,
    cursor_too_old,
    revision_from_cursor,
    unknown_cursor,
)
from services.scheduler.wire.page import whole


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """How watches are served."""

    page_max: int
    """Jobs that are read at once."""
    progress_seconds: float
    """How long a watch is silent before it says so."""
    watches_max: int
    """Watches that are served at once."""
    window_max: int
    """Changes that are kept for those who are caught up."""


@dataclass(frozen=True)
class _Change:
    """A change, with the message of it that all watches share. `head`: up to where a watch has seen all at least that
    gets it, where that is not the change's own revision.
    """

    item: JobView | Removal
    head: int | None = None

    @property
    def revision(self) -> int:
        return self.item.revision if isinstance(self.item, Removal) else self.item.job.revision

    @property
    def uid(self) -> str:
        return self.item.uid if isinstance(self.item, Removal) else self.item.job.uid

    @property
    def project_uid(self) -> str:
        return self.item.project_uid if isinstance(self.item, Removal) else self.item.job.project_uid

    @cached_property
    def as_job(self) -> messages.WatchJobsResponse | None:
        """None where what is stored cannot be told."""
        assert isinstance(self.item, JobView), "a job that is there"
        proto = whole(self.item, job_to_proto, lambda view: view.job.name)
        if proto is None:
            return None
        cursor = cursor_from_revision(self.revision if self.head is None else self.head)
        return messages.WatchJobsResponse(cursor=cursor, job=proto)

    @cached_property
    def as_removed(self) -> messages.WatchJobsResponse:
        name = self.item.name if isinstance(self.item, Removal) else self.item.job.name
        removed = messages.RemovedJob(name=name, uid=self.uid)
        return messages.WatchJobsResponse(cursor=cursor_from_revision(self.revision), removed=removed)


class _Window:
    """The changes of all jobs above `floor` and up to `head`, in their order; and who has moved on since it changed."""

    def __init__(self, revision: int) -> None:
        self.floor = self.head = revision
        self._changes: list[_Change] = []
        self.moves = 0
        """Times that a job has moved on."""
        self._moved: dict[str, tuple[int, _Change]] = {}
        """Of each job, by uid, the last time, in their order."""

    def add(self, changes: Sequence[_Change], *, head: int, window_max: int) -> None:
        self._changes += changes
        self.head = head
        for change in changes:
            self._moved.pop(change.uid, None)  # how far it is comes with it
        surplus = len(self._changes) - window_max
        if surplus > 0:
            self.floor = self._changes[surplus - 1].revision
            del self._changes[:surplus]

    def move(self, views: Iterable[JobView]) -> None:
        """These jobs, as they are now, are further than before."""
        for view in views:
            self.moves += 1
            self._moved.pop(view.job.uid, None)
            self._moved[view.job.uid] = (self.moves, _Change(view, head=self.head))

    def moved_after(self, moves: int) -> list[_Change]:
        """Who has moved on since there were so many moves."""
        later = itertools.takewhile(lambda each: each[0] > moves, reversed(self._moved.values()))
        return [change for _, change in later][::-1]

    def after(self, revision: int) -> list[_Change]:
        """Each job that changed after the revision once, as it was last."""
        found = self._changes[bisect_right(self._changes, revision, key=lambda change: change.revision) :]
        last = {change.uid: change for change in found}
        return [change for change in found if last[change.uid] is change]


class JobWatch:
    """All watches of this process. `turn` is to be taken again and again; a commit makes it read."""

    def __init__(self, jobs: JobStore, projects: ProjectStore, *, limits: WatchLimits, stopping: asyncio.Event) -> None:
        self._jobs = jobs
        self._projects = projects
        self._limits = limits
        self._stopping = stopping
        self._watches = 0
        self._window: _Window | None = None
        """None while nobody is caught up."""
        self._committed = asyncio.Event()
        self._moved: set[str] = set()
        """Uids of jobs that have moved on and were not read since."""
        self._changed = asyncio.Event()

    def on_committed(self, committed: Committed) -> None:
        """Something has changed."""
        if self._watches:
            self._moved.update(committed.moved)
        if committed.revision is not None or self._moved:
            self._committed.set()

    async def turn(self) -> None:
        """Wait for a commit, read what it changed, and wake the watches."""
        await self._committed.wait()
        self._committed.clear()
        window = self._window
        if window is None:
            return
        moved, self._moved = self._moved, set()
        try:
            await self._read(window, sorted(moved))
        except BaseException:
            self._moved |= moved
            self._committed.set()  # the next turn reads it
            raise
        self._changed.set()
        self._changed = asyncio.Event()

    async def _read(self, window: _Window, moved: Sequence[str]) -> None:
        complete = False
        while not complete:
            found = await self._jobs.changes(project_uid=None, after=window.head, limit=self._limits.page_max)
            window.add(_changes_of(found), head=found.revision, window_max=self._limits.window_max)
            complete = found.complete
        for start in range(0, len(moved), self._limits.page_max):
            views = await self._jobs.batch([], moved[start : start + self._limits.page_max])
            window.move(view for view in views if isinstance(view, JobView) and view.job.state in ACTIVE)

    def follow(self, request: messages.WatchJobsRequest) -> AsyncIterator[messages.WatchJobsResponse]:
        """The answers to one watch; Unavailable ends it when the server stops."""
        return until_stopping(self._counted(request), self._stopping)

    async def _counted(self, request: messages.WatchJobsRequest) -> AsyncIterator[messages.WatchJobsResponse]:
        """Watches stay for hours: without a limit of their own they would take every call that the server has."""
        limit = self._limits.watches_max
        if self._watches >= limit:
            message = f"{limit} watches are served at once, and so many are: end one, or come back in a moment"
            raise ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": "watches_max", "limit": str(limit)})
        self._watches += 1
        try:
            async for response in self._follow(request):
                yield response
        finally:
            self._watches -= 1
            if not self._watches:
                self._window = None
                self._moved.clear()

    async def _follow(self, request: messages.WatchJobsRequest) -> AsyncIterator[messages.WatchJobsResponse]:
        job_filter = job_filter_from_proto(request.parent, request.filter)
        # By uid: what is deleted with its project is still told.
        project_uid = None
        if job_filter.project_id is not None:
            project_uid = (await self._projects.get(job_filter.project_id)).uid
        revision = since = revision_from_cursor(request.cursor)
        if not request.cursor:
            since = await self._jobs.revision()
            revision = since if request.changes_only else 0
        is_caught_up = False
        moves_seen = self._window.moves if self._window is not None else 0
        while True:
            changed, window = self._changed, self._window
            moved: list[_Change] = []
            if is_caught_up and window is not None and window.floor <= revision:
                changes, complete = window.after(revision), True
                revision = max(revision, window.head)
                moved, moves_seen = window.moved_after(moves_seen), window.moves
            else:
                found = await self._jobs.changes(
                    project_uid=project_uid, after=revision, limit=self._limits.page_max, job_filter=job_filter
                )
                _check_cursor(revision, found)
                changes, complete, revision = _changes_of(found), found.complete, found.revision
                if complete:
                    self._begin_window(revision)
            for response in _responses(changes, job_filter, project_uid, removals_after=since):
                yield response
            for response in _responses(moved, job_filter, project_uid, removals_after=None):
                yield response
            if not complete:
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

    def _begin_window(self, revision: int) -> None:
        if self._window is None:
            self._window = _Window(revision)
            self._committed.set()  # for what was committed since the revision was read


def _changes_of(found: Changes) -> list[_Change]:
    """What can be told. That a job was deleted is told when it is, not once more when its files are gone."""
    changes = (_Change(item) for item in found.items if not isinstance(item, Damaged))
    return [change for change in changes if not is_deleted(change.project_uid, change.uid)]


def _check_cursor(revision: int, found: Changes) -> None:
    if 0 < revision < found.oldest:
        raise cursor_too_old(found.oldest)
    if revision > found.revision:
        raise unknown_cursor()  # of a database that was replaced since


def _responses(
    changes: Iterable[_Change], job_filter: JobFilter, project_uid: str | None, *, removals_after: int | None
) -> Iterator[messages.WatchJobsResponse]:
    """A message for each change that the filter lets through.

    Only what changed after the revision `removals_after` can have left since it was sent; None: nothing can.
    """
    for change in changes:
        item = change.item
        if project_uid is not None and change.project_uid != project_uid:
            continue
        may_have_left = removals_after is not None and change.revision > removals_after
        if isinstance(item, Removal):
            if may_have_left and (not job_filter.uids or change.uid in job_filter.uids):
                yield change.as_removed
        elif job_filter.matches(item.job):
            if change.as_job is not None:
                yield change.as_job
        elif may_have_left and job_filter.could_match(item.job):
            yield change.as_removed
