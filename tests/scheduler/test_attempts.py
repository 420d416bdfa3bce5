"""What runners report, what they are given, and what time does to it, on both databases."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from services.chassis.errors import Aborted, Reason
from services.scheduler.domain.job import (
    AttemptOutcome,
    AttemptPhase,
    JobReason,
    JobState,
    Progress,
    ResumeSource,
    StopMode,
)
from services.scheduler.domain.lease import AttemptKey, ClosedReport, Report
from services.scheduler.domain.request import Request
from services.scheduler.store.runners import Renewal

NOBODY = Request(request_id="", digest=b"")


async def claimed(stores, runner_id: str = "one", **fields):
    """A project with one job, given to a runner."""
    await stores.create_project("digits")
    await stores.submit("digits", "first", **fields)
    return await stores.report(runner_id)


async def drain(stores, runner_id: str) -> None:
    await stores.runners.drain(NOBODY, lambda _: b"", runner_id=runner_id)


def key_of(standing) -> AttemptKey:
    return AttemptKey(job_uid=standing.attempt.job_uid, epoch=standing.attempt.epoch)


def test_job_goes_from_the_queue_through_its_states_to_the_end(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        assert standing.job.state is JobState.STARTING
        standing = await stores.hold("one", standing, AttemptPhase.DOWNLOADING, dataset_fingerprint="f1")
        assert standing.job.state is JobState.STARTING
        standing = await stores.hold("one", standing, progress=Progress(iteration=5, iterations_max=100))
        assert (standing.job.state, standing.attempt.progress.iteration) == (JobState.RUNNING, 5)
        await stores.end("one", standing, "COMPLETED", reason=JobReason.LIMIT_REACHED, iteration=100)
        view = await stores.job(uid)
        assert (view.job.state, view.job.reason) == (JobState.COMPLETED, JobReason.LIMIT_REACHED)
        assert (view.job.dataset_fingerprint, view.progress.iteration) == ("f1", 100)
        [attempt] = view.attempts
        assert (attempt.number, attempt.epoch, attempt.outcome) == (1, 1, AttemptOutcome.COMPLETED)
        assert await stores.facts() == ["submitted", "joined", "started", "running", "ended"]

    with_stores(test)


def test_assignment_stays_until_it_is_acknowledged(with_stores):
    async def test(stores):
        first = await claimed(stores)
        again = await stores.report("one")
        assert again.attempt.epoch == first.attempt.epoch
        assert (await stores.job(first.job.uid)).job.state is JobState.STARTING

    with_stores(test)


def test_runner_that_had_acknowledged_and_is_idle_has_lost_the_attempt(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        assert (await stores.report("one")).attempt is None
        view = await stores.job(standing.job.uid)
        assert (view.job.state, view.attempts[0].outcome) == (JobState.QUEUED, AttemptOutcome.LOST)
        await stores.adopt_all()
        assert (await stores.report("one")).attempt.number == 2

    with_stores(test)


def test_new_session_without_the_attempt_has_lost_it_and_the_old_session_is_told(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        await stores.report("one", session="second")
        assert (await stores.job(standing.job.uid)).attempts[0].outcome is AttemptOutcome.LOST
        with pytest.raises(Aborted) as refused:
            await stores.hold("one", standing)
        assert refused.value.reason is Reason.SESSION_REPLACED
        assert (await stores.runners.standing("one")).runner.session == "second"

    with_stores(test)


def test_unacknowledged_assignment_is_lost_to_a_new_session(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.report("one", session="second")
        assert (await stores.job(standing.job.uid)).attempts[0].outcome is AttemptOutcome.LOST

    with_stores(test)


def test_late_or_doubled_call_changes_nothing(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        late = Report(runner_id="one", session="one-first", sequence=1, capabilities=standing.runner.capabilities)
        again = await stores.runners.synchronize(late, None)
        assert (again.attempt.epoch, again.job.state) == (1, JobState.RUNNING)

    with_stores(test)


def test_report_of_an_older_attempt_changes_no_state_and_no_checkpoint(with_stores, checkpoint):
    async def test(stores):
        first = await claimed(stores)
        await stores.hold("one", first)
        stores.clock.pass_seconds(26)
        [lost] = await stores.upkeep.renew_and_expire([])
        assert lost.runner_id == "one"
        await stores.adopt_all()
        second = await stores.report("two")
        assert (second.attempt.number, second.attempt.epoch) == (2, 2)

        late = checkpoint(first.job.uid, 1, 80)
        standing = await stores.hold("one", first, checkpoints=(late,))
        assert standing.attempt is None  # superseded: it is told to be idle
        await stores.end("one", first, "COMPLETED", checkpoints=(late,))
        view = await stores.job(first.job.uid)
        assert (view.job.state, view.job.epoch, view.last_checkpoint) == (JobState.STARTING, 2, None)

    with_stores(test)


def test_late_checkpoint_of_the_newest_epoch_is_recorded(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        await stores.hold("one", standing)
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        await stores.end("one", standing, "FAILED", checkpoints=(checkpoint(uid, 1, 80),))
        view = await stores.job(uid)
        assert (view.job.state, view.last_checkpoint.key.iteration) == (JobState.QUEUED, 80)

    with_stores(test)


def test_next_attempt_waits_for_adoption_and_goes_on_from_what_was_found(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        await stores.hold("one", standing, checkpoints=(checkpoint(uid, 1, 10),))
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        assert (await stores.report("two")).attempt is None  # held
        await stores.adopt_all(**{uid: [checkpoint(uid, 1, 10), checkpoint(uid, 1, 20)]})
        second = await stores.report("two")
        assert (second.attempt.from_step, second.resume.key.iteration) == (21, 20)
        assert await stores.count("checkpoints") == 2

    with_stores(test)


def test_checkpoint_is_recorded_once_and_the_newest_best_is_the_best(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        for iteration in (10, 20, 20, 30):
            best = iteration < 30
            await stores.hold("one", standing, checkpoints=(checkpoint(uid, 1, iteration, best=best),))
        await stores.end("one", standing, "COMPLETED", checkpoints=(checkpoint(uid, 1, 40, cause="FINAL"),))
        page = await stores.checkpoints.page("digits", "first", before=None, limit=3)
        assert [each.key.iteration for each in page] == [40, 30, 20]
        page = await stores.checkpoints.page("digits", "first", before=(1, 20), limit=3)
        assert [each.key.iteration for each in page] == [10]
        found = [await stores.checkpoints.get("digits", "first", name) for name in ("last", "best", "final", "1-10")]
        assert [each.key.iteration for each in found] == [40, 20, 40, 10]
        assert (await stores.facts()).count("checkpoint-saved") == 4

    with_stores(test)


def test_lease_is_renewed_by_calls_and_runs_out_without(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        for _ in range(5):
            stores.clock.pass_seconds(20)
            await stores.hold("one", standing)
            assert await stores.upkeep.renew_and_expire([]) == []
        renewal = Renewal(runner_id="one", age_us=1_000_000, key=key_of(standing), progress=Progress(iteration=7))
        stores.clock.pass_seconds(20)
        assert await stores.upkeep.renew_and_expire([renewal]) == []
        assert (await stores.job(standing.job.uid)).progress.iteration == 7
        stores.clock.pass_seconds(25)
        assert len(await stores.upkeep.renew_and_expire([])) == 1
        assert (await stores.facts())[-2:] == ["attempt-lost", "lost"]

    with_stores(test)


def test_a_job_that_ends_with_a_lost_attempt_is_told_to_have_ended_last(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        await stores.hold("one", await stores.report("one"))
        await stores.stop(uid)
        await stores.report("one")  # it comes back without its attempt
        assert (await stores.job(uid)).job.state is JobState.STOPPED
        assert (await stores.facts())[-3:] == ["stopping", "attempt-lost", "ended"]

    with_stores(test)


def test_renewal_of_a_closed_attempt_changes_nothing(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.end("one", standing, "COMPLETED")
        renewal = Renewal(runner_id="one", age_us=0, key=key_of(standing), progress=Progress(iteration=99))
        await stores.upkeep.renew_and_expire([renewal])
        assert (await stores.job(standing.job.uid)).progress.iteration == 0

    with_stores(test)


def test_all_clocks_restart_with_the_scheduler(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        await stores.stop(standing.job.uid, grace_seconds=60.0)
        stores.clock.pass_seconds(3_600)
        await stores.upkeep.restart_clocks()
        assert await stores.upkeep.renew_and_expire([]) == []
        stores.clock.pass_seconds(26)
        assert len(await stores.upkeep.renew_and_expire([])) == 1

    with_stores(test)


def test_job_fails_after_three_lost_runners(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        for number in range(3):
            assert standing.attempt is not None, number
            stores.clock.pass_seconds(26)
            await stores.upkeep.renew_and_expire([])
            await stores.adopt_all()
            standing = await stores.report(f"next-{number}")
        job = (await stores.job(uid)).job
        assert (job.state, job.reason, job.attempts) == (JobState.FAILED, JobReason.RUNNER_LOST, 3)

    with_stores(test)


def test_queued_job_stops_at_once_and_leaves_the_queue(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        await stores.stop(uid)
        assert (await stores.job(uid)).job.state is JobState.STOPPED
        assert (await stores.report("one")).attempt is None

    with_stores(test)


def test_stop_reaches_the_runner_and_its_checkpoint_is_kept(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        await stores.hold("one", standing)
        woken = []
        stores.database.after_commit.append(lambda committed: woken.extend(committed.runners))
        await stores.stop(uid)
        assert woken == ["one"]
        standing = await stores.hold("one", standing, AttemptPhase.CHECKPOINTING, stopping=StopMode.CHECKPOINT)
        assert standing.job.state is JobState.STOPPING
        await stores.end("one", standing, "STOPPED", checkpoints=(checkpoint(uid, 1, 42, cause="STOP"),))
        view = await stores.job(uid)
        assert (view.job.state, view.job.reason, view.job.reason_message) == (
            JobState.STOPPED,
            JobReason.USER_STOP,
            "enough",
        )
        assert view.last_checkpoint.key.iteration == 42

    with_stores(test)


def test_stop_of_an_assignment_that_the_runner_never_had_ends_the_job(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.stop(standing.job.uid)
        assert (await stores.report("one")).attempt is None
        assert (await stores.job(standing.job.uid)).job.state is JobState.STOPPED

    with_stores(test)


@pytest.mark.parametrize("how", ["lease", "session", "idle"])
def test_lost_attempt_of_a_stopping_job_means_stopped(with_stores, how):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        await stores.stop(standing.job.uid, grace_seconds=3_000.0)
        if how == "lease":
            stores.clock.pass_seconds(26)
            await stores.upkeep.renew_and_expire([])
        else:
            await stores.report("one", session="second" if how == "session" else "")
        view = await stores.job(standing.job.uid)
        assert (view.job.state, view.attempts[0].outcome) == (JobState.STOPPED, AttemptOutcome.LOST)

    with_stores(test)


def test_end_of_the_grace_period_stops_a_job_whose_runner_does_not(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        await stores.stop(standing.job.uid, grace_seconds=15.0, margin_seconds=5.0)
        stores.clock.pass_seconds(19)
        await stores.hold("one", standing, AttemptPhase.CHECKPOINTING, stopping=StopMode.CHECKPOINT)
        assert await stores.upkeep.renew_and_expire([]) == []
        stores.clock.pass_seconds(2)
        assert len(await stores.upkeep.renew_and_expire([])) == 1
        assert (await stores.job(standing.job.uid)).job.state is JobState.STOPPED
        standing = await stores.hold("one", standing)
        assert standing.attempt is None  # the runner is told that it is superseded

    with_stores(test)


def test_upload_may_take_longer_than_the_grace_period_while_it_moves(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        await stores.hold("one", standing)
        await stores.stop(standing.job.uid, grace_seconds=15.0, margin_seconds=5.0)
        for done in range(20):
            stores.clock.pass_seconds(20)
            progress = Progress(phase="uploading", done=done + 1, total=100)
            await stores.hold("one", standing, AttemptPhase.UPLOADING, progress=progress)
            assert await stores.upkeep.renew_and_expire([]) == []
        for _ in range(20):  # more than uploading_minutes_max without progress
            stores.clock.pass_seconds(20)
            await stores.hold("one", standing, AttemptPhase.UPLOADING, progress=progress)
        assert len(await stores.upkeep.renew_and_expire([])) == 1

    with_stores(test)


def test_start_without_progress_fails_its_attempt_after_the_deadline(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        for done in range(60):  # twenty minutes of download, which moves
            stores.clock.pass_seconds(20)
            await stores.hold("one", standing, AttemptPhase.DOWNLOADING, progress=Progress(done=done, total=90))
            assert await stores.upkeep.renew_and_expire([]) == []
        for _ in range(31):  # ten minutes, which does not
            stores.clock.pass_seconds(20)
            await stores.hold("one", standing, AttemptPhase.DOWNLOADING, progress=Progress(done=59, total=90))
        await stores.upkeep.renew_and_expire([])
        view = await stores.job(standing.job.uid)
        assert (view.job.state, view.job.faults) == (JobState.QUEUED, 1)
        assert (view.attempts[0].outcome, view.attempts[0].reason) == (AttemptOutcome.FAILED, JobReason.START_DEADLINE)

    with_stores(test)


def test_drained_runner_hands_its_job_back_and_gets_no_other(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        await stores.hold("one", standing)
        await drain(stores, "one")
        await stores.end("one", standing, "HANDED_BACK", checkpoints=(checkpoint(uid, 1, 5, cause="HAND_BACK"),))
        await stores.adopt_all()
        assert (await stores.report("one")).attempt is None
        view = await stores.job(uid)
        assert (view.job.state, view.job.lost_attempts) == (JobState.QUEUED, 0)
        assert (await stores.report("two")).attempt.from_step == 6
        assert "drained" in await stores.facts()

    with_stores(test)


def test_new_session_of_a_drained_runner_takes_jobs_again(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one")
        await drain(stores, "one")
        await stores.submit("digits")
        assert (await stores.report("one")).attempt is None
        assert (await stores.report("one", session="second")).attempt is not None

    with_stores(test)


def test_draining_runner_that_never_had_its_assignment_hands_it_back(with_stores):
    async def test(stores):
        standing = await claimed(stores)
        assert (await stores.report("one", draining=True)).attempt is None
        view = await stores.job(standing.job.uid)
        assert view.attempts[0].outcome is AttemptOutcome.HANDED_BACK

    with_stores(test)


def test_close_of_an_unknown_attempt_is_no_error(with_stores):
    async def test(stores):
        key = AttemptKey(job_uid="nobody", epoch=3)
        closed = ClosedReport(key=key, number=1, outcome=AttemptOutcome.COMPLETED)
        assert (await stores.report("one", closed=(closed,))).attempt is None

    with_stores(test)


def test_silent_runner_is_lost_and_joins_again(with_stores):
    async def test(stores):
        await stores.report("one")
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        [view] = await stores.runners.page(after="", limit=10)
        assert view.runner.lost
        await stores.report("one")
        [view] = await stores.runners.page(after="", limit=10)
        assert not view.runner.lost
        assert await stores.facts() == ["joined", "lost", "joined"]

    with_stores(test)


def test_resumed_job_keeps_dataset_and_fingerprint_and_starts_at_the_checkpoint(with_stores, checkpoint):
    async def test(stores):
        standing = await claimed(stores)
        uid = standing.job.uid
        await stores.hold("one", standing, dataset_fingerprint="f1")
        await stores.end("one", standing, "COMPLETED", checkpoints=(checkpoint(uid, 1, 60),))
        job, found = await stores.jobs.resumable("digits", "first", "")
        source = ResumeSource(job_name=job.name, checkpoint_name=f"{job.name}/checkpoints/1-60", key=found.key)
        new_uid = await stores.submit("digits", "second", source=source)
        standing = await stores.report("one")
        assert standing.job.uid == new_uid
        assert standing.job.training_dataset == job.training_dataset
        assert (standing.job.dataset_fingerprint, standing.attempt.from_step) == ("f1", 61)
        assert standing.resume.uri == found.uri

    with_stores(test)


def test_runner_is_told_once_when_a_new_session_takes_over(with_stores):
    async def test(stores):
        await stores.report("one")
        woken = []
        stores.database.after_commit.append(lambda committed: woken.extend(committed.runners))
        standing = await stores.report("one", session="second")
        assert woken == ["one"]
        assert standing.runner.replaced == ("one-first",)
        assert replace(standing.runner, replaced=()).session == "second"

    with_stores(test)
