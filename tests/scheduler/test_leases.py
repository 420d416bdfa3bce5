"""Nothing healthy is lost: which silence ends a lease, and what was lost and is taken up again."""

from __future__ import annotations

from sqlalchemy import text

from services.scheduler.domain.job import AttemptOutcome, JobReason, JobState, Progress
from services.scheduler.domain.lease import AttemptKey
from services.scheduler.store import placing
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.runners import Renewal
from tests.scheduler.silence import at_work, expire


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


def test_attempt_that_cannot_be_closed_harms_no_other(with_stores):
    async def test(stores):
        await at_work(stores, 2)
        damage = text("UPDATE attempts SET phase = 'NONSENSE' WHERE runner_id = 'r0'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        [closed] = await expire(stores)
        assert closed.runner_id == "r1"
        assert await stores.count("attempts", "active") == 1

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
