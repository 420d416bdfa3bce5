"""What must hold after each step, whatever has happened: read from the rows, the dispatcher and the waiting calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sihlai.event.v1 import event_pb2

from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.job import ACTIVE, FINAL, JobState
from services.scheduler.domain.lease import BeIdle, desired, does
from services.scheduler.domain.view import JobView
from tests.scheduler.machine.agent import Agent
from tests.scheduler.machine.installation import LIMITS, Installation


def check_jobs(
    jobs: Mapping[str, JobView], submitted: Mapping[str, str], final: dict[str, JobState], stops: set[str]
) -> None:
    """No job is lost, no slot is taken twice, a lease means work, what is final stays, no stop is forgotten."""
    assert set(jobs) == set(submitted), "a job was lost"
    active = [(uid, attempt) for uid, view in jobs.items() for attempt in view.attempts if attempt.active]
    held_by = [attempt.runner_id for _, attempt in active]
    assert len(held_by) == len(set(held_by)), "a runner has two attempts"
    of_projects = [submitted[uid] for uid, _ in active]
    assert len(of_projects) == len(set(of_projects)), "a project has two attempts"
    for uid, view in jobs.items():
        job = view.job
        has_lease = any(attempt.active for attempt in view.attempts)
        assert has_lease is (job.state in ACTIVE), (job.state, has_lease)
        assert final.get(uid, job.state) is job.state, "a final state changed"
        if job.state in FINAL:
            final[uid] = job.state
        if uid in stops:
            assert job.state in FINAL | {JobState.STOPPING}, "a stop was forgotten"


def check_dispatcher(
    found: Dispatcher, wanted: Dispatcher, agents: Iterable[Agent], jobs: Mapping[str, JobView]
) -> None:
    """It holds what the rows say; who waits is in its pool, and no runner waits beside a job that it could serve."""
    assert found._projects == wanted._projects
    offers, due = ({each: runner.offer for each, runner in of._runners.items()} for of in (found, wanted))
    assert offers == due, f"who takes jobs: {sorted(offers)}, and the rows say {sorted(due)}"
    waiting = {agent.runner_id for agent in agents if agent.call is not None and agent.call.report.active is None}
    # Who was told of its attempt just now, and lost the answer, calls as if it had none: see `check_calls`.
    assigned = {attempt.runner_id for view in jobs.values() for attempt in view.attempts if attempt.active}
    for runner_id in (waiting & set(found._runners)) - assigned:
        assert found.is_idle(runner_id), f"{runner_id} waits, and is in no pool"
    for runner_id in [each for each in found._runners if found.is_idle(each) and each not in waiting]:
        found.leave(runner_id)  # its call is over: it is left out when its turn comes
    assert found.propose() is None, "a runner waits beside a job that it could serve"
    found.undo()


def check_calls(installation: Installation, agents: Iterable[Agent]) -> None:
    """No call waits whose runner should do something else, unless it was told so just now."""
    for agent in agents:
        if agent.call is None:
            continue
        standing = installation.look(installation.stores.runners.standing(agent.runner_id))
        assert standing is not None, "a runner that waits is known"
        assert standing.runner.session == agent.session, "a call waits in a session that is over"
        assert not standing.runner.lost, "a runner that waits here is taken for lost"
        wanted = desired(standing.runner, standing.attempt, standing.job, grace_seconds=LIMITS.stop_grace_seconds)
        presence = installation.desk._presences[agent.runner_id][agent.session]
        # The answer may have been lost: then it is given again, `resend_seconds` after the first.
        is_resent = presence.told_at + LIMITS.resend_seconds > installation.clock.monotonic()
        is_resent = is_resent and presence.told == wanted
        told = does(agent.call.report, wanted) or agent.told == wanted or is_resent
        assert told, f"{agent.runner_id} waits with {agent.call.report.active}, and should {wanted}"
        if isinstance(wanted, BeIdle) and not is_resent:
            assert agent.call.report.active is None, "a runner works on what nobody wants, and waits"


def check_events(installation: Installation, jobs: Mapping[str, JobView]) -> None:
    """Each job was submitted once, started as often as it was claimed, and ended once if it has ended."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in installation.look(installation.stores.outbox.oldest(100_000)):
        event = event_pb2.Event.FromString(row.payload)
        fact = event.WhichOneof("fact")
        assert fact is not None, "an event says something"
        if fact.startswith("job_"):
            counts[getattr(event, fact).job.uid, fact] += 1
    for uid, view in jobs.items():
        assert counts[uid, "job_submitted"] == 1, "a submission is told once"
        assert counts[uid, "job_ended"] == (1 if view.job.state in FINAL else 0), "an end is told once"
        assert counts[uid, "job_started"] >= view.job.attempts, "a start was not told"
