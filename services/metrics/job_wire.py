"""The scheduler's jobs on the wire: what is read of them, and their configurations field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any

from google.protobuf.message import Message
from sihlai.scheduler.v1 import job_pb2, job_service_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.job import AttemptFacts, JobFacts

ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
JOB_NAME = re.compile(rf"projects/{ID}/jobs/{ID}")
ENDED_STATES = frozenset({job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_FAILED})
GIVEN_BACK = frozenset({job_pb2.ATTEMPT_OUTCOME_STOPPED, job_pb2.ATTEMPT_OUTCOME_HANDED_BACK})
"""Outcomes that an attempt may have without ever having begun."""
ACTIVE_STATES = (
    job_pb2.JOB_STATE_QUEUED,
    job_pb2.JOB_STATE_STARTING,
    job_pb2.JOB_STATE_RUNNING,
    job_pb2.JOB_STATE_STOPPING,
)
ACTIVE_JOBS = job_service_pb2.JobFilter(states=ACTIVE_STATES)
SECRET_FIELDS = frozenset({"credentials", "credentials_stored"})


def require_job_names(names: Sequence[str], *, field: str) -> None:
    """Raise InvalidArgument for texts that cannot name jobs."""
    problems = [
        Violation(
            field=field if len(names) == 1 else f"{field}[{index}]",
            description=f"is {name!r}, but a job's name is projects/{{project}}/jobs/{{job}}",
        )
        for index, name in enumerate(names)
        if not JOB_NAME.fullmatch(name)
    ]
    if problems:
        raise InvalidArgument(problems)


def job_facts_from_proto(job: job_pb2.Job) -> JobFacts:
    """What metrics needs to know."""
    return JobFacts(
        name=job.name,
        uid=job.uid,
        state=job.state,
        ended=job.state in ENDED_STATES,
        ended_at=job.end_time.ToDatetime(UTC) if job.HasField("end_time") else None,
        attempts=tuple(_attempt_facts_from_proto(attempt) for attempt in job.attempts),
    )


def _attempt_facts_from_proto(attempt: job_pb2.Attempt) -> AttemptFacts:
    return AttemptFacts(
        number=attempt.number,
        ended=attempt.outcome != job_pb2.ATTEMPT_OUTCOME_UNSPECIFIED,
        ended_at=attempt.end_time.ToDatetime(UTC) if attempt.HasField("end_time") else None,
        began=attempt.HasField("run_time") or attempt.outcome not in GIVEN_BACK,
    )


def configuration_from_proto(job: job_pb2.Job) -> dict[str, str]:
    """Every field that is set, or that has no presence, as JSON by path; those of the specification without prefix."""
    fields = dict(_fields(job.spec, ""))
    for name in ("training_dataset", "validation_dataset"):
        if job.HasField(name):
            fields |= dict(_fields(getattr(job, name), f"{name}."))
    return fields


def _fields(message: Message, prefix: str) -> Iterator[tuple[str, str]]:
    for field in message.DESCRIPTOR.fields:
        if field.name in SECRET_FIELDS:
            continue
        path = prefix + field.name
        value: Any = getattr(message, field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            yield from ((f"{path}.{key}", json.dumps(value[key])) for key in sorted(value))
        elif field.is_repeated and field.message_type is not None:
            for index, part in enumerate(value):
                yield from _fields(part, f"{path}[{index}].")
        elif field.is_repeated:
            yield path, json.dumps([_plain(field, part) for part in value])
        elif field.has_presence and not message.HasField(field.name):
            continue
        elif field.message_type is not None:
            # A message without fields still says something: which one of a oneof is meant.
            yield from list(_fields(value, f"{path}.")) or [(path, "{}")]
        else:
            yield path, json.dumps(_plain(field, value))


def _plain(field: Any, value: Any) -> Any:
    if field.enum_type is None or value not in field.enum_type.values_by_number:
        return value
    return field.enum_type.values_by_number[value].name
