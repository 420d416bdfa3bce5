"""WatchJobs: jobs in the order of their revisions, first all that there are, then each change.

The snapshot is what changed since the beginning, so a broken stream goes on from any cursor, also in the middle of it.
A job that changes twice between two looks is sent once, as it is then. Who is caught up is given what changes from a
window in memory: the database is read once after a commit, however many watch. How far jobs are has no revisions: who
is caught up gets it as often as it is written down, who is not finds it with the rest.

A watch holds one page of messages, bounded by bytes, however slowly its client reads; who reads nothing for long is
told so, and goes on from its cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
from sihlai.scheduler.v1 import job_service_pb2 as messages

from services.chassis.aside import aside
from services.chassis.errors import Reason, ResourceExhausted
from services.chassis.log import get_logger
from services.chassis.rpc import end_stream, server_stopping
from services.chassis.serialized import Unread, send
from services.scheduler.domain.job import ACTIVE
from services.scheduler.domain.view import JobView
from services.scheduler.servicer.watch_change import Change, Scope, Window, change_of, changes_of
from services.scheduler.servicer.watch_room import Page, Room
from services.scheduler.store.committed import Committed
from services.scheduler.store.jobs import Changes, JobStore
from services.scheduler.store.projects import ProjectStore
from services.scheduler.wire.job import job_filter_from_proto
from services.scheduler.wire.names import (
    cursor_from_revision,
    cursor_too_old,
    revision_from_cursor,
    unknown_cursor,
)

log = get_logger(__name__)

READS_AT_ONCE = 4
"""Pages that are being read: until its messages are made, a page is several times as large."""
MOVED_AT_ONCE = 50
"""Jobs that have moved on, likewise."""


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """How watches are served."""

    page_max: int
    """Jobs that are read at once."""
    page_bytes_max: int
    """The same in bytes: what a watch holds until its client has read it."""
    bytes_max: int
    """What all watches together hold; see `Room`."""
    unread_seconds: float
    """How long a client may read nothing before its watch ends. A client's gRPC makes room for 4 MB at a time, as
    measured: that is 7 minutes for one that reads 10 kB/s."""
    progress_seconds: float
    """How long a watch is silent before it says so."""
    watches_max: int
    """Watches that are served at once."""
    window_max: int
    """Changes that are kept for those who are caught up."""
    window_bytes_max: int
    """The same in bytes."""


@dataclass(kw_only=True)
class _Place:
    """How far one watch is."""

    scope: Scope
    revision: int
    since: int
    """What changed later can have left since it was sent."""
    moves_seen: int
    is_caught_up: bool = False
    is_complete: bool = False
    """Whether it was told all that is known."""

    @property
    def cursor(self) -> str:
        return cursor_from_revision(self.revision)


class JobWatch:
    """All watches of this process. `turn` is to be taken again and again; a commit makes it read."""

    def __init__(self, jobs: JobStore, projects: ProjectStore, *, limits: WatchLimits) -> None:
        self._jobs = jobs
        self._projects = projects
        self._limits = limits
        self._room = Room(page_bytes_max=limits.page_bytes_max, bytes_max=limits.bytes_max)
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._stopping = False
        self._watches = 0
        self._window: Window | None = None
        """None while nobody is caught up."""
        self._committed = asyncio.Event()
        self._moved: set[str] = set()
        """Uids of jobs that have moved on and were not read since."""
        self._changed = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """What watches hold for their clients."""
        return self._room.held_bytes

    def on_committed(self, committed: Committed) -> None:
        """Something has changed."""
        if self._watches:
            self._moved.update(committed.moved)
        if committed.revision is not None or self._moved:
            self._committed.set()

    def stop(self) -> None:
        """The server stops: watches end."""
        self._stopping = True
        self._changed.set()

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

    async def _read(self, window: Window, moved: Sequence[str]) -> None:
        limits, complete = self._limits, False
        while not complete:
            found = await self._jobs.changes(
                project_uid=None, after=window.head, limit=limits.page_max, bytes_max=limits.page_bytes_max
            )
            window.add(await _kept(list(changes_of(found.items))), head=found.revision)
            complete = found.complete
        for start in range(0, len(moved), MOVED_AT_ONCE):
            window.move(await _kept(await self._further(moved[start : start + MOVED_AT_ONCE], head=window.head)))

    async def _further(self, uids: Sequence[str], *, head: int) -> list[Change]:
        """How far these jobs are, to be told to who has seen all up to `head`."""
        views = await self._jobs.batch([], uids)
        return [change_of(view, head=head) for view in views if isinstance(view, JobView) and view.job.state in ACTIVE]

    async def follow(self, request: messages.WatchJobsRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Answer one watch. Unavailable ends it when the server stops, ResourceExhausted when nobody reads it."""
        unread_seconds = self._limits.unread_seconds
        with self._counted():
            try:
                await send(self._told(request), context, unread_seconds=unread_seconds)
            except Unread:
                log.info("watch_unread", parent=request.parent, seconds=unread_seconds)
                await end_stream(context, _unread(unread_seconds))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Watches stay for hours: without a limit of their own they would take every call that the server has."""
        limit = self._limits.watches_max
        if self._watches >= limit:
            message = f"{limit} watches are served at once, and so many are: end one, or come back in a moment"
            raise ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": "watches_max", "limit": str(limit)})
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1
            if not self._watches:
                self._window = None
                self._moved.clear()

    async def _told(self, request: messages.WatchJobsRequest) -> AsyncGenerator[bytes, None]:
        """The messages of one watch, serialised."""
        place = await self._begun(request)
        while True:
            changed = self._changed
            with closing(self._room.sent(await self._next(place))) as page:
                for message in page:
                    self._require_running()
                    yield message
            self._require_running()
            if not place.is_complete:
                continue
            if not place.is_caught_up:
                place.is_caught_up = True
                caught_up = messages.WatchJobsResponse(cursor=place.cursor, caught_up=messages.WatchCaughtUp())
                yield caught_up.SerializeToString()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.progress_seconds):
                    await changed.wait()
                    continue
            progress = messages.WatchJobsResponse(cursor=place.cursor, progress=messages.WatchProgress())
            yield progress.SerializeToString()

    async def _begun(self, request: messages.WatchJobsRequest) -> _Place:
        job_filter = job_filter_from_proto(request.parent, request.filter)
        project_uid = None
        if job_filter.project_id is not None:
            project_uid = (await self._projects.get(job_filter.project_id)).uid
        revision = since = revision_from_cursor(request.cursor)
        if not request.cursor:
            since = await self._jobs.revision()
            revision = since if request.changes_only else 0
        return _Place(
            scope=Scope(job_filter=job_filter, project_uid=project_uid),
            revision=revision,
            since=since,
            moves_seen=self._window.moves if self._window is not None else 0,
        )

    async def _next(self, place: _Place) -> list[bytes]:
        """The messages of what comes next, as many as there is room for."""
        window = self._window
        if not place.is_caught_up or window is None or window.floor > place.revision:
            async with self._reading:
                return await self._stored(place)
        changes = window.after(place.revision)
        if not changes:
            place.revision = max(place.revision, window.head)
            return await self._moves(place, window)
        page = Page(place.scope, removals_after=place.since, bytes_max=self._room.page_bytes)
        page.write(changes)
        place.revision, place.is_complete = changes[page.looked - 1].revision, False
        return page.messages

    async def _stored(self, place: _Place) -> list[bytes]:
        """From the database."""
        page_bytes = self._room.page_bytes
        found = await self._jobs.changes(
            project_uid=place.scope.project_uid,
            after=place.revision,
            limit=self._limits.page_max,
            bytes_max=page_bytes,
            job_filter=place.scope.job_filter,
            unseen_to=place.since,
        )
        _check_cursor(place.revision, found)
        changes = list(changes_of(found.items))
        page = Page(place.scope, removals_after=place.since, bytes_max=page_bytes)
        await aside(changes, page.write)
        if page.looked < len(changes):
            place.revision, place.is_complete = changes[page.looked - 1].revision, False
            return page.messages
        place.revision, place.is_complete = found.revision, found.complete
        if found.complete and self._window is None:
            self._begin_window(found.revision)
        return page.messages

    async def _moves(self, place: _Place, window: Window) -> list[bytes]:
        """Of those who have moved on, which nobody knows more of but the window."""
        moved = window.moved_after(place.moves_seen)[:MOVED_AT_ONCE]
        if not moved:
            place.moves_seen, place.is_complete = window.moves, True
            return []
        gone = [uid for _, uid, change in moved if change is None]
        again = {change.uid: change for change in await self._further(gone, head=place.revision)} if gone else {}
        found = [(move, change or again.get(uid)) for move, uid, change in moved]
        changes = [change for _, change in found if change is not None]
        page = Page(place.scope, removals_after=None, bytes_max=self._room.page_bytes)
        page.write(changes)
        place.is_complete = False
        place.moves_seen = moved[-1][0]
        if page.looked < len(changes):
            place.moves_seen = next(move for move, change in found if change is changes[page.looked]) - 1
        return page.messages

    def _begin_window(self, revision: int) -> None:
        limits = self._limits
        self._window = Window(revision, changes_max=limits.window_max, bytes_max=limits.window_bytes_max)
        self._committed.set()  # for what was committed since the revision was read

    def _require_running(self) -> None:
        if self._stopping:
            raise server_stopping()


async def _kept(changes: Sequence[Change]) -> list[Change]:
    made = await aside(changes, lambda some: [change.kept() for change in some])
    return list(itertools.chain.from_iterable(made))


def _unread(seconds: float) -> ResourceExhausted:
    message = f"a watch must be read, but its client has read nothing for {seconds:g} s: go on from the last cursor"
    return ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": "watch_unread_seconds", "limit": f"{seconds:g}"})


def _check_cursor(revision: int, found: Changes) -> None:
    if 0 < revision < found.oldest:
        raise cursor_too_old(found.oldest)
    if revision > found.revision:  # of a database that was replaced since
        log.warning("cursor_of_another_database", revision=revision, last=found.revision)
        raise unknown_cursor()
