"""A runner reports of its own attempts alone: what it says of another's changes nothing, on both databases."""

from __future__ import annotations

from services.scheduler.domain.job import AttemptOutcome, AttemptPhase, JobState, Progress
from services.scheduler.domain.lease import ActiveReport, AttemptKey, ClosedReport, Grip, Report, grip


async def held(stores):
    """A job that runner `one` trains."""
    await stores.create_project("digits")
    await stores.submit("digits", "first")
    standing = await stores.report("one")
    return await stores.hold("one", standing, progress=Progress(iteration=5, iterations_max=100))


def key_of(standing) -> AttemptKey:
    return AttemptKey(job_uid=standing.attempt.job_uid, epoch=standing.attempt.epoch)


def test_a_stranger_does_not_end_an_attempt_nor_add_to_its_checkpoints(with_stores, checkpoint):
    async def test(stores):
        standing = await held(stores)
        uid, key = standing.job.uid, key_of(standing)
        closed = ClosedReport(
            key=key, number=1, outcome=AttemptOutcome.COMPLETED, checkpoints=(checkpoint(uid, 1, 99),)
        )
        await stores.report("stranger", closed=(closed,))
        view = await stores.job(uid)
        assert (view.job.state, view.job.last_checkpoint) == (JobState.RUNNING, None)
        assert (await stores.runners.standing("one")).attempt.active

    with_stores(test)


def test_a_stranger_that_claims_an_attempt_changes_nothing(with_stores, checkpoint):
    async def test(stores):
        standing = await held(stores)
        uid, key = standing.job.uid, key_of(standing)
        before = await stores.job(uid)
        stores.clock.pass_seconds(5)
        active = ActiveReport(
            key=key,
            number=1,
            phase=AttemptPhase.UPLOADING,
            progress=Progress(iteration=99),
            checkpoints=(checkpoint(uid, 1, 99),),
        )
        stranger = await stores.report("stranger", active=active)
        assert stranger.attempt is None
        assert await stores.job(uid) == before

    with_stores(test)


def test_late_checkpoints_of_an_attempt_come_from_its_own_runner_alone(with_stores, checkpoint):
    async def test(stores):
        standing = await held(stores)
        uid, key = standing.job.uid, key_of(standing)
        await stores.end("one", standing, "FAILED")
        for runner_id, expected in (("stranger", None), ("one", 60)):
            late = ActiveReport(key=key, number=1, phase=AttemptPhase.UPLOADING, checkpoints=(checkpoint(uid, 1, 60),))
            await stores.report(runner_id, active=late)
            last = (await stores.job(uid)).job.last_checkpoint
            assert (last.iteration if last else None) == expected

    with_stores(test)


def test_another_session_does_not_hold_what_the_one_before_it_held(with_stores):
    async def test(stores):
        standing = await held(stores)
        active = ActiveReport(key=key_of(standing), number=1, phase=AttemptPhase.TRAINING)
        other = Report(
            runner_id="one", session="other", sequence=1, capabilities=standing.runner.capabilities, active=active
        )
        assert grip(standing.attempt, other) is Grip.LOST
        after = await stores.report("one", session="other", active=active)
        assert after.attempt is None
        assert (await stores.job(standing.job.uid)).attempts[0].outcome is AttemptOutcome.LOST

    with_stores(test)


def test_lost_runners_are_forgotten_after_a_named_time_and_no_other(with_stores):
    async def test(stores):
        await stores.report("gone")
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        stores.clock.pass_seconds(29 * 86_400)
        await stores.report("here")
        await stores.upkeep.forget()
        assert len(await stores.runners.page(after="", limit=10)) == 2
        stores.clock.pass_seconds(2 * 86_400)
        await stores.upkeep.forget()
        [view] = await stores.runners.page(after="", limit=10)
        assert view.runner.runner_id == "here"
        assert (await stores.report("gone")).runner.runner_id == "gone"

    with_stores(test)


def test_phase_that_this_version_has_no_word_for_keeps_the_one_before(with_stores):
    async def test(stores):
        standing = await held(stores)
        after = await stores.hold("one", standing, phase=None, progress=Progress(iteration=6))
        assert (after.attempt.phase, after.job.state) == (AttemptPhase.TRAINING, JobState.RUNNING)
        assert after.attempt.progress.iteration == 6

    with_stores(test)
