"""The transition table and what the domain decides."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from services.chassis.errors import FailedPrecondition, Reason
from services.scheduler.domain import ending
from services.scheduler.domain import job as domain
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.job import (
    ACTIVE,
    FINAL,
    TRANSITIONS,
    AttemptOutcome,
    AttemptPhase,
    CheckpointKey,
    Event,
    Job,
    JobReason,
    JobState,
    Progress,
    StopMode,
    moved,
)
from services.scheduler.domain.placement import Needs
from services.scheduler.domain.project import DatasetSource

NOW_US = 1_800_000_000_000_000
LIMITS = RetryLimits(
    lost_attempts_max=3,
    faults_max=3,
    hand_backs_max=12,
    retry_seconds_first=10.0,
    retry_seconds_max=30.0,
    avoid_seconds=300.0,
)

LEGAL = {
    (JobState.QUEUED, Event.CLAIMED): JobState.STARTING,
    (JobState.QUEUED, Event.REATTACHED): JobState.STARTING,
    (JobState.QUEUED, Event.STOP_ASKED): JobState.STOPPED,
    (JobState.STARTING, Event.STEPPED): JobState.RUNNING,
    (JobState.STARTING, Event.STOP_ASKED): JobState.STOPPING,
    (JobState.STARTING, Event.COMPLETED): JobState.COMPLETED,
    (JobState.STARTING, Event.FAILED): JobState.FAILED,
    (JobState.STARTING, Event.RELEASED): JobState.QUEUED,
    (JobState.RUNNING, Event.STOP_ASKED): JobState.STOPPING,
    (JobState.RUNNING, Event.COMPLETED): JobState.COMPLETED,
    (JobState.RUNNING, Event.FAILED): JobState.FAILED,
    (JobState.RUNNING, Event.RELEASED): JobState.QUEUED,
    (JobState.STOPPING, Event.STOP_ASKED): JobState.STOPPING,
    (JobState.STOPPING, Event.COMPLETED): JobState.COMPLETED,
    (JobState.STOPPING, Event.STOPPED): JobState.STOPPED,
    (JobState.STOPPING, Event.FAILED): JobState.FAILED,
}
ALL = [(state, event) for state in JobState for event in Event]


def job_in(state: JobState = JobState.QUEUED, **fields: object) -> Job:
    values = {
        "uid": "uid",
        "project_uid": "project",
        "project_id": "digits",
        "job_id": "first",
        "sequence": 1,
        "creator": "somebody",
        "spec": b"",
        "priority": 0,
        "needs": Needs(),
        "iterations_max": 100,
        "training_dataset": DatasetSource(uri="file:///data"),
        "validation_dataset": None,
        "create_time_us": NOW_US,
        "state": state,
        **fields,
    }
    return Job(**values)  # type: ignore[arg-type]


def claimed(job: Job):
    return domain.claim(job, runner_id="one", session="s", software_version="1", now_us=NOW_US, lease_seconds=25.0)


def closed(job: Job, attempt, outcome: AttemptOutcome, reason: JobReason = JobReason.UNSPECIFIED):
    return ending.close(job, attempt, outcome=outcome, reason=reason, message="why", now_us=NOW_US + 5, limits=LIMITS)


def stopped(job: Job, mode: StopMode = StopMode.CHECKPOINT) -> Job:
    return domain.ask_stop(job, mode=mode, grace_seconds=60.0, margin_seconds=10.0, reason="enough", now_us=NOW_US)


@pytest.mark.parametrize(("state", "event"), LEGAL)
def test_legal_transition_leads_where_the_table_says(state, event):
    assert moved(job_in(state), event).state is LEGAL[state, event]


@pytest.mark.parametrize(("state", "event"), [pair for pair in ALL if pair not in LEGAL])
def test_illegal_transition_is_refused_with_what_was_wanted(state, event):
    with pytest.raises(FailedPrecondition) as refused:
        moved(job_in(state), event)
    assert refused.value.reason is Reason.JOB_STATE
    assert refused.value.metadata["state"] == state.value


def test_table_covers_every_state_and_final_states_are_never_left():
    assert set(TRANSITIONS) == set(JobState)
    assert all(not TRANSITIONS[state] for state in FINAL)
    assert FINAL | ACTIVE | {JobState.QUEUED} == set(JobState)


def test_claim_counts_attempt_and_epoch_and_starts_fresh_without_a_checkpoint():
    job, attempt = claimed(job_in(attempts=2, epoch=7))
    assert (job.state, job.attempts, job.epoch) == (JobState.STARTING, 3, 8)
    assert (attempt.number, attempt.epoch, attempt.from_step, attempt.resume) == (3, 8, 0, None)
    assert attempt.lease_expire_time_us == NOW_US + 25_000_000


def test_claim_goes_on_from_the_last_checkpoint():
    last = CheckpointKey(job_uid="uid", epoch=1, iteration=40)
    _, attempt = claimed(job_in(last_checkpoint=last, epoch=1, attempts=1))
    assert (attempt.resume, attempt.from_step) == (last, 41)


def test_first_claim_of_a_resumed_job_goes_on_from_its_source():
    key = CheckpointKey(job_uid="other", epoch=2, iteration=70)
    source = domain.ResumeSource(job_name="projects/digits/jobs/other", checkpoint_name="2-70", key=key)
    job, attempt = claimed(job_in(source=source))
    assert (attempt.resume, attempt.from_step, job.progress.iteration) == (key, 71, 70)


def test_stop_of_a_queued_job_ends_it_at_once():
    job = stopped(job_in())
    assert (job.state, job.reason, job.reason_message) == (JobState.STOPPED, JobReason.USER_STOP, "enough")
    assert job.end_time_us == NOW_US


@pytest.mark.parametrize("state", sorted(FINAL))
def test_stop_of_an_ended_job_changes_nothing(state):
    job = job_in(state)
    assert stopped(job, StopMode.IMMEDIATE) is job


def test_second_checkpoint_stop_changes_nothing_and_immediate_escalates():
    job, _ = claimed(job_in())
    first = stopped(job)
    assert (first.state, first.stop, first.stop_deadline_us) == (
        JobState.STOPPING,
        StopMode.CHECKPOINT,
        NOW_US + 70_000_000,
    )
    assert stopped(first) is first
    harder = stopped(first, StopMode.IMMEDIATE)
    assert (harder.stop, harder.stop_deadline_us) == (StopMode.IMMEDIATE, NOW_US + 10_000_000)
    assert stopped(harder, StopMode.CHECKPOINT) is harder


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (AttemptPhase.DOWNLOADING, JobState.STARTING),
        (AttemptPhase.PREPARING, JobState.STARTING),
        (AttemptPhase.TRAINING, JobState.RUNNING),
        (AttemptPhase.CHECKPOINTING, JobState.RUNNING),
        (AttemptPhase.UPLOADING, JobState.RUNNING),
    ],
)
def test_job_runs_from_the_first_step_on(phase, state):
    job, attempt = domain.observe(*claimed(job_in()), phase=phase, progress=Progress(), now_us=NOW_US + 1)
    assert job.state is state
    assert attempt.acknowledged
    assert (attempt.run_time_us is not None) is (state is JobState.RUNNING)


def test_stopping_job_stays_stopping_when_the_first_step_is_reported():
    job, attempt = claimed(job_in())
    job, _ = domain.observe(stopped(job), attempt, phase=AttemptPhase.TRAINING, progress=Progress(), now_us=NOW_US)
    assert job.state is JobState.STOPPING


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (AttemptOutcome.COMPLETED, JobState.COMPLETED, JobReason.LIMIT_REACHED),
        (AttemptOutcome.FAILED, JobState.FAILED, JobReason.TRAINER_ERROR),
        (AttemptOutcome.LOST, JobState.QUEUED, JobReason.UNSPECIFIED),
        (AttemptOutcome.HANDED_BACK, JobState.QUEUED, JobReason.UNSPECIFIED),
    ],
)
def test_end_of_an_attempt_decides_the_job(outcome, state, reason):
    given = reason if state in FINAL else JobReason.RUNNER_LOST
    job, attempt = closed(*claimed(job_in()), outcome, given)
    assert (job.state, job.reason) == (state, reason)
    assert (attempt.outcome, attempt.active) == (outcome, False)
    assert job.held is (state is JobState.QUEUED)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (AttemptOutcome.COMPLETED, JobState.COMPLETED),
        (AttemptOutcome.STOPPED, JobState.STOPPED),
        (AttemptOutcome.FAILED, JobState.FAILED),
        (AttemptOutcome.LOST, JobState.STOPPED),
        (AttemptOutcome.HANDED_BACK, JobState.STOPPED),
    ],
)
def test_stop_is_never_forgotten_however_the_attempt_ends(outcome, state):
    job, attempt = claimed(job_in())
    job, _ = closed(stopped(job), attempt, outcome)
    assert job.state is state
    assert job.end_time_us is not None
    assert job.stop_deadline_us is None


def test_stop_that_nobody_asked_for_is_an_error_of_ours():
    job, attempt = closed(*claimed(job_in()), AttemptOutcome.STOPPED)
    assert (job.state, job.faults) == (JobState.QUEUED, 1)
    assert (attempt.outcome, attempt.reason) == (AttemptOutcome.FAILED, JobReason.INTERNAL)
    assert attempt.outcome is AttemptOutcome.FAILED


def lose_once(job: Job) -> Job:
    job, _ = closed(*claimed(replace(job, held=False)), AttemptOutcome.LOST, JobReason.RUNNER_LOST)
    return job


def test_job_fails_after_as_many_lost_attempts_in_a_row_as_are_allowed():
    twice = lose_once(lose_once(job_in()))
    assert (twice.state, twice.lost_attempts) == (JobState.QUEUED, 2)
    thrice = lose_once(twice)
    assert (thrice.state, thrice.reason) == (JobState.FAILED, JobReason.RUNNER_LOST)


def test_hand_back_does_not_count_as_a_lost_attempt():
    job = job_in()
    for _ in range(10):
        job, _ = closed(*claimed(replace(job, held=False)), AttemptOutcome.HANDED_BACK)
    assert (job.state, job.lost_attempts, job.faults, job.attempts) == (JobState.QUEUED, 0, 0, 10)


def test_hand_backs_in_a_row_have_an_end_and_a_checkpoint_begins_a_new_row():
    job, attempt = job_in(), None
    for number in range(12):
        job, attempt = claimed(replace(job, held=False))
        if number == 5:
            job = domain.record(job, CheckpointKey(job_uid="uid", epoch=attempt.epoch, iteration=10))
        job, _ = closed(job, attempt, AttemptOutcome.HANDED_BACK)
    assert job.state is JobState.QUEUED
    while job.state is JobState.QUEUED:
        job, _ = closed(*claimed(replace(job, held=False)), AttemptOutcome.HANDED_BACK)
    assert (job.state, job.reason, job.attempts) == (JobState.FAILED, JobReason.RUNNER_FAULT, 17)


@pytest.mark.parametrize(
    ("reason", "avoided"),
    [(JobReason.RUNNER_FAULT, ("one",)), (JobReason.STALLED, ("one",)), (JobReason.STORE_UNAVAILABLE, ())],
)
@pytest.mark.parametrize("outcome", [AttemptOutcome.FAILED, AttemptOutcome.HANDED_BACK])
def test_fault_of_a_runner_or_a_store_is_tried_again_later_and_a_runners_elsewhere(outcome, reason, avoided):
    job, _ = closed(*claimed(job_in()), outcome, reason)
    assert (job.state, job.faults, job.needs.avoided) == (JobState.QUEUED, 1, avoided)
    assert job.retry_time_us == NOW_US + 5 + 10_000_000
    assert job.avoid_until_us == (job.retry_time_us + 300_000_000 if avoided else None)
    assert not replace(job, held=False).ready
    again, _ = closed(*claimed(replace(job, held=False, retry_time_us=None)), outcome, reason)
    assert again.retry_time_us == NOW_US + 5 + 20_000_000
    ended, _ = closed(*claimed(replace(again, held=False, retry_time_us=None)), outcome, reason)
    assert (ended.state, ended.reason, ended.retry_time_us) == (JobState.FAILED, reason, None)


@pytest.mark.parametrize("reason", [JobReason.DATASET_ERROR, JobReason.OUT_OF_MEMORY, JobReason.TRAINER_ERROR])
def test_fault_of_the_user_ends_the_job(reason):
    job, _ = closed(*claimed(job_in()), AttemptOutcome.FAILED, reason)
    assert (job.state, job.reason) == (JobState.FAILED, reason)


def test_fault_of_a_runner_that_stops_a_job_means_stopped():
    job, attempt = claimed(job_in())
    job, _ = closed(stopped(job), attempt, AttemptOutcome.FAILED, JobReason.STORE_UNAVAILABLE)
    assert (job.state, job.reason) == (JobState.STOPPED, JobReason.USER_STOP)


def test_immediate_stop_during_the_last_upload_means_stopped_unless_the_model_is_there():
    job, attempt = claimed(job_in())
    asked = stopped(job, StopMode.IMMEDIATE)
    without, over = closed(asked, attempt, AttemptOutcome.COMPLETED, JobReason.LIMIT_REACHED)
    assert (without.state, over.outcome) == (JobState.STOPPED, AttemptOutcome.STOPPED)
    saved = domain.record(asked, CheckpointKey(job_uid="uid", epoch=attempt.epoch, iteration=100))
    assert closed(saved, attempt, AttemptOutcome.COMPLETED)[0].state is JobState.COMPLETED
    gentle = stopped(job, StopMode.CHECKPOINT)
    assert closed(gentle, attempt, AttemptOutcome.COMPLETED)[0].state is JobState.COMPLETED


def test_checkpoint_ends_a_row_of_faults_and_lets_the_runner_have_it_again():
    job, _ = closed(*claimed(job_in()), AttemptOutcome.FAILED, JobReason.RUNNER_FAULT)
    job, attempt = claimed(replace(job, held=False, retry_time_us=None))
    job = domain.record(job, CheckpointKey(job_uid="uid", epoch=attempt.epoch, iteration=10))
    assert (job.faults, job.needs.avoided) == (0, ())


def test_lost_attempt_is_taken_up_again_as_if_it_had_never_been_lost():
    before, attempt = claimed(job_in())
    job, lost = closed(before, attempt, AttemptOutcome.LOST, JobReason.RUNNER_LOST)
    assert domain.may_reattach(job, lost, runner_id="one", session="s")
    after, again = domain.reattach(job, lost, now_us=NOW_US, lease_seconds=25.0)
    assert (after.state, after.lost_attempts, after.held) == (JobState.STARTING, 0, False)
    assert again == attempt


def test_attempt_is_not_taken_up_again_once_somebody_else_could_have_its_job():
    job, lost = closed(*claimed(job_in()), AttemptOutcome.LOST, JobReason.RUNNER_LOST)
    who = {"runner_id": "one", "session": "s"}
    assert not domain.may_reattach(job, lost, runner_id="two", session="s")
    assert not domain.may_reattach(job, lost, runner_id="one", session="newer")
    assert not domain.may_reattach(stopped(job), lost, **who)
    newer, _ = claimed(replace(job, held=False))
    assert not domain.may_reattach(newer, lost, **who)
    failed = replace(lost, outcome=AttemptOutcome.FAILED)
    assert not domain.may_reattach(job, failed, **who)


def test_progress_that_survives_ends_a_row_of_lost_attempts():
    job = replace(lose_once(lose_once(job_in())), held=False)
    job, attempt = claimed(job)
    job = domain.record(job, CheckpointKey(job_uid="uid", epoch=attempt.epoch, iteration=10))
    assert job.lost_attempts == 0
    job, _ = closed(job, attempt, AttemptOutcome.LOST)
    assert job.state is JobState.QUEUED


def test_older_checkpoint_does_not_replace_a_newer_one():
    job, _ = claimed(job_in())
    newer = domain.record(job, CheckpointKey(job_uid="uid", epoch=1, iteration=20))
    assert domain.record(newer, CheckpointKey(job_uid="uid", epoch=1, iteration=10)) is newer
