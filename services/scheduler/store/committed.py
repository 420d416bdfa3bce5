"""What a transaction, and each unit of it, has done: written where it commits, and told to those who wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Unavailable
from services.scheduler.domain.job import Attempt, Job
from services.scheduler.domain.lease import AttemptKey, Runner
from services.scheduler.store.statement import Statement, Values

Refused = Callable[[DBAPIError | Unavailable], Exception]
"""What the unit's caller gets where its row could not be written."""
Row = tuple[Statement, Values, Refused | None]


class Given(Struct, frozen=True, kw_only=True):
    """An attempt that a transaction has given to a runner, which is as it is after that."""

    runner: Runner
    job: Job
    attempt: Attempt


class Stopping(Struct, frozen=True, kw_only=True):
    """An attempt that goes on, and its job, which was asked to stop."""

    job: Job
    attempt: Attempt


@dataclass(kw_only=True)
class Committed:
    """What a transaction changed, for those who wait. `adoptions`: attempts whose checkpoints are to be looked for."""

    number: int = 0
    """Of the transaction: later ones have higher numbers."""
    revision: int | None = None
    runners: list[str] = field(default_factory=list)
    events: int = 0
    adoptions: list[AttemptKey] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    stopping: list[Stopping] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    """Uids of jobs that are further than before, and have no new revision for it."""
    late: list[str] = field(default_factory=list)
    """Uids of jobs of which a runner reported an attempt that had ended, or is not there."""
    projects: set[str] = field(default_factory=set)
    """Ids of projects that were changed or deleted."""

    def add(self, part: Part) -> None:
        """What one unit has done is among it."""
        self.events += len(part.events)
        self.runners += part.runners
        self.adoptions += part.adoptions
        self.given += part.given
        self.stopping += part.stopping
        self.moved += part.moved
        self.late += part.late


@dataclass(kw_only=True)
class Part:
    """What one unit of a transaction has done: nothing, where `error` is set."""

    rows: list[Row] = field(default_factory=list)
    """To be written."""
    events: list[Values] = field(default_factory=list)
    answers: list[Values] = field(default_factory=list)
    runners: list[str] = field(default_factory=list)
    adoptions: list[AttemptKey] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    stopping: list[Stopping] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    writes_at_once: bool = False
    """It has a savepoint of its own."""
    error: BaseException | None = None

    @property
    def lists(self) -> tuple[list[Any], ...]:
        """All that is collected."""
        collected = self.runners, self.adoptions, self.given, self.stopping, self.moved, self.late
        return self.rows, self.events, self.answers, *collected

    def fail(self, error: BaseException) -> None:
        """Nothing of it holds."""
        self.error = error
        for each in self.lists:
            each.clear()
