"""Facts as events of the bus."""

from __future__ import annotations

from sihlai.event.v1 import event_pb2
from sihlai.scheduler.v1 import job_pb2

from services.scheduler.domain import fact as facts
from services.scheduler.domain.fact import EncodedFact, Fact, JobFact
from services.scheduler.wire.checkpoint import checkpoint_to_proto
from services.scheduler.wire.times import set_timestamp

ROOT = "sihlai.v1"
EVENT_MESSAGE_CHARACTERS_MAX = 2_000
"""The end of a log belongs to the job; an event carries as much of it as helps to see what happened."""


def fact_to_event(fact: Fact, *, event_id: str, time_us: int, trace_parent: str) -> EncodedFact:
    """The event of a fact, with its subject."""
    event = event_pb2.Event(id=event_id, traceparent=trace_parent)
    set_timestamp(event.time, time_us)
    event.subject = subject = f"{_prefix(fact)}.{_fill(event, fact)}"
    return EncodedFact(subject=subject, payload=event.SerializeToString())


def _prefix(fact: Fact) -> str:
    if isinstance(fact, JobFact):
        _, project_id, _, job_id = fact.job_name.split("/")
        return f"{ROOT}.job.{project_id}.{job_id}"
    return f"{ROOT}.runner.{fact.runner_id}"


def _fill(event: event_pb2.Event, fact: Fact) -> str:
    """Write the fact into the event; return the last word of its subject. In place: submits wait for it."""
    match fact:
        case facts.JobSubmitted():
            event.job_submitted.creator = fact.creator
            return _of_job(event.job_submitted.job, fact, "submitted")
        case facts.JobStarted():
            event.job_started.attempt = fact.attempt
            event.job_started.epoch = fact.epoch
            event.job_started.runner = f"runners/{fact.runner_id}"
            return _of_job(event.job_started.job, fact, "started")
        case facts.JobRunning():
            event.job_running.attempt = fact.attempt
            return _of_job(event.job_running.job, fact, "running")
        case facts.JobStopping():
            event.job_stopping.mode = job_pb2.StopMode.ValueType(fact.mode)
            return _of_job(event.job_stopping.job, fact, "stopping")
        case facts.JobEnded():
            event.job_ended.state = job_pb2.JobState.Value(f"JOB_STATE_{fact.state}")
            event.job_ended.reason = job_pb2.JobReason.Value(f"JOB_REASON_{fact.reason}")
            event.job_ended.message = fact.message[:EVENT_MESSAGE_CHARACTERS_MAX]
            return _of_job(event.job_ended.job, fact, "ended")
        case facts.AttemptLost():
            event.attempt_lost.attempt = fact.attempt
            event.attempt_lost.runner = f"runners/{fact.runner_id}"
            event.attempt_lost.outcome = job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{fact.outcome}")
            return _of_job(event.attempt_lost.job, fact, "attempt-lost")
        case facts.CheckpointSaved():
            event.checkpoint_saved.checkpoint.CopyFrom(checkpoint_to_proto(fact.checkpoint, fact.job_name))
            return _of_job(event.checkpoint_saved.job, fact, "checkpoint-saved")
        case facts.JobDeleted():
            return _of_job(event.job_deleted.job, fact, "deleted")
        case facts.RunnerJoined():
            event.runner_joined.runner = f"runners/{fact.runner_id}"
            return "joined"
        case facts.RunnerDrained():
            event.runner_drained.runner = f"runners/{fact.runner_id}"
            return "drained"
        case facts.RunnerPutAside():
            event.runner_put_aside.runner = f"runners/{fact.runner_id}"
            event.runner_put_aside.reason = fact.reason
            set_timestamp(event.runner_put_aside.until_time, fact.until_us)
            return "put-aside"
        case facts.RunnerLost():
            event.runner_lost.runner = f"runners/{fact.runner_id}"
            return "lost"
    raise AssertionError(f"{type(fact).__name__} has no event")


def _of_job(job: event_pb2.JobReference, fact: JobFact, word: str) -> str:
    job.name, job.uid = fact.job_name, fact.job_uid
    return word
