"""The real stores over a real database, driven at random; after each step the promises are checked against all rows."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from services.chassis.errors import Aborted, AlreadyExists
from services.scheduler.job import ACTIVE, FINAL, AttemptOutcome, AttemptPhase, JobState, Progress, StopMode
from services.scheduler.lease import AttemptKey, ClosedReport
from services.scheduler.store.claims import WaitingCall

PROJECTS = ("a", "b")
RUNNERS = ("one", "two", "three")
runners, projects = st.sampled_from(RUNNERS), st.sampled_from(PROJECTS)


class SchedulerMachine(RuleBasedStateMachine):
    """Runners with a memory of their own, messages that come late or twice, and crashes of either side."""

    stores_class = None
    template = None

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        shutil.copyfile(self.template, self.folder / "scheduler.sqlite")
        self.runner = asyncio.Runner()
        self.clock_us = None
        self.ids = itertools.count(1)
        self.open()
        for project_id in PROJECTS:
            self.run(self.stores.create_project(project_id))
        self.held = {}
        """What each runner works on, as it knows it."""
        self.sessions = dict.fromkeys(RUNNERS, 1)
        self.calls = {}
        self.old_reports = []
        self.submitted = {}
        self.stops = set()
        self.final = {}
        self.requests = {}

    def open(self) -> None:
        sequences = self.stores.sequences if self.clock_us is not None else {}
        self.stores = self.stores_class(f"sqlite:///{self.folder}/scheduler.sqlite", ids=self.ids)
        self.stores.sequences = sequences
        if self.clock_us is not None:
            self.stores.clock.now_us = self.clock_us

    def close(self) -> None:
        self.clock_us = self.stores.clock.now_us

        async def close() -> None:
            self.stores.database.close()

        self.run(close())

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def session(self, runner_id: str) -> str:
        return f"{runner_id}-{self.sessions[runner_id]}"

    def synchronize(self, runner_id: str, **fields):
        """The runner's call; what the answer says it takes up."""
        call = self.calls[runner_id] = WaitingCall()
        self.old_reports.append((runner_id, self.session(runner_id), fields))
        standing = self.run(self.stores.report(runner_id, session=self.session(runner_id), call=call, **fields))
        if fields.get("active") is None and standing.attempt is not None:
            self.held[runner_id] = standing
        elif standing.attempt is None:
            self.held.pop(runner_id, None)
        return standing

    @rule(project_id=projects, request=st.integers(0, 6), priority=st.integers(-1, 1))
    def submit(self, project_id: str, request: int, priority: int) -> None:
        body = f"{project_id}/{priority}".encode()
        submission = self.stores.submit(project_id, request_id=f"r{request}", digest=body, priority=priority)
        known = self.requests.get(request)
        if known is not None and known[0] != body:
            with pytest.raises(AlreadyExists):
                self.run(submission)
            return
        uid = self.run(submission)
        assert known is None or known[1] == uid, "a request id had two effects"
        self.requests[request] = (body, uid)
        self.submitted[uid] = project_id

    @rule(project_id=projects)
    def submit_without_request_id(self, project_id: str) -> None:
        self.submitted[self.run(self.stores.submit(project_id))] = project_id

    @rule(runner_id=runners)
    def call(self, runner_id: str) -> None:
        """The runner calls as it is: idle, or at work."""
        standing = self.held.get(runner_id)
        if standing is None:
            self.synchronize(runner_id)
        else:
            self.work(runner_id, AttemptPhase.DOWNLOADING, 0)

    @rule(runner_id=runners, phase=st.sampled_from(AttemptPhase), iteration=st.integers(0, 50))
    def work(self, runner_id: str, phase: AttemptPhase, iteration: int) -> None:
        standing = self.held.get(runner_id)
        if standing is None:
            return
        self.calls.pop(runner_id, None)
        options = {"session": self.session(runner_id), "progress": Progress(iteration=iteration)}
        after = self.run(self.stores.hold(runner_id, standing, phase, **options))
        if after.attempt is None or after.attempt.epoch != standing.attempt.epoch:
            del self.held[runner_id]  # superseded

    @rule(runner_id=runners, outcome=st.sampled_from([o for o in AttemptOutcome if o is not AttemptOutcome.LOST]))
    def close_attempt(self, runner_id: str, outcome: AttemptOutcome) -> None:
        standing = self.held.pop(runner_id, None)
        if standing is None:
            return
        key = AttemptKey(job_uid=standing.attempt.job_uid, epoch=standing.attempt.epoch)
        closed = ClosedReport(key=key, number=standing.attempt.number, outcome=outcome)
        self.synchronize(runner_id, closed=(closed,))

    @rule(runner_id=runners)
    def answer_is_lost(self, runner_id: str) -> None:
        """The runner calls idle, and never learns what it was told."""
        if runner_id not in self.held:
            self.synchronize(runner_id)
            self.held.pop(runner_id, None)

    @rule(runner_id=runners)
    def agent_restarts(self, runner_id: str) -> None:
        """The trainer dies with its agent; the new session holds nothing."""
        self.sessions[runner_id] += 1
        self.held.pop(runner_id, None)
        self.synchronize(runner_id)

    @precondition(lambda self: self.old_reports)
    @rule(data=st.data())
    def old_report_comes_again(self, data) -> None:
        runner_id, session, fields = data.draw(st.sampled_from(self.old_reports[-10:]))
        before = self.run(self.stores.runners.standing(runner_id))
        try:
            self.run(self.stores.report(runner_id, session=session, sequence=1, **fields))
        except Aborted:
            assert session != self.session(runner_id)
        after = self.run(self.stores.runners.standing(runner_id))
        assert after == before, "a late report changed something"

    @rule(runner_id=runners)
    def wait_ends(self, runner_id: str) -> None:
        if runner_id in self.calls:
            self.calls.pop(runner_id).over = True

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), mode=st.sampled_from([StopMode.CHECKPOINT, StopMode.IMMEDIATE]))
    def stop(self, data, mode: StopMode) -> None:
        uid = data.draw(st.sampled_from(sorted(self.submitted)))
        self.run(self.stores.stop(uid, mode))
        self.stops.add(uid)

    @rule(seconds=st.sampled_from([1.0, 10.0, 26.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.stores.clock.pass_seconds(seconds)
        self.run(self.stores.upkeep.renew_and_expire([]))

    @rule()
    def checkpoints_are_looked_for(self) -> None:
        self.run(self.stores.adopt_all())

    @rule()
    def scheduler_restarts(self) -> None:
        self.close()
        self.open()
        self.run(self.stores.upkeep.restart_clocks())

    @invariant()
    def promises_hold(self) -> None:
        views = self.run(self.stores.jobs.batch([], sorted(self.submitted)))
        jobs = {view.job.uid: view for view in views}
        assert set(jobs) == set(self.submitted), "a job was lost"
        active = [(uid, attempt) for uid, view in jobs.items() for attempt in view.attempts if attempt.active]
        held_by = [attempt.runner_id for _, attempt in active]
        assert len(held_by) == len(set(held_by)), "a runner has two attempts"
        of_projects = [self.submitted[uid] for uid, _ in active]
        assert len(of_projects) == len(set(of_projects)), "a project has two attempts"
        for uid, view in jobs.items():
            job = view.job
            has_lease = any(attempt.active for attempt in view.attempts)
            assert has_lease is (job.state in ACTIVE), (job.state, has_lease)
            assert self.final.get(uid, job.state) is job.state, "a final state changed"
            if job.state in FINAL:
                self.final[uid] = job.state
            if uid in self.stops:
                assert job.state in FINAL | {JobState.STOPPING}, "a stop was forgotten"

    @invariant()
    def queue_is_what_the_jobs_say(self) -> None:
        ready = """SELECT DISTINCT project_uid, needs_key FROM jobs WHERE ready AND project_uid NOT IN
            (SELECT project_uid FROM attempts WHERE active)"""
        waiting = "SELECT project_uid, needs_key FROM waiting"

        def rows(connection):
            return [{tuple(row) for row in connection.execute(text(query))} for query in (ready, waiting)]

        wanted, found = self.run(self.stores.database.read(rows))
        assert wanted == found
        idle = [call for call in self.calls.values() if not call.over]
        pool = [each for each in self.stores.claims._idle.values() if not each.call.over]
        assert len(pool) <= len(idle)
        assert not (pool and found), "a runner waits beside a job that it could serve"

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.close()
            self.runner.close()
            shutil.rmtree(self.folder)


def test_promises_hold_whatever_comes_in_whatever_order(stores_class, sqlite_template):
    SchedulerMachine.stores_class = stores_class
    SchedulerMachine.template = sqlite_template
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
