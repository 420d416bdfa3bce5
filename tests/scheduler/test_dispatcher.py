"""Who gets what, without a database: whatever comes in whatever order, beside a model that looks at everything."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from services.scheduler.domain.dispatcher import Dispatcher, ReadyJob
from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs, fits, needs_from_key, size

OVERTAKES_MAX = 2
TASKS = ("A", "B", "C", "D", "E", "F", "G", "H")
needs = st.builds(
    Needs,
    gpus=st.integers(0, 3),
    gpu_memory_bytes=st.integers(0, 4).map(lambda gib: gib * GIB),
    tasks=st.frozensets(st.sampled_from(TASKS), max_size=3),
    avoided=st.lists(st.sampled_from(["r0", "r1", "r2"]), max_size=2, unique=True).map(tuple),
)
capabilities = st.builds(
    Capabilities,
    gpus=st.lists(st.builds(Gpu, model=st.just("x"), memory_bytes=st.integers(0, 4).map(lambda g: g * GIB))).map(
        lambda gpus: tuple(gpus[:3])
    ),
    tasks=st.frozensets(st.sampled_from(TASKS)),
)
runner_ids = st.sampled_from([f"r{number}" for number in range(6)])
project_uids = st.sampled_from([f"p{number}" for number in range(5)])


@dataclass
class World:
    """A dispatcher, and the same things as plain lists: all that is asked is answered by looking at all of them."""

    dispatcher: Dispatcher = field(default_factory=lambda: Dispatcher(overtakes_max=OVERTAKES_MAX))
    jobs: dict[str, list[ReadyJob]] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    runners: dict[str, Capabilities] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    revision: itertools.count = field(default_factory=lambda: itertools.count(1))

    def first(self, project: str, kind: str) -> ReadyJob | None:
        of_kind = [job for job in self.jobs.get(project, []) if job.kind == kind]
        return min(of_kind, key=lambda job: job.place, default=None)

    def submit(self, project: str, wanted: Needs, priority: int) -> None:
        number = next(self.revision)
        job = ReadyJob(uid=f"j{number}", kind=wanted.key, priority=priority, sequence=number)
        self.jobs.setdefault(project, []).append(job)
        self.dispatcher.enter(project, job, served=self.served.get(project, 0))

    def remove(self, project: str, job: ReadyJob) -> None:
        self.jobs[project].remove(job)
        if self.dispatcher.is_first(project, job.kind, job.uid):
            self.dispatcher.advance(project, job.kind, self.first(project, job.kind))

    def join(self, runner: str, has: Capabilities) -> None:
        self.leave(runner)
        self.runners[runner] = has
        self.dispatcher.register(runner, has)

    def wait(self, runner: str) -> None:
        if runner in self.runners and runner not in self.active.values() and runner not in self.idle:
            self.idle.append(runner)
            self.dispatcher.wait(runner)

    def leave(self, runner: str) -> None:
        self.dispatcher.leave(runner)
        self.idle = [each for each in self.idle if each != runner]

    def lose(self, runner: str) -> None:
        self.leave(runner)
        self.runners.pop(runner, None)
        self.dispatcher.unregister(runner)

    def end(self, project: str) -> None:
        if self.active.pop(project, None) is not None:
            self.dispatcher.vacate(project, served=self.served[project])

    def place(self) -> list[tuple[str, str]]:
        """Carry out what is proposed, as the store does; each proposal is held against the model first."""
        given = []
        while (proposal := self.dispatcher.propose()) is not None:
            project, job = proposal.project_uid, proposal.job
            assert job in self.jobs[project]
            assert project == min(self.servable(), key=lambda each: (self.served.get(each, 0), each))
            assert proposal.runner_id in self.able(job.kind)
            smallest = min(self.able(job.kind), key=lambda each: (size(self.runners[each]), self.idle.index(each)))
            assert proposal.runner_id == smallest
            if proposal.overtaken:
                head = self.head(project)
                assert proposal.overtaken == head.uid
                self.jobs[project].remove(head)
                self.jobs[project].append(
                    replace(head, overtaken=head.overtaken + 1),
                )
                self.dispatcher.overtake(project)
            self.remove(project, next(each for each in self.jobs[project] if each.uid == job.uid))
            self.served[project] = next(self.revision)
            self.active[project] = proposal.runner_id
            self.dispatcher.occupy(project, served=self.served[project])
            self.leave(proposal.runner_id)
            given.append((project, proposal.runner_id))
        return given

    def head(self, project: str) -> ReadyJob:
        return min(self.jobs[project], key=lambda job: job.place)

    def able(self, kind: str) -> list[str]:
        """Idle runners that may have a job of this kind."""
        wanted = needs_from_key(kind)
        registered = {each for each, has in self.runners.items() if fits(wanted, has)}
        kept_away = set(wanted.avoided) if registered - set(wanted.avoided) else set()
        return [each for each in self.idle if each in registered and each not in kept_away]

    def servable(self) -> list[str]:
        return [project for project in self.jobs if self.candidates(project)]

    def candidates(self, project: str) -> list[ReadyJob]:
        """The jobs of a project that an idle runner could have now."""
        if project in self.active or not self.jobs[project]:
            return []
        head, jobs = self.head(project), self.jobs[project]
        if head.overtaken >= OVERTAKES_MAX and any(fits(needs_from_key(head.kind), c) for c in self.runners.values()):
            jobs = [job for job in jobs if job.kind == head.kind]
        return [job for job in jobs if self.able(job.kind)]

    def state(self) -> dict:
        """All that the dispatcher holds, but for the order of equal things."""
        names = ("_runners", "_projects", "_registered", "_idle", "_waiting", "_fitting", "_listed", "_overtaken")
        return {name: getattr(self.dispatcher, name) for name in names}


steps = st.one_of(
    st.tuples(st.just("submit"), project_uids, needs, st.integers(-1, 1)),
    st.tuples(st.just("join"), runner_ids, capabilities),
    st.tuples(st.just("wait"), runner_ids),
    st.tuples(st.just("leave"), runner_ids),
    st.tuples(st.just("lose"), runner_ids),
    st.tuples(st.just("end"), project_uids),
    st.tuples(st.just("stop"), project_uids, st.integers(0, 5)),
)


def take(world: World, step: tuple) -> None:
    what, *rest = step
    if what == "stop":
        project, number = rest
        jobs = world.jobs.get(project, [])
        if jobs:
            world.remove(project, jobs[number % len(jobs)])
    else:
        getattr(world, what)(*rest)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(steps, min_size=1, max_size=6), max_size=25))
def test_after_a_commit_no_idle_runner_and_ready_job_that_it_fits_coexist(transactions):
    world = World()
    for transaction in transactions:
        for step in transaction:
            take(world, step)
        world.place()
        world.dispatcher.keep()
        assert not world.servable()


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=30), st.lists(steps, max_size=15))
def test_what_is_rolled_back_leaves_nothing_behind(committed, rolled_back):
    world, twin = World(), World()
    for step in committed:
        take(world, step)
        take(twin, step)
    world.place()
    twin.place()
    world.dispatcher.keep()
    for step in rolled_back:
        take(world, step)
    world.place()
    world.dispatcher.undo()
    assert world.state() == twin.state()


def many_kinds(number: int) -> list[Needs]:
    """Kinds that no runner of these tests can serve, and that sort before the one that they can."""
    return [Needs(gpus=0, tasks=frozenset({f"A{kind:04}"})) for kind in range(number)]


def test_hundreds_of_kinds_that_nobody_can_serve_hide_no_job():
    world = World()
    for number, wanted in enumerate(many_kinds(500)):
        world.submit(f"other-{number % 7}", wanted, 0)
    world.submit("mine", Needs(tasks=frozenset({"Z"})), 0)
    world.join("r0", Capabilities(tasks=frozenset({"Z"})))
    world.wait("r0")
    assert world.place() == [("mine", "r0")]


def test_hundreds_of_kinds_within_one_project_hide_no_job():
    world = World()
    for wanted in many_kinds(500):
        world.submit("mine", wanted, 0)
    world.submit("mine", Needs(tasks=frozenset({"Z"})), 0)
    world.join("r0", Capabilities(tasks=frozenset({"Z"})))
    world.wait("r0")
    assert world.place() == [("mine", "r0")]


def test_project_with_ten_thousand_jobs_delays_a_project_with_one_by_at_most_one_round():
    world = World()
    wanted = Needs(tasks=frozenset({"Z"}))
    world.join("r0", Capabilities(tasks=frozenset({"Z"})))
    for _ in range(10_000):
        world.submit("many", wanted, 0)
    world.wait("r0")
    served = world.place()
    world.submit("single", wanted, 0)
    for _ in range(3):
        world.end(served[-1][0])
        world.wait("r0")
        served += world.place()
    assert [project for project, _ in served] == ["many", "single", "many", "many"]


def test_every_waiting_project_is_served_once_a_round():
    world = World()
    wanted = Needs(tasks=frozenset({"Z"}))
    for number in range(20):
        for _ in range(1 + number % 4):
            world.submit(f"p{number:02}", wanted, number % 3)
    world.join("r0", Capabilities(tasks=frozenset({"Z"})))
    rounds: list[str] = []
    while any(world.jobs.values()):
        world.wait("r0")
        [(project, _)] = world.place()
        rounds.append(project)
        world.end(project)
    assert len(set(rounds[:20])) == 20
    assert len(set(rounds[20:35])) == 15


def test_kept_slot_is_let_go_of_when_nobody_could_serve_its_job_any_more():
    world = World()
    small, large = Needs(tasks=frozenset({"Z"})), Needs(gpus=1, tasks=frozenset({"Z"}))
    world.join("r0", Capabilities(tasks=frozenset({"Z"})))
    world.join("r1", Capabilities(tasks=frozenset({"Z"}), gpus=(Gpu(model="x", memory_bytes=GIB),)))
    world.submit("mine", large, 0)
    for _ in range(OVERTAKES_MAX + 1):
        world.submit("mine", small, 0)
    for _ in range(OVERTAKES_MAX):
        world.wait("r0")
        assert world.place() == [("mine", "r0")]
        world.end("mine")
    world.wait("r0")
    assert world.place() == []  # the slot is kept for the large job
    world.lose("r1")
    assert world.place() == [("mine", "r0")]


def test_job_goes_back_to_the_runner_that_failed_with_it_where_there_is_no_other():
    world = World()
    wanted = Needs(tasks=frozenset({"Z"}), avoided=("r0",))
    has = Capabilities(tasks=frozenset({"Z"}))
    world.join("r0", has)
    world.join("r1", has)
    world.submit("mine", wanted, 0)
    world.wait("r0")
    assert world.place() == []
    world.lose("r1")
    assert world.place() == [("mine", "r0")]
