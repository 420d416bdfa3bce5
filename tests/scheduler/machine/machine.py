"""The scheduler through its desk, driven at random: after each step the promises are checked against all rows.

Runners have a memory of their own and calls that wait; messages come late, twice or never, several are served in one
transaction, transactions fail or their answer is lost, and either side dies and comes back.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from services.chassis.errors import Aborted, AlreadyExists, FailedPrecondition, Unavailable
from services.scheduler.domain.job import (
    FINAL,
    AttemptOutcome,
    AttemptPhase,
    JobReason,
    JobState,
    ResumeSource,
    StopMode,
)
from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import JobView
from tests.scheduler.machine.agent import Agent
from tests.scheduler.machine.installation import COMMITS, Installation
from tests.scheduler.machine.promises import check_calls, check_dispatcher, check_events, check_jobs
from tests.scheduler.stores import checkpoint

PROJECTS = ("a", "b", "c")
LARGE = Gpu(model="large", memory_bytes=80 * GIB)
CAPABILITIES = {
    "one": Capabilities(tasks=frozenset({"A"})),
    "two": Capabilities(tasks=frozenset({"A", "B"}), extras=frozenset({"timm"})),
    "three": Capabilities(tasks=frozenset({"A", "B", "C"}), gpus=(LARGE,)),
    "four": Capabilities(tasks=frozenset({"A"}), gpus=(LARGE, LARGE)),
}
NEEDS = (
    *(Needs(tasks=frozenset(tasks)) for tasks in ("A", "B", "C", "AB", "Z", "YZ")),
    Needs(tasks=frozenset("A"), extras=frozenset({"timm"})),
    *(Needs(gpus=gpus, gpu_memory_bytes=40 * GIB, tasks=frozenset("A")) for gpus in (1, 2, 3)),
)
FAULTS = (JobReason.RUNNER_FAULT, JobReason.STORE_UNAVAILABLE, JobReason.TRAINER_ERROR, JobReason.INTERNAL)
ENDS = tuple(outcome for outcome in AttemptOutcome if outcome is not AttemptOutcome.LOST)
runners, projects, needs = st.sampled_from(sorted(CAPABILITIES)), st.sampled_from(PROJECTS), st.sampled_from(NEEDS)
waits = st.sampled_from([0.0, 8.0, 8.0])
commits = st.sampled_from(COMMITS)
NOBODY = Request(request_id="", digest=b"")
STOP = {"grace_seconds": 60.0, "margin_seconds": 10.0, "reason": "enough"}


class SchedulerMachine(RuleBasedStateMachine):
    """Four runners, three projects, and whatever happens to them."""

    new_database = None
    """Makes a new, migrated database and returns its address."""

    @initialize()
    def begin(self) -> None:
        self.installation = Installation(type(self).new_database())
        self.agents = {each: Agent(runner_id=each, capabilities=of) for each, of in CAPABILITIES.items()}
        self.submitted = {}
        """The project of each job that is there, by uid."""
        self.stops = set()
        self.final = {}
        self.requests = {}
        for project_id in PROJECTS:
            self.run(self.stores.create_project(project_id))

    @property
    def stores(self):
        return self.installation.stores

    def run(self, coroutine):
        return self.installation.run(coroutine)

    def look(self, question):
        return self.installation.look(question)

    def send(self, runner_id: str, *, wait_seconds: float) -> None:
        agent = self.agents[runner_id]
        agent.send(self.installation.desk.synchronize, self.installation.start, wait_seconds=wait_seconds)

    def hear(self, *, faults: bool = False) -> None:
        """Everything comes to rest, and the runners act on the answers that are there."""
        self.installation.settle()
        for agent in self.agents.values():
            agent.hear(faults=faults)

    def recover(self) -> None:
        """A transaction went wrong: the next one, a second later at most, begins with what is on disk."""
        self.hear(faults=True)
        self.installation.pass_seconds(1.0)
        self.hear(faults=True)

    def jobs(self) -> dict[str, JobView]:
        views = self.look(self.stores.jobs.batch([], sorted(self.submitted)))
        return {view.job.uid: view for view in views}

    def call_and_hear(self, runner_id: str, *, wait_seconds: float) -> None:
        """One runner calls, and nobody else does: a lost attempt that nobody has is taken up again."""
        agent, before = self.agents[runner_id], self.jobs()
        self.send(runner_id, wait_seconds=wait_seconds)
        self.hear()
        left = agent.superseded
        if agent.call is not None or left is None or left.key.job_uid not in before:
            return
        job, *others = sorted(before.values(), key=lambda view: view.job.uid != left.key.job_uid)
        lost = job.attempts[-1]
        waits = job.job.state is JobState.QUEUED and job.job.epoch == left.key.epoch
        is_mine = lost.outcome is AttemptOutcome.LOST and lost.session == agent.session
        taken = [each for each in others if each.job.project_uid == job.job.project_uid and is_active(each)]
        # Who comes with an end to tell may have vacated the slot that somebody else took in the same transaction.
        assert taken or not (waits and is_mine), "a lost attempt that nobody has was not taken up again"

    # Callers

    @rule(project_id=projects, request=st.integers(0, 6), priority=st.integers(-1, 1), wanted=needs)
    def submit(self, project_id: str, request: int, priority: int, wanted: Needs) -> None:
        body = f"{project_id}/{priority}/{wanted.key}".encode()
        asked = {"request_id": f"r{request}", "digest": body, "priority": priority, "needs": wanted}
        submission = self.stores.submit(project_id, **asked)
        known = self.requests.get(request)
        if known is not None and known[0] != body:
            with pytest.raises(AlreadyExists):
                self.run(submission)
            return
        uid = self.run(submission)
        assert known is None or known[1] == uid, "a request id had two effects"
        if known is None:
            self.requests[request] = (body, uid)
            self.submitted[uid] = project_id

    @rule(project_id=projects, wanted=needs)
    def submit_without_request_id(self, project_id: str, wanted: Needs) -> None:
        self.submitted[self.run(self.stores.submit(project_id, needs=wanted))] = project_id

    @rule(project_id=projects, wanted=needs, commit=commits)
    def submit_again_after_a_commit_went_wrong(self, project_id: str, wanted: Needs, commit: str) -> None:
        """It is there once, whatever became of the first."""
        asked = {"needs": wanted, "request_id": self.stores.new_id()}
        with self.installation.commit(commit), pytest.raises(Unavailable):
            self.run(self.stores.submit(project_id, **asked))
        self.recover()
        self.submitted[self.run(self.stores.submit(project_id, **asked))] = project_id

    @rule(project_id=projects)
    def delete_project(self, project_id: str) -> None:
        """Refused while a job of it lives; else it is gone, and a new one of its name begins with nothing."""
        mine = {uid for uid, of in self.submitted.items() if of == project_id}
        deletion = self.stores.delete_project(project_id)
        if not mine <= self.final.keys():
            with pytest.raises(FailedPrecondition):
                self.run(deletion)
            return
        self.run(deletion)
        assert self.look(self.stores.jobs.batch([], sorted(mine))) == []
        for uid in mine:
            del self.submitted[uid], self.final[uid]
            self.stops.discard(uid)
        self.run(self.stores.create_project(project_id))

    @precondition(lambda self: self.final)
    @rule(data=st.data())
    def delete_job(self, data) -> None:
        """Refused while a job that goes on from it lives; else nothing is left of it."""
        uid = data.draw(st.sampled_from(sorted(self.final)))
        living = [view.job for view in self.jobs().values() if view.job.state not in FINAL]
        sources = {job.source.key.job_uid for job in living if job.source is not None}
        deletion = self.stores.delete_job(uid)
        if uid in sources:
            with pytest.raises(FailedPrecondition):
                self.run(deletion)
            return
        self.run(deletion)
        assert self.look(self.stores.jobs.batch([], [uid])) == []
        del self.submitted[uid], self.final[uid]
        self.stops.discard(uid)

    @precondition(lambda self: self.final)
    @rule(data=st.data())
    def resume(self, data) -> None:
        uid = data.draw(st.sampled_from(sorted(self.final)))
        job = self.look(self.stores.job(uid)).job
        if job.last_checkpoint is None:
            return
        source = ResumeSource(job_name=job.name, checkpoint_name=f"{job.name}/x", key=job.last_checkpoint)
        again = self.run(self.stores.submit(job.project_id, source=source, needs=NEEDS[0]))
        self.submitted[again] = job.project_id

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), mode=st.sampled_from([StopMode.CHECKPOINT, StopMode.IMMEDIATE]))
    def stop(self, data, mode: StopMode) -> None:
        """Whoever works on it and waits is told at once."""
        uid = data.draw(st.sampled_from(sorted(self.submitted)))
        self.run(self.stop_of(uid, mode))
        self.stops.add(uid)

    def stop_of(self, uid: str, mode: StopMode):
        name = {"project_id": self.submitted[uid], "job_id": f"job-{uid[-12:]}"}
        return self.stores.jobs.stop(NOBODY, lambda _: b"", mode=mode, **name, **STOP)

    @rule(runner_id=runners)
    def drain(self, runner_id: str) -> None:
        if self.look(self.stores.runners.standing(runner_id)) is not None:
            self.run(self.stores.runners.drain(NOBODY, lambda _: b"", runner_id=runner_id))

    @rule(runner_id=runners)
    def undrain(self, runner_id: str) -> None:
        if self.look(self.stores.runners.standing(runner_id)) is not None:
            self.run(self.stores.runners.undrain(NOBODY, lambda _: b"", runner_id=runner_id))

    # Runners

    @rule(runner_id=runners, wait_seconds=waits)
    def call(self, runner_id: str, wait_seconds: float) -> None:
        """The runner calls as it is: idle, or at work."""
        self.call_and_hear(runner_id, wait_seconds=wait_seconds)

    @rule(runner_id=runners, phase=st.sampled_from(AttemptPhase), iteration=st.integers(0, 50), wait_seconds=waits)
    def work(self, runner_id: str, phase: AttemptPhase, iteration: int, wait_seconds: float) -> None:
        held = self.agents[runner_id].held
        if held is None:
            return
        uid, epoch = held.key.job_uid, held.key.epoch
        checkpoints = (checkpoint(uid, epoch, iteration),) if iteration % 10 == 9 else ()
        self.agents[runner_id].work(phase, iteration, checkpoints)
        self.call_and_hear(runner_id, wait_seconds=wait_seconds)

    @rule(runner_id=runners, outcome=st.sampled_from(ENDS), fault=st.sampled_from(FAULTS), wait_seconds=waits)
    def attempt_ends(self, runner_id: str, outcome: AttemptOutcome, fault: JobReason, wait_seconds: float) -> None:
        agent = self.agents[runner_id]
        if agent.held is None:
            return
        reason = fault if outcome is AttemptOutcome.FAILED else JobReason.UNSPECIFIED
        agent.end(outcome=outcome, reason=reason)
        self.send(runner_id, wait_seconds=wait_seconds)
        self.hear()
        assert agent.closed == (), "an end that was told was not acknowledged"

    @rule(runner_id=runners)
    def answer_is_lost(self, runner_id: str) -> None:
        """The runner calls, and never learns what it was told."""
        self.send(runner_id, wait_seconds=0.0)
        self.installation.settle()
        self.agents[runner_id].cut()
        self.hear()

    @rule(runner_id=runners)
    def connection_is_cut(self, runner_id: str) -> None:
        self.agents[runner_id].cut()
        self.installation.settle()

    @rule(runner_id=runners, commit=commits, wait_seconds=waits)
    def call_whose_commit_goes_wrong(self, runner_id: str, commit: str, wait_seconds: float) -> None:
        """Whatever it would have heard, it has heard nothing; the next call says the same again."""
        with self.installation.commit(commit):
            self.send(runner_id, wait_seconds=wait_seconds)
            self.installation.settle()
        self.recover()

    @rule(runner_id=runners, cut=st.booleans(), wait_seconds=waits)
    def agent_restarts(self, runner_id: str, cut: bool, wait_seconds: float) -> None:
        """The trainer dies with its agent; the new session holds nothing. What has ended lies on the disk."""
        self.agents[runner_id].restart(cut=cut)
        self.send(runner_id, wait_seconds=wait_seconds)

    @rule(runner_id=runners)
    def agent_is_asked_to_end(self, runner_id: str) -> None:
        """It takes nothing new, and hands back what it has, until it was started again."""
        self.agents[runner_id].draining = True
        self.send(runner_id, wait_seconds=8.0)

    @rule(runner_id=runners, problem=st.sampled_from(["", "the disk is full"]))
    def runner_changes(self, runner_id: str, problem: str) -> None:
        agent = self.agents[runner_id]
        agent.capabilities = replace(agent.capabilities, problem=problem)
        self.send(runner_id, wait_seconds=8.0)

    @precondition(lambda self: any(agent.sent for agent in self.agents.values()))
    @rule(data=st.data())
    def old_report_comes_again(self, data) -> None:
        """It changes nothing, and ends."""
        agent = data.draw(st.sampled_from([agent for agent in self.agents.values() if agent.sent]))
        report = data.draw(st.sampled_from(agent.sent[-10:]))
        standing = self.stores.runners.standing
        before, jobs = self.look(standing(agent.runner_id)), self.jobs()
        if before is None or (report.session, report.sequence) == (before.runner.session, agent.sequence):
            return  # it never arrived, or is not old yet
        if report.session not in (before.runner.session, *before.runner.replaced):
            return  # of a session that was never heard of nobody knows that it is over; its calls end with its process
        if report.session == before.runner.session and report.sequence > before.runner.sequence:
            return
        late = self.installation.start(self.installation.desk.synchronize(replace(report, wait_seconds=0.0)))
        self.hear()
        assert late.done(), "a late report waits"
        if not isinstance(late.exception(), Aborted):
            assert not late.result().standing.applied, "a late report was applied"
        assert self.look(standing(agent.runner_id)) == before, "a late report changed something"
        assert self.jobs() == jobs, "a late report changed something"

    # Several at once

    @rule(
        calling=st.lists(runners, unique=True, max_size=4),
        submits=st.lists(st.tuples(projects, needs), max_size=3),
        taken=st.lists(st.integers(0, 1_000), max_size=1),
        stopped=st.lists(st.integers(0, 1_000), max_size=2),
        cut=st.sets(runners, max_size=2),
        commit=st.sampled_from(["", "", *COMMITS]),
    )
    def together(self, calling, submits, taken, stopped, cut, commit: str) -> None:
        """Calls, submits and stops in one transaction; names that are `taken` are refused, and connections are cut
        while it goes on.
        """
        asked = [(project_id, {"needs": wanted, "request_id": self.stores.new_id()}) for project_id, wanted in submits]
        uids = sorted(self.submitted)
        uids = sorted({uids[number % len(uids)] for number in stopped}) if uids else []
        with self.installation.together(commit):
            for runner_id in calling:
                self.send(runner_id, wait_seconds=8.0)
            refused = [
                self.installation.start(self.stores.submit(self.submitted[uid], f"job-{uid[-12:]}"))
                for uid in (sorted(self.submitted)[number % len(self.submitted)] for number in taken if self.submitted)
            ]
            first = [self.installation.start(self.stores.submit(each, **fields)) for each, fields in asked]
            stops = [self.installation.start(self.stop_of(uid, StopMode.CHECKPOINT)) for uid in uids]
            for runner_id in sorted(cut):
                self.agents[runner_id].cut()
        if commit:
            self.recover()
        else:
            self.hear()
        failed = [task.exception() is not None for task in (*first, *stops)]
        assert all(failed) if commit else not any(failed), "all or nothing of a transaction is told"
        for task in refused:
            assert isinstance(task.exception(), Unavailable if commit else AlreadyExists), "each bears its own"
        for project_id, fields in asked:
            self.submitted[self.run(self.stores.submit(project_id, **fields))] = project_id
        for uid in uids:
            self.run(self.stop_of(uid, StopMode.CHECKPOINT))
            self.stops.add(uid)

    # Time and the scheduler

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0, 26.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.installation.pass_seconds(seconds)
        self.hear()

    @rule(runner_id=runners, comes_back=st.booleans())
    def runner_goes_silent(self, runner_id: str, comes_back: bool) -> None:
        """The others go on: it alone is lost, with what it holds. When it comes back it still works on that."""
        silent = self.agents[runner_id]
        silent.cut()
        for _ in range(4):
            for agent in self.agents.values():
                if agent is not silent and agent.sent and agent.call is None:
                    self.send(agent.runner_id, wait_seconds=8.0)
            self.hear()
            self.installation.pass_seconds(8.0)
            self.hear()
        active = [attempt.runner_id for view in self.jobs().values() for attempt in view.attempts if attempt.active]
        assert runner_id not in active, "a silent runner keeps its job"
        if comes_back:
            self.call_and_hear(runner_id, wait_seconds=8.0)

    @rule(seconds=st.sampled_from([-3_600.0, 60.0, 3_600.0]))
    def clock_is_set(self, seconds: float) -> None:
        """Nobody was silent meanwhile: nothing runs out."""
        self.installation.pass_seconds(2.0)
        self.hear()
        before = {uid for uid, view in self.jobs().items() if is_active(view)}
        self.installation.clock.step(seconds)
        self.installation.pass_seconds(2.0)
        self.hear()
        assert before <= {uid for uid, view in self.jobs().items() if is_active(view)}, "a healthy attempt was lost"

    @rule()
    def checkpoints_are_looked_for(self) -> None:
        self.run(self.stores.adopt_all())

    @rule()
    def scheduler_restarts(self) -> None:
        for agent in self.agents.values():
            agent.cut()
        self.installation.restart()

    @invariant()
    def promises_hold(self) -> None:
        self.hear()
        jobs = self.jobs()
        check_jobs(jobs, self.submitted, self.final, self.stops)
        check_dispatcher(self.stores.dispatcher, self.installation.told_anew(), self.agents.values(), jobs)
        check_calls(self.installation, self.agents.values())

    def teardown(self) -> None:
        if not hasattr(self, "installation"):
            return
        try:
            check_events(self.installation, self.jobs())
        finally:
            for agent in self.agents.values():
                agent.cut()
            self.installation.close()


def is_active(view: JobView) -> bool:
    return any(attempt.active for attempt in view.attempts)


def run_machine(
    new_database: Callable[[], str], *, examples: int, steps: int, number: int | None = None, shrinks: bool = True
) -> None:
    """Drive so many schedulers, each over a new database; `number` is the seed that gives the same ones again.

    `shrinks`: a failure is made as short as can be, which takes hundreds of examples.
    """
    SchedulerMachine.new_database = staticmethod(new_database)
    machine = SchedulerMachine if number is None else seed(number)(SchedulerMachine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
