"""A runner's side of the protocol, as the machine plays it: what it holds, what it has said, what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from services.chassis.errors import Aborted, Reason, Unavailable
from services.scheduler.desk import Answer
from services.scheduler.domain.job import AttemptPhase, Checkpoint, Progress, StopMode
from services.scheduler.domain.lease import (
    ActiveReport,
    ClosedReport,
    Desired,
    Report,
    RunAttempt,
    StopAttempt,
)
from services.scheduler.domain.placement import Capabilities


class Call(Struct, frozen=True, kw_only=True):
    """A call that was sent. `ends`: why it must end without an answer, where another has taken its place."""

    report: Report
    task: asyncio.Task[Answer]
    ends: Reason | None = None


@dataclass(kw_only=True)
class Agent:
    """One runner. `held` is the attempt that it works on, as its next report says it."""

    runner_id: str
    capabilities: Capabilities
    sessions: int = 1
    is_known: bool = False
    """Whether the scheduler has answered this session."""
    sequence: int = 0
    draining: bool = False
    held: ActiveReport | None = None
    closed: tuple[ClosedReport, ...] = ()
    call: Call | None = None
    over: list[Call] = field(default_factory=list)
    sent: list[Report] = field(default_factory=list)
    told: Desired | None = None
    superseded: ActiveReport | None = None
    """What it held before the last answer said that nobody wants it."""

    @property
    def session(self) -> str:
        return f"{self.runner_id}-{self.sessions}"

    def send(
        self, synchronize: Callable[[Report], Coroutine[Any, Any, Answer]], start: Callable, *, wait_seconds: float
    ) -> None:
        """Say how it is. A call that still waits is superseded by this one."""
        self.sequence += 1
        report = Report(
            runner_id=self.runner_id,
            session=self.session,
            sequence=self.sequence,
            capabilities=self.capabilities,
            active=self.held,
            closed=self.closed,
            draining=self.draining,
            wait_seconds=wait_seconds,
        )
        self._leave(Reason.CALL_SUPERSEDED)
        self.call = Call(report=report, task=start(synchronize(report)))
        self.sent.append(report)

    def hear(self, *, faults: bool) -> None:
        """Act on the answer, if it is there. `faults`: the database may have failed."""
        for call in [each for each in self.over if each.task.done()]:
            self.over.remove(call)
            is_replaced = call.ends is Reason.CALL_SUPERSEDED or self.is_known
            _check_end(call, faults=faults or not is_replaced)
        if self.call is None or not self.call.task.done():
            return
        call, self.call, self.superseded = self.call, None, None
        if call.task.cancelled():
            return
        try:
            answer = call.task.result()
        except Unavailable:
            if not faults:
                raise
            return
        self.told, self.is_known = answer.desired, True
        if answer.standing.applied:
            self._acknowledge(call.report)
        self._act(call.report, answer)

    def cut(self) -> None:
        """The connection is gone: neither side hears of the other."""
        for call in [*self.over, *([self.call] if self.call is not None else [])]:
            call.task.cancel()
        self.call, self.over = None, []

    def restart(self, *, cut: bool) -> None:
        """A new agent. The old one is dead, or (not `cut`) goes on calling from another machine."""
        if cut:
            self.cut()
        self._leave(Reason.SESSION_REPLACED)
        self.sessions += 1
        self.held, self.draining, self.is_known = None, False, False

    def work(self, phase: AttemptPhase, iteration: int, checkpoints: tuple[Checkpoint, ...]) -> None:
        """Get further with what it holds."""
        assert self.held is not None, "who works holds something"
        reported = (*self.held.checkpoints, *checkpoints)
        self.held = replace(self.held, phase=phase, progress=Progress(iteration=iteration), checkpoints=reported)

    def end(self, **closed: Any) -> None:
        """End what it holds; said until it is acknowledged."""
        held, self.held = self.held, None
        assert held is not None, "who ends something holds it"
        report = ClosedReport(key=held.key, number=held.number, checkpoints=held.checkpoints, **closed)
        self.closed = (*self.closed, report)

    def _acknowledge(self, report: Report) -> None:
        self.closed = tuple(each for each in self.closed if each not in report.closed)
        if self.held is not None and report.active is not None and self.held.key == report.active.key:
            left = tuple(each for each in self.held.checkpoints if each not in report.active.checkpoints)
            self.held = replace(self.held, checkpoints=left)

    def _act(self, report: Report, answer: Answer) -> None:
        wanted, said = answer.desired, report.active.key if report.active is not None else None
        if said != (self.held.key if self.held is not None else None):
            return  # it has got further since: the next call says how it is
        if isinstance(wanted, StopAttempt) and said == wanted.key:
            assert self.held is not None, "it holds what it said"
            self.held = replace(self.held, stopping=StopMode(max(self.held.stopping, wanted.mode)))
        elif said is not None and (not isinstance(wanted, RunAttempt) or wanted.key != said):
            self.superseded, self.held = self.held, None
        elif said is None and isinstance(wanted, RunAttempt):
            assert answer.standing.attempt is not None, "who should run has an attempt"
            number = answer.standing.attempt.number
            self.held = ActiveReport(key=wanted.key, number=number, phase=AttemptPhase.DOWNLOADING)

    def _leave(self, ends: Reason) -> None:
        if self.call is not None:
            self.over.append(replace(self.call, ends=ends))
            self.call = None


def _check_end(call: Call, *, faults: bool) -> None:
    """A call that another has taken the place of ends with just that. `faults`: or with anything else."""
    error = None if call.task.cancelled() else call.task.exception()
    if faults or call.task.cancelled():
        return
    assert error is not None, "a call of which another has taken the place was answered"
    if not isinstance(error, Aborted):
        raise error
    assert error.reason is call.ends, f"{error.reason} instead of {call.ends}"
