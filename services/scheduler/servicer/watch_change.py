"""What watches are told of, and the changes that are kept in memory for those who are caught up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from msgspec.structs import replace as struct_replace
from sihlai.scheduler.v1 import job_service_pb2 as messages

from services.scheduler.domain.job import Job
from services.scheduler.domain.view import Damaged, JobFilter, JobView
from services.scheduler.store.jobs import Removal
from services.scheduler.wire.job import is_deleted, job_to_proto
from services.scheduler.wire.names import cursor_from_revision
from services.scheduler.wire.page import whole

CHANGE_BYTES = 2_000
"""What a change takes beside the message that tells of it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a job. `job` is what filters look at; None of one that was deleted."""

    revision: int
    uid: str
    project_uid: str
    name: str
    job: Job | None = None
    content: JobView | bytes | None = None
    """The job as it was read, or the message that tells of it, which all watches share; None where nobody can tell."""
    head: int | None = None
    """Up to where a watch has seen all at least that gets it, where that is not the change's own revision."""

    def as_job(self) -> bytes | None:
        """The message with the job, serialised."""
        if not isinstance(self.content, JobView):
            return self.content
        proto = whole(self.content, job_to_proto, lambda view: view.job.name)
        if proto is None:
            return None
        cursor = cursor_from_revision(self.revision if self.head is None else self.head)
        return messages.WatchJobsResponse(cursor=cursor, job=proto).SerializeToString()

    def as_removed(self) -> bytes:
        """The message that says that the job is gone, serialised."""
        removed = messages.RemovedJob(name=self.name, uid=self.uid)
        cursor = cursor_from_revision(self.revision)
        return messages.WatchJobsResponse(cursor=cursor, removed=removed).SerializeToString()

    def kept(self) -> Change:
        """The same to be kept: its message is made, and what only that needs is let go of."""
        job = struct_replace(self.job, spec=b"") if self.job is not None else None
        return replace(self, job=job, content=self.as_job())

    @property
    def size_bytes(self) -> int:
        """Of one that is kept."""
        return CHANGE_BYTES + (len(self.content) if isinstance(self.content, bytes) else 0)


def change_of(item: JobView | Removal, *, head: int | None = None) -> Change:
    """The change after which a job is so, or gone."""
    if isinstance(item, Removal):
        return Change(revision=item.revision, uid=item.uid, project_uid=item.project_uid, name=item.name)
    job = item.job
    return Change(
        revision=job.revision,
        uid=job.uid,
        project_uid=job.project_uid,
        name=job.name,
        job=job,
        content=item,
        head=head,
    )


def changes_of(items: Iterable[JobView | Removal | Damaged]) -> Iterator[Change]:
    """What can be told. That a job was deleted is told when it is, not once more when its files are gone."""
    for item in items:
        if not isinstance(item, Damaged):
            change = change_of(item)
            if not is_deleted(change.project_uid, change.uid):
                yield change


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What one watch is told. By uid: what is deleted with its project is still told."""

    job_filter: JobFilter
    project_uid: str | None

    def told(self, change: Change, *, removals_after: int | None) -> bytes | None:
        """The message of a change, serialised, where the filter lets it through.

        Only what changed after the revision `removals_after` can have left since it was sent; None: nothing can.
        """
        wanted, job = self.job_filter, change.job
        if self.project_uid is not None and change.project_uid != self.project_uid:
            return None
        if job is not None and wanted.matches(job):
            return change.as_job()
        if removals_after is None or change.revision <= removals_after:
            return None
        could_match = wanted.could_match(job) if job is not None else not wanted.uids or change.uid in wanted.uids
        return change.as_removed() if could_match else None


class Window:
    """The changes of all jobs above `floor` and up to `head`, in their order; and who has moved on since it changed.

    They are kept: so many, and so many bytes. Who is further behind reads the database.
    """

    def __init__(self, revision: int, *, changes_max: int, bytes_max: int) -> None:
        self.floor = self.head = revision
        self._changes_max = changes_max
        self._bytes_max = bytes_max
        self._changes: list[Change] = []
        self._changes_bytes = 0
        self.moves = 0
        """Times that a job has moved on."""
        self._moved: dict[str, tuple[int, Change | None]] = {}
        """Of each job, by uid, the last time, in their order; the change is None where it had to go."""
        self._moved_bytes = 0

    def add(self, changes: Sequence[Change], *, head: int) -> None:
        """What has changed since, up to `head`."""
        self._changes += changes
        self.head = head
        for change in changes:
            self._changes_bytes += change.size_bytes
            self._forget_move(change.uid)  # how far it is comes with it
        surplus = 0
        while len(self._changes) - surplus > self._changes_max or self._changes_bytes > self._bytes_max // 2:
            self._changes_bytes -= self._changes[surplus].size_bytes
            self.floor = self._changes[surplus].revision
            surplus += 1
        del self._changes[:surplus]

    def move(self, changes: Iterable[Change]) -> None:
        """These jobs are further than before."""
        for change in changes:
            self.moves += 1
            self._forget_move(change.uid)
            self._moved[change.uid] = (self.moves, change)
            self._moved_bytes += change.size_bytes
        for uid, (move, oldest) in self._moved.items():
            if self._moved_bytes <= self._bytes_max // 2:
                return
            if oldest is not None:
                self._moved[uid] = (move, None)
                self._moved_bytes -= oldest.size_bytes

    def _forget_move(self, uid: str) -> None:
        _, change = self._moved.pop(uid, (0, None))
        self._moved_bytes -= change.size_bytes if change is not None else 0

    def moved_after(self, moves: int) -> list[tuple[int, str, Change | None]]:
        """Who has moved on since there were so many moves: which move it was, the job's uid, and how it is now."""
        later = takewhile(lambda each: each[1][0] > moves, reversed(self._moved.items()))
        return [(move, uid, change) for uid, (move, change) in later][::-1]

    def after(self, revision: int) -> list[Change]:
        """Each job that changed after the revision once, as it was last."""
        found = self._changes[bisect_right(self._changes, revision, key=lambda change: change.revision) :]
        last: Mapping[str, Change] = {change.uid: change for change in found}
        return [change for change in found if last[change.uid] is change]
