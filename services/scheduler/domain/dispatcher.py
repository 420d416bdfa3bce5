"""Who gets what: runners that wait, projects that wait, and the next job for the next of them. In memory, no SQL.

What is here mirrors the database: registered runners and what they offer, idle ones, and of each project the first job
of each kind of needs. It is rebuilt at the start and told of each change; whoever tells it inside a transaction takes
back by `undo` what did not come to be, so what it holds is what was committed. It proposes; the transaction checks and
writes, and says what became of it.

Kinds of needs are held against what runners offer, never against single runners or jobs: a question costs as much as
there are kinds that some idle runner can serve, and outside a transaction there are none, but those of jobs that keep
away from the runners that are idle.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from services.scheduler.domain.job import Job
from services.scheduler.domain.placement import Capabilities, Gpu, Needs, fits, needs_from_key, size

FITS_CACHE_MAX = 65_536
Offer: TypeAlias = tuple[tuple[Gpu, ...], frozenset[str], frozenset[str]]
"""What of a runner decides whether it can serve a job: GPUs, tasks and extras."""
Turn: TypeAlias = tuple[int, str]
"""A project's place: the revision at which it was served last, and its uid. The lowest goes first."""


def offer_of(capabilities: Capabilities) -> Offer:
    """What the runner offers."""
    return capabilities.gpus, capabilities.tasks, capabilities.extras


class ReadyJob(Struct, frozen=True, kw_only=True):
    """The first ready job of a project and kind. `kind` is the key of its needs."""

    uid: str
    kind: str
    priority: int
    sequence: int
    overtaken: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """Its place within its project; the lowest goes first."""
        return -self.priority, self.sequence


def ready_job(job: Job) -> ReadyJob:
    """The job as it stands in the queue."""
    return ReadyJob(
        uid=job.uid, kind=job.needs.key, priority=job.priority, sequence=job.sequence, overtaken=job.overtaken
    )


class Proposal(Struct, frozen=True, kw_only=True):
    """Give this job of this project to this runner. `overtaken`: the uid of the job that it goes before, or empty."""

    project_uid: str
    job: ReadyJob
    runner_id: str
    overtaken: str = ""


class _Runner(Struct, frozen=True, kw_only=True):
    """A registered runner. `since`: its place among those that are idle with the same offer; None while it is not."""

    offer: Offer
    since: int | None = None


class _Project(Struct, frozen=True, kw_only=True):
    served: int
    busy: bool = False
    firsts: Mapping[str, ReadyJob] = field(default_factory=dict)

    @property
    def head(self) -> ReadyJob | None:
        """The job that goes first, whatever it needs."""
        return min(self.firsts.values(), key=lambda job: job.place, default=None)


class Dispatcher:
    """`overtakes_max`: after so many jobs that went before it a project's slot is kept for its first job, if some
    registered runner could serve that at all."""

    def __init__(self, *, overtakes_max: int) -> None:
        self._overtakes_max = overtakes_max
        self._count = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything: it is told anew."""
        self._runners: dict[str, _Runner] = {}
        self._projects: dict[str, _Project] = {}
        self._undo: list[Callable[[], None]] = []
        # What follows is made of the above, and kept for speed.
        self._registered: dict[Offer, set[str]] = {}
        self._idle: dict[Offer, list[tuple[int, str]]] = {}
        self._waiting: dict[str, list[Turn]] = {}
        self._fitting: dict[Offer, set[str]] = {}
        """Of each offer the kinds that wait and that it fits."""
        self._listed: dict[str, tuple[Turn, frozenset[str]]] = {}
        """Under which turn and kinds a project is in `_waiting`."""
        self._kept_away: dict[str, frozenset[str]] = {}
        """Of each kind that was asked about the runners that it keeps away from."""
        self._overtaken: set[str] = set()
        """Projects whose first job was overtaken as often as may be."""

    # Runners

    def register(self, runner_id: str, capabilities: Capabilities) -> None:
        """The runner is there and takes jobs. It is idle only once it waits; what it offers may have changed."""
        before, offer = self._runners.get(runner_id), offer_of(capabilities)
        if before is None or before.offer != offer:
            self._set_runner(runner_id, _Runner(offer=offer))

    def unregister(self, runner_id: str) -> None:
        """The runner is lost, or takes no jobs."""
        if runner_id in self._runners:
            self._set_runner(runner_id, None)

    def wait(self, runner_id: str) -> None:
        """The runner, which is registered, is idle, the last of those that are."""
        self._count += 1
        self._set_runner(runner_id, replace(self._runners[runner_id], since=self._count))

    def leave(self, runner_id: str) -> None:
        """The runner is not idle any more."""
        runner = self._runners.get(runner_id)
        if runner is not None and runner.since is not None:
            self._set_runner(runner_id, replace(runner, since=None))

    def is_registered(self, runner_id: str) -> bool:
        """Whether the runner is there and takes jobs."""
        return runner_id in self._runners

    def is_idle(self, runner_id: str) -> bool:
        """Whether the runner waits for a job."""
        runner = self._runners.get(runner_id)
        return runner is not None and runner.since is not None

    # Projects

    def enter(self, project_uid: str, job: ReadyJob, *, served: int) -> None:
        """A job has become ready. `served`: its project's, where nothing is known of that yet."""
        project = self._projects.get(project_uid) or _Project(served=served)
        first = project.firsts.get(job.kind)
        if first is None or job.place < first.place:
            self._set_project(project_uid, replace(project, firsts={**project.firsts, job.kind: job}))

    def is_first(self, project_uid: str, kind: str, job_uid: str) -> bool:
        """Whether the job is the first of its kind: when it goes, `advance` must say what comes after it."""
        project = self._projects.get(project_uid)
        first = project.firsts.get(kind) if project is not None else None
        return first is not None and first.uid == job_uid

    def advance(self, project_uid: str, kind: str, job: ReadyJob | None) -> None:
        """The first job of the kind is another now; None where there is none."""
        project = self._projects.get(project_uid)
        if project is None:
            return
        firsts = {key: value for key, value in project.firsts.items() if key != kind}
        if job is not None:
            firsts[kind] = job
        self._set_project(project_uid, replace(project, firsts=firsts))

    def served(self, project_uid: str) -> int | None:
        """When the project was served last; None where nothing is known of it, which then is not busy."""
        project = self._projects.get(project_uid)
        return project.served if project is not None else None

    def occupy(self, project_uid: str, *, served: int) -> None:
        """The project has an active attempt."""
        before = self._projects.get(project_uid) or _Project(served=served)
        self._set_project(project_uid, replace(before, busy=True, served=served))

    def vacate(self, project_uid: str, *, served: int) -> None:
        """The project has no active attempt."""
        before = self._projects.get(project_uid) or _Project(served=served)
        self._set_project(project_uid, replace(before, busy=False, served=served))

    def drop(self, project_uid: str) -> None:
        """The project is deleted, or will be told anew."""
        if project_uid in self._projects:
            self._set_project(project_uid, None)

    # What goes where

    def propose(self) -> Proposal | None:
        """The next job for the next runner; None where no idle runner and no ready job fit.

        Whoever carries it out says so by `occupy`, `leave` and `advance`, before it asks again.
        """
        turn = min((turn for turn in self._first_turns()), default=None)
        if turn is None:
            return None
        project_uid = turn[1]
        project, kinds = self._projects[project_uid], self._listed[project_uid][1]
        servable = [job for kind, job in project.firsts.items() if kind in kinds and self._choice(kind) is not None]
        job, head = min(servable, key=lambda each: each.place), project.head
        runner_id = self._choice(job.kind)
        assert head is not None, "a project with a first job of a kind has a first job"
        assert runner_id is not None, "the job is servable"
        overtaken = head.uid if head.uid != job.uid else ""
        return Proposal(project_uid=project_uid, job=job, runner_id=runner_id, overtaken=overtaken)

    def overtake(self, project_uid: str) -> None:
        """Another job of the project has gone before its first one."""
        project = self._projects[project_uid]
        head = project.head
        assert head is not None, "it was overtaken"
        head = replace(head, overtaken=head.overtaken + 1)
        self._set_project(project_uid, replace(project, firsts={**project.firsts, head.kind: head}))

    # Taking back

    def mark(self) -> int:
        """How things are now, for `undo`."""
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Take back what was told since the mark."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def keep(self) -> None:
        """What was told is committed."""
        self._undo.clear()

    # How it is kept

    def _first_turns(self) -> Iterator[Turn]:
        """Of each kind that an idle runner can serve the project whose turn it is."""
        seen: set[str] = set()
        for offer, idle in self._idle.items():
            for kind in self._fitting[offer] - seen:
                avoided = self._avoided(kind)
                if len(idle) > len(avoided) or any(runner_id not in avoided for _, runner_id in idle):
                    seen.add(kind)
                    yield self._waiting[kind][0]

    def _choice(self, kind: str) -> str | None:
        """The smallest idle runner that can serve the kind, of equal ones the one that is idle longest."""
        avoided = self._avoided(kind)
        found: tuple[tuple[int, int], int, str] | None = None
        for offer, idle in self._idle.items():
            if kind not in self._fitting[offer]:
                continue
            first = next(((since, runner_id) for since, runner_id in idle if runner_id not in avoided), None)
            if first is not None and (found is None or (_size(offer), *first) < found):
                found = (_size(offer), *first)
        return found[2] if found is not None else None

    def _avoided(self, kind: str) -> frozenset[str]:
        """The runners that jobs of this kind keep away from: none where no other one could serve them."""
        found = self._kept_away.get(kind)
        if found is None:
            found = avoided = frozenset(_needs(kind).avoided)
            if not any(_fits(kind, offer) and not each <= avoided for offer, each in self._registered.items()):
                found = frozenset()
            self._kept_away[kind] = found
        return found

    def _set_runner(self, runner_id: str, after: _Runner | None) -> None:
        before = self._runners.get(runner_id)
        self._undo.append(lambda: self._place_runner(runner_id, before))
        self._place_runner(runner_id, after)

    def _set_project(self, project_uid: str, after: _Project | None) -> None:
        before = self._projects.get(project_uid)
        self._undo.append(lambda: self._place_project(project_uid, before))
        self._place_project(project_uid, after)

    def _place_runner(self, runner_id: str, after: _Runner | None) -> None:
        before = self._runners.pop(runner_id, None)
        if before is not None and before.since is not None:
            idle = self._idle[before.offer]
            del idle[bisect_left(idle, (before.since, runner_id))]
            if not idle:
                del self._idle[before.offer]
        if after is not None:
            self._runners[runner_id] = after
        old, new = (each.offer if each is not None else None for each in (before, after))
        if old != new:
            self._move_offer(runner_id, old, new)
        if after is not None and after.since is not None:
            insort(self._idle.setdefault(after.offer, []), (after.since, runner_id))

    def _move_offer(self, runner_id: str, old: Offer | None, new: Offer | None) -> None:
        is_change = False
        self._kept_away.clear()
        if old is not None:
            self._registered[old].discard(runner_id)
            if not self._registered[old]:
                del self._registered[old], self._fitting[old]
                is_change = True
        if new is not None:
            if new not in self._registered:
                self._registered[new] = set()
                self._fitting[new] = {kind for kind in self._waiting if _fits(kind, new)}
                is_change = True
            self._registered[new].add(runner_id)
        if is_change:
            # For whom a slot is kept depends on whether anybody could serve it.
            for project_uid in list(self._overtaken):
                self._list(project_uid, self._projects[project_uid])

    def _place_project(self, project_uid: str, after: _Project | None) -> None:
        self._projects.pop(project_uid, None)
        self._overtaken.discard(project_uid)
        if after is not None and (after.busy or after.firsts):
            self._projects[project_uid] = after
            head = after.head
            if head is not None and head.overtaken >= self._overtakes_max:
                self._overtaken.add(project_uid)
        self._list(project_uid, self._projects.get(project_uid))

    def _list(self, project_uid: str, project: _Project | None) -> None:
        """Put the project where runners find it: under each kind of job that may be given out now."""
        turn = (project.served, project_uid) if project is not None else (0, project_uid)
        kinds = self._offered(project) if project is not None else frozenset()
        old_turn, old_kinds = self._listed.pop(project_uid, (turn, frozenset[str]()))
        moved = old_turn != turn
        for kind in old_kinds if moved else old_kinds - kinds:
            turns = self._waiting[kind]
            del turns[bisect_left(turns, old_turn)]
            if not turns:
                self._forget_kind(kind)
        for kind in kinds if moved else kinds - old_kinds:
            if kind not in self._waiting:
                self._learn_kind(kind)
            insort(self._waiting[kind], turn)
        if kinds:
            self._listed[project_uid] = (turn, kinds)

    def _offered(self, project: _Project) -> frozenset[str]:
        if project.busy or not project.firsts:
            return frozenset()
        head = project.head
        assert head is not None, "it has jobs"
        if head.overtaken >= self._overtakes_max and any(_fits(head.kind, offer) for offer in self._registered):
            return frozenset((head.kind,))
        return frozenset(project.firsts)

    def _learn_kind(self, kind: str) -> None:
        self._waiting[kind] = []
        for offer, kinds in self._fitting.items():
            if _fits(kind, offer):
                kinds.add(kind)

    def _forget_kind(self, kind: str) -> None:
        del self._waiting[kind]
        self._kept_away.pop(kind, None)
        for kinds in self._fitting.values():
            kinds.discard(kind)


@lru_cache(maxsize=FITS_CACHE_MAX)
def _fits(kind: str, offer: Offer) -> bool:
    return fits(_needs(kind), _capabilities(offer))


@lru_cache(maxsize=FITS_CACHE_MAX)
def _needs(kind: str) -> Needs:
    return needs_from_key(kind)


@lru_cache(maxsize=FITS_CACHE_MAX)
def _size(offer: Offer) -> tuple[int, int]:
    return size(_capabilities(offer))


def _capabilities(offer: Offer) -> Capabilities:
    gpus, tasks, extras = offer
    return Capabilities(gpus=gpus, tasks=tasks, extras=extras)
