"""Facts as events of the bus."""

from __future__ import annotations

from sihlai.event.v1 import event_pb2
from sihlai.scheduler.v1 import job_pb2

from services.scheduler.domain import fact as facts
from services.scheduler.domain.fact import EncodedFact, Fact, JobFact
from services.scheduler.wire.checkpoint import checkpoint_to_proto
from services.scheduler.wire.times import timestamp

ROOT = "sihlai.v1"
EVENT_MESSAGE_CHARACTERS_MAX = 2_000
"""The end of a log belongs to the job; an event carries as much of it as helps to see what happened."""


def fact_to_event(fact: Fact, *, event_id: str, time_us: int, trace_parent: str) -> EncodedFact:
    """The event of a fact, with its subject."""
    event = event_pb2.Event(id=event_id, time=timestamp(time_us), traceparent=trace_parent)
    word = _fill(event, fact)
    event.subject = f"{_prefix(fact)}.{word}"
    return EncodedFact(subject=event.subject, payload=event.SerializeToString())


def _prefix(fact: Fact) -> str:
    if isinstance(fact, JobFact):
        _, project_id, _, job_id = fact.job_name.split("/")
        return f"{ROOT}.job.{project_id}.{job_id}"
    return f"{ROOT}.runner.{fact.runner_id}"


def _fill(event: event_pb2.Event, fact: Fact) -> str:
    """Write the fact into the event; return the last word of its subject."""
    job = event_pb2.JobReference()
    if isinstance(fact, JobFact):
        job = event_pb2.JobReference(name=fact.job_name, uid=fact.job_uid)
    match fact:
        case facts.JobSubmitted():
            event.job_submitted.CopyFrom(event_pb2.JobSubmitted(job=job, creator=fact.creator))
            return "submitted"
        case facts.JobStarted():
            runner = f"runners/{fact.runner_id}"
            started = event_pb2.JobStarted(job=job, attempt=fact.attempt, epoch=fact.epoch, runner=runner)
            event.job_started.CopyFrom(started)
            return "started"
        case facts.JobRunning():
            event.job_running.CopyFrom(event_pb2.JobRunning(job=job, attempt=fact.attempt))
            return "running"
        case facts.JobStopping():
            event.job_stopping.CopyFrom(event_pb2.JobStopping(job=job, mode=job_pb2.StopMode.ValueType(fact.mode)))
            return "stopping"
        case facts.JobEnded():
            ended = event_pb2.JobEnded(
                job=job,
                state=job_pb2.JobState.Value(f"JOB_STATE_{fact.state}"),
                reason=job_pb2.JobReason.Value(f"JOB_REASON_{fact.reason}"),
                message=fact.message[:EVENT_MESSAGE_CHARACTERS_MAX],
            )
            event.job_ended.CopyFrom(ended)
            return "ended"
        case facts.AttemptLost():
            lost = event_pb2.AttemptLost(
                job=job,
                attempt=fact.attempt,
                runner=f"runners/{fact.runner_id}",
                outcome=job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{fact.outcome}"),
            )
            event.attempt_lost.CopyFrom(lost)
            return "attempt-lost"
        case facts.CheckpointSaved():
            saved = event_pb2.CheckpointSaved(job=job, checkpoint=checkpoint_to_proto(fact.checkpoint, fact.job_name))
            event.checkpoint_saved.CopyFrom(saved)
            return "checkpoint-saved"
        case facts.JobDeleted():
            event.job_deleted.CopyFrom(event_pb2.JobDeleted(job=job))
            return "deleted"
        case facts.RunnerJoined():
            event.runner_joined.CopyFrom(event_pb2.RunnerJoined(runner=f"runners/{fact.runner_id}"))
            return "joined"
        case facts.RunnerDrained():
            event.runner_drained.CopyFrom(event_pb2.RunnerDrained(runner=f"runners/{fact.runner_id}"))
            return "drained"
        case facts.RunnerPutAside():
            aside = event_pb2.RunnerPutAside(
                runner=f"runners/{fact.runner_id}", reason=fact.reason, until_time=timestamp(fact.until_us)
            )
            event.runner_put_aside.CopyFrom(aside)
            return "put-aside"
        case facts.RunnerLost():
            event.runner_lost.CopyFrom(event_pb2.RunnerLost(runner=f"runners/{fact.runner_id}"))
            return "lost"
    raise AssertionError(f"{type(fact).__name__} has no event")
