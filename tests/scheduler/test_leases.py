"""Nothing healthy is lost: what silence, clocks and a slow writer may do to leases, and what is done again."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.chassis.errors import Unavailable
from services.scheduler.config import SchedulerConfig
from services.scheduler.domain.job import AttemptOutcome, AttemptPhase, JobReason, JobState, Progress
from services.scheduler.domain.lease import AttemptKey
from services.scheduler.domain.request import Request
from services.scheduler.domain.timekeeping import ClockLimits, Look, outage
from services.scheduler.limits import clock_limits
from services.scheduler.store import placing
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.runners import Renewal
from services.scheduler.store.upkeep import Upkeep
from services.scheduler.wire.job import why_not_running
from tests.scheduler.stores import failing_commits

NOBODY = Request(request_id="", digest=b"")
LIMITS = ClockLimits(outage_seconds=8.0, step_seconds=3.0)


async def at_work(stores, number: int):
    """So many runners, each with a job of a project of its own that runs."""
    standings = {}
    for each in range(number):
        await stores.create_project(f"p{each}")
        await stores.submit(f"p{each}")
        standing = await stores.report(f"r{each}")
        standings[f"r{each}"] = await stores.hold(f"r{each}", standing)
    return standings


async def expire(stores, seconds: float = 26):
    stores.clock.pass_seconds(seconds)
    return await stores.upkeep.renew_and_expire([])


def test_lost_attempt_whose_job_nobody_has_is_taken_up_again(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        assert len(await expire(stores)) == 1
        uid = standings["r0"].job.uid
        assert (await stores.job(uid)).job.state is JobState.QUEUED
        await stores.adopt_all()
        again = await stores.hold("r0", standings["r0"], progress=Progress(iteration=9))
        assert (again.attempt.epoch, again.job.state) == (1, JobState.RUNNING)
        view = await stores.job(uid)
        assert (view.job.lost_attempts, view.progress.iteration, len(view.attempts)) == (0, 9, 1)
        assert (await stores.facts())[-3:] == ["joined", "started", "running"]
        other = await stores.report("other")
        assert other.attempt is None
        await stores.end("r0", again, "COMPLETED")
        assert (await stores.job(uid)).job.state is JobState.COMPLETED

    with_stores(test)


def test_lost_attempt_whose_job_another_runner_has_is_dropped(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await expire(stores)
        await stores.adopt_all()
        assert (await stores.report("other")).attempt.epoch == 2
        assert (await stores.hold("r0", standings["r0"])).attempt is None
        assert (await stores.runners.standing("other")).attempt.epoch == 2

    with_stores(test)


def test_lost_attempt_whose_projects_slot_is_taken_is_dropped(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await expire(stores)
        await stores.submit("p0", "second")
        assert (await stores.report("other")).job.job_id == "second"  # the first is held for its checkpoints
        assert (await stores.hold("r0", standings["r0"])).attempt is None
        assert await stores.count("attempts", "active") == 1
        assert (await stores.job(standings["r0"].job.uid)).job.state is JobState.QUEUED

    with_stores(test)


def test_another_session_does_not_take_up_what_an_earlier_one_lost(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await expire(stores)
        assert (await stores.hold("r0", standings["r0"], session="second")).attempt is None

    with_stores(test)


@pytest.mark.parametrize("seconds", [3_600.0, -3_600.0])
def test_clock_that_is_set_or_a_machine_that_sleeps_expires_nothing(with_stores, seconds):
    async def test(stores):
        await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stores.clock.step(seconds)
        assert await expire(stores, 1) == []
        assert len(await expire(stores)) == 1

    with_stores(test)


def test_an_outage_that_was_seen_by_a_look_that_failed_is_seen_by_the_next_one(with_stores):
    """The look after it comes in time, and found the leases as old as they were."""

    async def test(stores):
        await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stores.clock.pass_seconds(60)
        with failing_commits(stores.database), pytest.raises(Unavailable):
            await stores.upkeep.renew_and_expire([])
        assert await expire(stores, 1) == []
        assert len(await expire(stores, 7)) == 0
        for _ in range(3):
            closed = await expire(stores, 7)
        assert len(closed) == 1

    with_stores(test, outage_seconds=8.0)


@pytest.mark.parametrize("sees_it", [True, False])
def test_a_clock_that_is_set_back_holds_up_nothing_that_waits_for_a_time(with_stores, sees_it):
    """Where the scheduler saw it happen by that much, else for no longer than may be waited at all."""

    async def test(stores):
        await put_aside(stores)
        await stores.upkeep.renew_and_expire([])
        stores.clock.step(-3_600)
        if sees_it:
            await stores.upkeep.renew_and_expire([])
        else:  # a new process
            stores.upkeep = Upkeep(
                stores.database, stores.placing, stores.upkeep._limits, monotonic=stores.clock.monotonic
            )
            await stores.upkeep.restart_clocks()
        await stores.adopt_all()
        stores.clock.pass_seconds(11 if sees_it else stores.RETRY.retry_seconds_max)
        await stores.upkeep.renew_and_expire([])
        assert await stores.count("jobs", "retry_time_us IS NOT NULL") == 0
        stores.clock.pass_seconds(300 if sees_it else stores.ASIDE.seconds_max)
        await stores.upkeep.renew_and_expire([])
        assert await stores.count("runners", "put_aside_until_us IS NOT NULL") == 0

    with_stores(test)


def test_a_clock_that_is_set_forward_makes_nothing_old(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", request_id="one", digest=b"")
        key = AttemptKey(job_uid=uid, epoch=1)
        await stores.end("r0", await stores.report("r0"), "COMPLETED")
        await stores.upkeep.renew_and_expire([])
        events = await stores.count("outbox")
        stores.clock.step(1_000_000_000)
        await stores.upkeep.renew_and_expire([])
        await stores.upkeep.forget()
        assert (await stores.count("request_ids"), await stores.count("outbox")) == (1, events)
        assert await stores.runners.attempts([key], ended_hours_max=1.0), "its spool is wanted still"
        [orphan] = await stores.orphans.due(10)
        assert orphan.ended_seconds < 3_600
        stores.clock.step(-1_000_000_000)
        await stores.upkeep.renew_and_expire([])
        stores.clock.pass_seconds(2 * 3_600)
        await stores.upkeep.forget()
        assert await stores.count("request_ids") == 0

    with_stores(test)


def test_look_that_waited_in_the_writers_queue_expires_nothing(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stalls, goes_on = threading.Event(), threading.Event()

        def stall(_transaction) -> None:
            stalls.set()
            goes_on.wait(60)

        stalled = asyncio.ensure_future(stores.database.write(stall))
        await asyncio.to_thread(stalls.wait, 60)
        look = asyncio.ensure_future(stores.upkeep.renew_and_expire([]))
        await asyncio.sleep(0)  # it waits behind the stall
        stores.clock.pass_seconds(26)
        goes_on.set()
        assert await look == []
        await stalled
        assert (await stores.job(standings["r0"].job.uid)).attempts[0].active

    with_stores(test, outage_seconds=8.0)


def test_many_runners_that_go_silent_at_once_are_not_lost_for_a_while(with_stores):
    async def test(stores):
        standings = await at_work(stores, 5)
        for _ in range(10):  # an outage of five minutes
            assert await expire(stores, 30) == []
        assert await stores.count("runners", "lost") == 0
        for runner_id, standing in standings.items():
            again = await stores.hold(runner_id, standing)
            assert again.attempt.active
        assert await stores.upkeep.renew_and_expire([]) == []
        assert await stores.count("jobs", "lost_attempts > 0") == 0

    with_stores(test)


def test_many_silent_runners_are_lost_after_the_limit(with_stores):
    async def test(stores):
        await at_work(stores, 5)
        assert await expire(stores, 30) == []
        assert len(await expire(stores, 601)) == 5

    with_stores(test)


def test_runners_that_are_gone_take_no_memory_for_ever(with_stores, monkeypatch):
    """Machines of a cloud come and go, each with a name of its own."""
    monkeypatch.setattr(placing, "REMEMBERED", 5)

    async def test(stores):
        waiting = WaitingCall()
        await stores.report("waits", call=waiting)
        for generation in range(4):
            for number in range(5):
                await stores.report(f"machine-{generation}-{number}")
            await expire(stores, 30)
            await expire(stores, 601)
        assert stores.placing.remembered <= 12
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        assert (await stores.report("waits")).job.uid == uid

    with_stores(test)


def test_few_silent_runners_of_many_are_lost(with_stores):
    async def test(stores):
        standings = await at_work(stores, 5)
        stores.clock.pass_seconds(26)
        keys = [(each, AttemptKey(job_uid=s.attempt.job_uid, epoch=1)) for each, s in standings.items()]
        alive = [Renewal(runner_id=each, age_us=0, key=key) for each, key in keys[2:]]
        assert len(await stores.upkeep.renew_and_expire(alive)) == 2

    with_stores(test)


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (Look(asked_seconds=101.0, taken_seconds=101.1, now_us=1_100_000), ""),
        (Look(asked_seconds=101.0, taken_seconds=110.0, now_us=10_000_000), "the database's writer was held up"),
        (Look(asked_seconds=120.0, taken_seconds=120.0, now_us=20_000_000), "nobody looked"),
        (Look(asked_seconds=101.0, taken_seconds=101.0, now_us=61_000_000), "the clock was set by +60.0 s"),
        (Look(asked_seconds=101.0, taken_seconds=101.0, now_us=-59_000_000), "the clock was set by -60.0 s"),
    ],
)
def test_clocks_that_disagree_are_an_outage(look, found):
    before = Look(asked_seconds=100.0, taken_seconds=100.0, now_us=0)
    assert outage(before, look, LIMITS).startswith(found)
    assert bool(outage(before, look, LIMITS)) is bool(found)


def test_what_keeps_runners_alive_goes_before_all_that_waits(with_stores):
    async def test(stores):
        stalls, goes_on, order = threading.Event(), threading.Event(), []

        def stall(_transaction) -> None:
            stalls.set()
            goes_on.wait(60)

        def note(what: str):
            return lambda _transaction: order.append(what)

        waiting = [asyncio.ensure_future(stores.database.write(stall))]
        await asyncio.to_thread(stalls.wait, 60)
        waiting += [asyncio.ensure_future(stores.database.write(note("submit"))) for _ in range(600)]
        waiting += [asyncio.ensure_future(stores.database.write(note("renew"), control=True)) for _ in range(300)]
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(*waiting)
        assert order[:256] == ["renew"] * 256
        assert order[256:272] == ["submit"] * 16, "what waits otherwise is never left out altogether"
        assert order.index("submit", 272) == 272 + 44

    with_stores(test)


def test_attempt_that_cannot_be_closed_harms_no_other(with_stores):
    async def test(stores):
        await at_work(stores, 2)
        damage = text("UPDATE attempts SET phase = 'NONSENSE' WHERE runner_id = 'r0'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        [closed] = await expire(stores)
        assert closed.runner_id == "r1"
        assert await stores.count("attempts", "active") == 1

    with_stores(test)


def test_job_that_cannot_be_read_is_parked_and_the_ones_behind_it_go_on(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        for job_id in ("damaged", "sound"):
            await stores.submit("digits", job_id)
        damage = text("UPDATE jobs SET reason = 'NONSENSE' WHERE job_id = 'damaged'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        assert (await stores.report("one")).job.job_id == "sound"

    with_stores(test)


def test_trainer_that_stands_still_is_ended_and_its_job_tried_elsewhere(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        standing = standings["r0"]
        for iteration in range(90):  # half an hour that moves
            stores.clock.pass_seconds(20)
            await stores.hold("r0", standing, progress=Progress(iteration=iteration))
            assert await stores.upkeep.renew_and_expire([]) == []
        for _ in range(61):  # twenty minutes that do not
            stores.clock.pass_seconds(20)
            await stores.hold("r0", standing, progress=Progress(iteration=89))
        [closed] = await stores.upkeep.renew_and_expire([])
        assert closed.runner_id == "r0"
        view = await stores.job(standing.job.uid)
        assert (view.attempts[0].outcome, view.attempts[0].reason) == (AttemptOutcome.FAILED, JobReason.STALLED)
        assert (view.job.state, view.job.needs.avoided) == (JobState.QUEUED, ("r0",))

    with_stores(test)


async def fail(stores, runner_id: str, standing, reason=JobReason.RUNNER_FAULT):
    return await stores.end(runner_id, standing, "FAILED", reason=reason, message="no space left on /data")


def test_fault_of_a_runner_is_tried_again_after_a_pause_and_elsewhere(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await stores.report("other")
        uid = standings["r0"].job.uid
        assert (await fail(stores, "r0", standings["r0"])).attempt is None
        await stores.adopt_all()
        assert (await stores.report("other")).attempt is None, "the pause is not over"
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt is None, "there is another runner"
        assert (await stores.report("other")).job.uid == uid

    with_stores(test)


def test_only_runner_there_is_gets_the_job_again_after_the_pause(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await fail(stores, "r0", standings["r0"])
        await stores.adopt_all()
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt.number == 2

    with_stores(test)


def test_a_job_keeps_away_from_the_runner_that_failed_with_it_for_a_time_only(with_stores):
    """The only other one may be busy for days."""

    async def test(stores):
        standings = await at_work(stores, 2)
        uid = standings["r0"].job.uid
        assert (await fail(stores, "r0", standings["r0"])).attempt is None
        await stores.adopt_all()
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt is None, "there is another runner"
        view, waits = await stores.jobs.get("p0", (await stores.job(uid)).job.job_id)
        assert why_not_running(view.job.needs, waits).startswith("it keeps away from runners/r0, which failed with it")
        for _ in range(16):
            await stores.hold("r1", standings["r1"])
            await expire(stores, 20)
            standing = await stores.report("r0")
        assert standing.job.uid == uid
        assert standing.job.needs.avoided == ()

    with_stores(test)


async def put_aside(stores) -> None:
    """A runner that fails three jobs at once, each of a project of its own, and is heard of all the time."""
    await stores.report("sound", session="sound")
    for each in range(4):
        await stores.create_project(f"p{each}")
        await stores.submit(f"p{each}")
    standing = await stores.report("broken")
    for _ in range(3):
        standing = await fail(stores, "broken", standing)
    assert standing.attempt is None
    assert (await stores.facts())[-1] == "put-aside"


def test_runner_that_fails_fast_again_and_again_is_put_aside_with_its_reason(with_stores):
    async def test(stores):
        await put_aside(stores)
        assert await stores.count("jobs", "state = 'FAILED'") == 0
        [view] = [v for v in await stores.runners.page(after="", limit=10) if v.runner.runner_id == "broken"]
        assert not view.runner.takes_jobs
        assert "3 attempts in a row failed through its fault: no space left on /data" in view.runner.put_aside_reason
        assert (await stores.report("broken")).attempt is None
        assert (await stores.report("sound", session="sound")).job.project_id == "p3"

    with_stores(test)


def test_runner_that_was_put_aside_takes_jobs_again_after_its_time(with_stores):
    async def test(stores):
        await put_aside(stores)
        for _ in range(15):
            await expire(stores, 20)
            await stores.report("broken")
        await stores.adopt_all()
        assert (await stores.report("broken")).attempt is not None

    with_stores(test)


def test_runner_that_an_operator_takes_back_gets_a_job_at_once(with_stores):
    async def test(stores):
        await put_aside(stores)
        await stores.runners.undrain(NOBODY, lambda _: b"", runner_id="broken")
        assert (await stores.report("broken")).job.project_id == "p3"

    with_stores(test)


@pytest.mark.parametrize("same", ["project_uid", "runner_id"])
def test_database_itself_refuses_a_second_active_attempt(with_stores, same):
    async def test(stores):
        await at_work(stores, 2)
        double = text(f"UPDATE attempts SET {same} = (SELECT min({same}) FROM attempts)")
        with pytest.raises(IntegrityError):
            await stores.database.write(lambda transaction: transaction.connection.execute(double).rowcount)

    with_stores(test)


@pytest.mark.parametrize("same", ["job_id", "sequence"])
def test_database_itself_refuses_two_jobs_of_one_name_or_one_place(with_stores, same):
    async def test(stores):
        await stores.create_project("digits")
        for _ in range(2):
            await stores.submit("digits")
        double = text(f"UPDATE jobs SET {same} = (SELECT min({same}) FROM jobs)")
        with pytest.raises(IntegrityError):
            await stores.database.write(lambda transaction: transaction.connection.execute(double).rowcount)

    with_stores(test)


def test_failed_commit_leaves_the_pool_of_idle_runners_as_it_was(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one", call=waiting_call())

        def fail_the_batch(_transaction) -> None:
            raise RuntimeError("the disk is full")

        flush = stores.database.before_commit
        flush.append(fail_the_batch)

        def run_hook(hook, transaction) -> None:
            with transaction.part():
                hook(transaction)

        stores.database._run_hook = run_hook
        with pytest.raises(RuntimeError):
            await stores.submit("digits")
        flush.remove(fail_the_batch)
        assert stores.dispatcher.is_idle("one")
        uid = await stores.submit("digits")
        assert (await stores.runners.standing("one")).job.uid == uid

    with_stores(test)


def test_dispatcher_that_lost_sight_of_the_rows_is_told_anew(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one", call=waiting_call())
        stores.database._is_told = False  # as after a commit of which nobody knows whether it is on disk
        uid = await stores.submit("digits")
        standing = await stores.runners.standing("one")
        assert (standing.job.uid, standing.attempt.phase) == (uid, AttemptPhase.ASSIGNED)

    with_stores(test)


@pytest.mark.parametrize(("lease_seconds", "outage_seconds"), [(25.0, 8.0), (6.0, 2.0)])
def test_an_outage_is_noticed_before_it_can_cost_a_lease(tmp_path, lease_seconds: float, outage_seconds: float):
    """A scheduler that stood still for seven of a lease's six seconds once judged its healthy runners lost."""
    config = SchedulerConfig(
        database_url="sqlite:///x",
        checkpoint_root="file:///x",
        token_key_file=tmp_path / "token",
        credentials_key_file=tmp_path / "seal",
        lease_seconds=lease_seconds,
    )
    assert clock_limits(config).outage_seconds == outage_seconds
