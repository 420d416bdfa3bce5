"""Where runners wait: each call of Synchronize from its arrival to its answer.

What a report changes goes through the store; what only says "still alive" is kept here and written once a second with
all others (`take_renewals`). A call is answered when what the runner should do differs from what it does, when there is
something to acknowledge, or when its wait is over; commits wake it, nothing polls. All state here may be lost at any
time: the next call of each runner brings it back. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.chassis.errors import Aborted, Reason
from services.chassis.rpc import server_stopping
from services.scheduler.job import SECOND_US, Progress
from services.scheduler.lease import AttemptKey, Desired, Report, desired, does, key_of
from services.scheduler.store.claims import WaitingCall
from services.scheduler.store.runners import Renewal, RunnerStore, Standing
from services.scheduler.store.transaction import Committed


@dataclass(frozen=True, kw_only=True)
class DeskLimits:
    """How long calls wait."""

    wait_seconds_max: float
    """The longest wait, whatever the runner asks for. Well below the lease."""
    resend_seconds: float
    """When an answer that the runner has not acted on is given again."""
    stop_grace_seconds: float
    """The grace period of a drained runner's attempt."""
    forget_seconds: float
    """A runner that has not called for so long is forgotten here."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call is answered with."""

    desired: Desired
    standing: Standing
    call_again_seconds: float = 0.0


@dataclass(kw_only=True)
class _Call:
    """One waiting call. `waiting` is its place in the pool of idle runners."""

    waiting: WaitingCall = field(default_factory=WaitingCall)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: bool = False


@dataclass(kw_only=True)
class _Presence:
    """A session of a runner. `version` grows with every commit that concerns the runner."""

    sequence: int = 0
    version: int = 0
    heard: float = 0.0
    call: _Call | None = None
    essence: Any = None
    standing: Standing | None = None
    standing_version: int = -1
    told: Desired | None = None
    told_at: float = 0.0
    spools: tuple[Any, ...] = ()


@dataclass(kw_only=True)
class _Heard:
    at: float
    key: AttemptKey | None
    progress: Progress | None


class RunnerDesk:
    """One for each process. `monotonic` is in seconds."""

    def __init__(self, store: RunnerStore, *, limits: DeskLimits, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._limits = limits
        self._monotonic = monotonic
        self._presences: dict[str, dict[str, _Presence]] = {}
        self._heard: dict[str, _Heard] = {}
        self._stopping = False

    async def synchronize(self, report: Report) -> Answer:
        """Answer a runner's call. Aborted for a superseded call and for a replaced session."""
        presence = self._presences.setdefault(report.runner_id, {}).setdefault(report.session, _Presence())
        if report.sequence <= presence.sequence:
            return await self._answer_again(report)
        call = _Call()
        if presence.call is not None:
            presence.call.superseded = True
            presence.call.changed.set()
        presence.call, presence.sequence, presence.heard = call, report.sequence, self._monotonic()
        try:
            return await self._serve(report, presence, call)
        finally:
            call.waiting.over = True
            if presence.call is call:
                presence.call = None

    def on_committed(self, committed: Committed) -> None:
        """Wake the calls of the runners that a transaction concerned."""
        for runner_id in committed.runners:
            for presence in self._presences.get(runner_id, {}).values():
                presence.version += 1
                if presence.call is not None:
                    presence.call.changed.set()

    def take_renewals(self) -> list[Renewal]:
        """Who was heard of since the last time without anything new to say. Also forgets who is gone."""
        now = self._monotonic()
        heard, self._heard = self._heard, {}
        for runner_id, sessions in list(self._presences.items()):
            for session, presence in list(sessions.items()):
                if presence.call is None and now - presence.heard > self._limits.forget_seconds:
                    del sessions[session]
            if not sessions:
                del self._presences[runner_id]
        return [
            Renewal(
                runner_id=runner_id,
                age_us=round((now - each.at) * SECOND_US),
                key=each.key,
                progress=each.progress,
            )
            for runner_id, each in heard.items()
        ]

    def stop(self) -> None:
        """End every wait: the server stops."""
        self._stopping = True
        for sessions in self._presences.values():
            for presence in sessions.values():
                if presence.call is not None:
                    presence.call.changed.set()

    async def _serve(self, report: Report, presence: _Presence, call: _Call) -> Answer:
        arrived = self._monotonic()
        wait_seconds = min(report.wait_seconds, self._limits.wait_seconds_max)
        standing = await self._applied(report, presence, call)
        while True:
            call.changed.clear()
            if call.superseded:
                raise _superseded()
            if presence.version != presence.standing_version:
                standing = await self._read(report, presence)
                continue
            wanted = self._desired(standing)
            left = arrived + wait_seconds - self._monotonic()
            if not does(report, wanted):
                again = presence.told_at + self._limits.resend_seconds - self._monotonic()
                left = min(left, again) if presence.told == wanted else 0.0
            if left <= 0 or _has_news(report) or report.spools != presence.spools:
                return self._answered(report, presence, standing, wanted)
            if self._stopping:
                raise server_stopping()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await call.changed.wait()

    async def _applied(self, report: Report, presence: _Presence, call: _Call) -> Standing:
        """How the runner stands after its report: applied in the store where it says anything new."""
        essence = _essence(report)
        standing = presence.standing
        known = standing is not None and presence.standing_version == presence.version
        if report.active is not None and known and essence == presence.essence and not _has_news(report):
            assert standing is not None, "it is known"
            self._note(report, standing)
            return standing
        version = presence.version
        standing = await self._store.synchronize(report, call.waiting if report.wait_seconds > 0 else None)
        presence.essence = essence
        presence.standing, presence.standing_version = standing, version
        if standing.attempt is not None and report.active is not None:
            self._note(report, standing)
        return standing

    async def _read(self, report: Report, presence: _Presence) -> Standing:
        version = presence.version
        standing = await self._store.standing(report.runner_id)
        assert standing is not None, "the runner was recorded with the call"
        if standing.runner.session != report.session:
            raise _replaced(standing)
        presence.standing, presence.standing_version = standing, version
        return standing

    def _note(self, report: Report, standing: Standing) -> None:
        """Remember that the runner was heard of; the attempt only if it is the one that it should hold."""
        assert report.active is not None, "idle runners are recorded with each call"
        holds = standing.attempt is not None and key_of(standing.attempt) == report.active.key
        self._heard[report.runner_id] = _Heard(
            at=self._monotonic(),
            key=report.active.key if holds else None,
            progress=report.active.progress if holds else None,
        )

    def _answered(self, report: Report, presence: _Presence, standing: Standing, wanted: Desired) -> Answer:
        presence.told = None if does(report, wanted) else wanted
        presence.told_at = self._monotonic()
        presence.spools = report.spools
        waits = report.wait_seconds > 0
        return Answer(
            desired=wanted, standing=standing, call_again_seconds=0.0 if waits else self._limits.resend_seconds
        )

    async def _answer_again(self, report: Report) -> Answer:
        """A call that is not above the highest one: it changes nothing, and is told what the runner should do."""
        standing = await self._store.standing(report.runner_id)
        if standing is None or standing.runner.session != report.session:
            raise _superseded()
        return Answer(desired=self._desired(standing), standing=standing)

    def _desired(self, standing: Standing) -> Desired:
        grace_seconds = self._limits.stop_grace_seconds
        return desired(standing.runner, standing.attempt, standing.job, grace_seconds=grace_seconds)


def _essence(report: Report) -> Any:
    """What of a report the store must hear at once; without the progress, which rides along once a second."""
    active = report.active
    doing = (active.key, active.phase, active.stopping, active.dataset_fingerprint) if active is not None else None
    return (report.capabilities, report.draining, doing)


def _has_news(report: Report) -> bool:
    """Whether there is something to acknowledge."""
    return bool(report.closed) or (report.active is not None and bool(report.active.checkpoints))


def _superseded() -> Aborted:
    return Aborted(Reason.CALL_SUPERSEDED, "a newer call of the same session took the place of this one")


def _replaced(standing: Standing) -> Aborted:
    name = standing.runner.name
    message = f"a newer session has taken over {name}: this one must end"
    return Aborted(Reason.SESSION_REPLACED, message, {"runner": name})
