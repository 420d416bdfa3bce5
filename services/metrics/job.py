"""What metrics needs to know of a job. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class AttemptFacts:
    """An attempt as the scheduler told it. `began` is false where it was stopped or handed back before its first step:
    then its runner may have written nothing."""

    number: int
    ended: bool
    ended_at: datetime | None
    began: bool


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """A job as the scheduler told it. `state` is the number of sihlai.scheduler.v1.JobState."""

    name: str
    uid: str
    state: int
    ended: bool
    ended_at: datetime | None
    attempts: tuple[AttemptFacts, ...]


@dataclass(frozen=True, kw_only=True)
class ConfiguredJob:
    """A job with its configuration: values as JSON, by path."""

    facts: JobFacts
    configuration: Mapping[str, str]
