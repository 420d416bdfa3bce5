"""Where runners wait: each call of Synchronize from its arrival to its answer.

What a report changes goes through the store; what only says "still alive" is kept here and written once a second with
all others (`take_renewals`). A call is answered when what the runner should do differs from what it does, when there is
something to acknowledge, or when its wait is over; commits wake it, nothing polls. All state here may be lost at any
time: the next call of each runner brings it back. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from services.chassis.errors import Aborted, Reason
from services.chassis.rpc import server_stopping
from services.scheduler.domain.job import SECOND_US, Progress
from services.scheduler.domain.lease import AttemptKey, Desired, Report, desired, does, key_of
from services.scheduler.store.committed import Committed, Given, Stopping
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.runners import Renewal, RunnerStore, Standing

PLACE_SECONDS_MAX = 60.0
"""An idle runner's place is taken anew after so long."""


@dataclass(frozen=True, kw_only=True)
class DeskLimits:
    """How long calls wait."""

    wait_seconds_max: float
    """The longest wait, whatever the runner asks for. Well below the lease."""
    idle_wait_seconds_max: float
    """The same for idle runners, where there are very many."""
    idle_calls_per_second: float
    """So many calls of theirs do not make them wait longer."""
    resend_seconds: float
    """When an answer that the runner has not acted on is given again."""
    stop_grace_seconds: float
    """The grace period of a drained runner's attempt."""
    forget_seconds: float
    """A runner that has not called for so long is forgotten here."""
    gap_seconds: float
    """So long after its call was answered an idle runner keeps its place: it calls again at once."""
    contested_seconds: float = 600.0
    """So long after two processes called as one runner no other host takes it over from one that is heard of."""


class Answer(Struct, frozen=True, kw_only=True):
    """What a call is answered with. What the report carried may be acknowledged if it was applied (`standing`)."""

    desired: Desired
    standing: Standing
    call_again_seconds: float = 0.0


@dataclass(kw_only=True)
class _Call:
    """One waiting call."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: bool = False


@dataclass(kw_only=True)
class _Presence:
    """A session of a runner. `version` is the number of the last transaction that concerned the runner.

    `called` is the highest number of a call, `applied` of one that was applied: a commit may fail between the two.
    """

    called: int = 0
    applied: int = 0
    progress: Progress | None = None
    version: int = 0
    host: str = ""
    heard: float = 0.0
    call: _Call | None = None
    place: WaitingCall | None = None
    """In the pool of idle runners, for one call after the other."""
    leaving: asyncio.TimerHandle | None = None
    placed: float = 0.0
    placed_as_of: int = 0
    """When its place was taken, and the last transaction that it knew of."""
    essence: Any = None
    standing: Standing | None = None
    told: Desired | None = None
    told_at: float = 0.0
    spools: tuple[Any, ...] = ()

    @property
    def is_fresh(self) -> bool:
        """Whether `standing` shows all that concerned the runner."""
        return self.standing is not None and self.standing.as_of >= self.version

    def hear(self, session: str, number: int, given: Given | None, stopping: Stopping | None) -> None:
        """A transaction concerned the runner. Where it gave the session a job, or only asked for its stop, nobody needs
        to read how it stands.
        """
        before = self.standing if self.is_fresh else None
        self.version = number
        held = before.attempt if before is not None else None
        if (
            before is not None
            and held is not None
            and stopping is not None
            and key_of(held) == key_of(stopping.attempt)
        ):
            self.standing = replace(before, job=stopping.job, as_of=number)
        if given is not None and given.attempt.session == session and given.attempt.resume is None:
            self.standing = Standing(runner=given.runner, attempt=given.attempt, job=given.job, as_of=number)

    def keep_place(self) -> bool:
        """Whether the place is still there; then it stays."""
        if self.leaving is not None:
            self.leaving.cancel()
            self.leaving = None
        return self.place is not None and not self.place.over

    def leave_place(self, *, after_seconds: float = 0.0) -> None:
        """Get no job from then on, unless the place is kept before."""
        if not self.keep_place() or self.place is None:
            return
        if after_seconds > 0:
            self.leaving = asyncio.get_running_loop().call_later(after_seconds, self.leave_place)
        else:
            self.place.over = True


class _SentAway(Struct, frozen=True, kw_only=True):
    host: str
    at: float


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
        self._sent_away: dict[str, _SentAway] = {}
        """Of each runner whose session was taken over while it called, the last of them."""
        self._stopping = False

    async def synchronize(self, report: Report) -> Answer:
        """Answer a runner's call. Aborted for a superseded call and for a replaced session."""
        self._refuse_another(report)
        presence = self._presences.setdefault(report.runner_id, {}).setdefault(report.session, _Presence())
        if report.sequence <= presence.applied:
            return await self._answer_again(report)
        if report.sequence < presence.called:
            raise _superseded()
        call = _Call()
        if presence.call is not None:
            presence.call.superseded = True
            presence.call.changed.set()
        presence.call, presence.called, presence.heard = call, report.sequence, self._monotonic()
        presence.host = report.capabilities.host
        gap_seconds = 0.0
        try:
            answer = await self._serve(report, presence, call)
            if report.active is None and does(report, answer.desired):
                gap_seconds = self._limits.gap_seconds
            return answer
        except Aborted as error:
            if error.reason is Reason.SESSION_REPLACED:
                self._sent_away[report.runner_id] = _SentAway(host=report.capabilities.host, at=self._monotonic())
            raise
        finally:
            if presence.call is call:
                presence.call = None
                presence.leave_place(after_seconds=gap_seconds)

    def _refuse_another(self, report: Report) -> None:
        """Raise Aborted for a host that comes back to a runner which another host has taken over from it and has still.

        A new session takes a runner over at once: it was started anew, and what it held is gone. Two hosts that are
        each started anew whenever they were sent away would end one another's attempts for ever.
        """
        sessions, away = self._presences.get(report.runner_id, {}), self._sent_away.get(report.runner_id)
        host, now = report.capabilities.host, self._monotonic()
        if away is None or away.host != host or report.session in sessions or not sessions:
            return
        newest = max(sessions.values(), key=lambda presence: presence.heard)
        if newest.host == host or now - away.at > self._limits.contested_seconds:
            return
        self._sent_away[report.runner_id] = replace(away, at=now)
        name = f"runners/{report.runner_id}"
        message = (
            f"the host {newest.host!r} calls as {name} too, and has taken it over from {host!r}: give each a name of"
            " its own, or end the other and wait a minute"
        )
        raise Aborted(Reason.SESSION_REPLACED, message, {"runner": name})

    def on_committed(self, committed: Committed) -> None:
        """Wake the calls of the runners that a transaction concerned."""
        given = {each.runner.runner_id: each for each in committed.given}
        stopping = {each.attempt.runner_id: each for each in committed.stopping}
        for runner_id, times in Counter(committed.runners).items():
            asked = stopping.get(runner_id) if times == 1 else None
            for session, presence in self._presences.get(runner_id, {}).items():
                presence.hear(session, committed.number, given.get(runner_id), asked)
                if presence.call is not None:
                    presence.call.changed.set()

    @property
    def present(self) -> int:
        """Runners that were heard of lately."""
        return len(self._presences)

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
                self._sent_away.pop(runner_id, None)
        return [
            Renewal(
                runner_id=runner_id,
                age_us=round((now - each.at) * SECOND_US),
                key=each.key,
                progress=each.progress,
            )
            for runner_id, each in heard.items()
        ]

    def give_back(self, renewals: Sequence[Renewal]) -> None:
        """They could not be written down: they are taken again, but for those of runners that were heard of since."""
        now = self._monotonic()
        for renewal in renewals:
            heard = _Heard(at=now - renewal.age_us / SECOND_US, key=renewal.key, progress=renewal.progress)
            self._heard.setdefault(renewal.runner_id, heard)

    def stop(self) -> None:
        """End every wait: the server stops."""
        self._stopping = True
        for sessions in self._presences.values():
            for presence in sessions.values():
                if presence.call is not None:
                    presence.call.changed.set()

    async def _serve(self, report: Report, presence: _Presence, call: _Call) -> Answer:
        arrived = self._monotonic()
        wait_seconds = min(report.wait_seconds, self._wait_seconds_max(report))
        standing = await self._applied(report, presence, call)
        applied = standing.applied
        while True:
            call.changed.clear()
            if call.superseded:
                raise _superseded()
            if not presence.is_fresh:
                await self._read(report, presence)
                continue
            standing = presence.standing or standing
            wanted = self._desired(standing)
            left = arrived + wait_seconds - self._monotonic()
            if not does(report, wanted):
                again = presence.told_at + self._limits.resend_seconds - self._monotonic()
                left = min(left, again) if presence.told == wanted else 0.0
            if left <= 0 or _has_news(report) or report.spools != presence.spools:
                return self._answered(report, presence, replace(standing, applied=applied), wanted)
            if self._stopping:
                raise server_stopping()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await call.changed.wait()

    def _wait_seconds_max(self, report: Report) -> float:
        """Longer for idle runners where there are very many, whose calls alone would take all of a scheduler's time."""
        crowded = self.present / self._limits.idle_calls_per_second if report.active is None else 0.0
        return max(self._limits.wait_seconds_max, min(crowded, self._limits.idle_wait_seconds_max))

    async def _applied(self, report: Report, presence: _Presence, call: _Call) -> Standing:
        """How the runner stands after its report: applied in the store where it says anything new."""
        known = self._known(report, presence)
        if known is not None and (report.active is not None or self._keeps_place(presence)):
            standing = known
        else:
            presence.leave_place()
            standing = await self._placed(report, presence, call, known)
        presence.standing = replace(standing, applied=True)
        if standing.applied:
            presence.applied = max(presence.applied, report.sequence)
            presence.essence = _essence(report)
            if known is not None or report.active is not None:
                self._note(report, presence, standing)
        return standing

    async def _placed(self, report: Report, presence: _Presence, call: _Call, known: Standing | None) -> Standing:
        """How the runner stands after a transaction. Its place is one that calls may keep once that is committed."""
        place = WaitingCall()
        try:
            if known is None:
                standing = await self._store.synchronize(report, place if report.wait_seconds > 0 else None)
            else:
                standing = await self._store.wait_again(known, report, place)
        except BaseException:
            place.over = True
            raise
        if presence.call is call and report.active is None and report.wait_seconds > 0:
            presence.place, presence.placed, presence.placed_as_of = place, self._monotonic(), standing.as_of
        else:
            place.over = True
        return standing

    def _keeps_place(self, presence: _Presence) -> bool:
        """Whether an idle runner is still in the pool: nothing has concerned it since it was put there. Now and then it
        is put there anew, whatever became of it.
        """
        is_new = self._monotonic() - presence.placed < PLACE_SECONDS_MAX
        return is_new and presence.placed_as_of >= presence.version and presence.keep_place()

    def _known(self, report: Report, presence: _Presence) -> Standing | None:
        """How the runner stands, if that is known and its report says nothing that the store must hear."""
        standing = presence.standing
        if not presence.is_fresh or _essence(report) != presence.essence or _has_news(report):
            return None
        if report.active is None and (standing is None or standing.attempt is not None or report.wait_seconds <= 0):
            return None
        if standing is not None and standing.runner.lost:
            return None  # it is back: that is to be written down
        return standing

    async def _read(self, report: Report, presence: _Presence) -> None:
        version = presence.version
        standing = await self._store.standing(report.runner_id)
        assert standing is not None, "the runner was recorded with the call"
        if standing.runner.session != report.session:
            raise _replaced(standing)
        if standing.attempt is None and report.active is not None:
            # It may have been taken for lost while its call waits here.
            standing = await self._store.take_up(report)
        presence.standing = replace(standing, as_of=version)

    def _note(self, report: Report, presence: _Presence, standing: Standing) -> None:
        """Remember that the runner was heard of; the attempt only if it is the one that it should hold."""
        active, before = report.active, self._heard.get(report.runner_id)
        holds = active is not None and standing.attempt is not None and key_of(standing.attempt) == active.key
        key = active.key if active is not None and holds else None
        progress = before.progress if before is not None and before.key == key else None
        if active is not None and holds and active.progress != presence.progress:
            progress = presence.progress = active.progress
        self._heard[report.runner_id] = _Heard(at=self._monotonic(), key=key, progress=progress)

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
        return Answer(desired=self._desired(standing), standing=replace(standing, applied=False))

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
    message = f"a newer session has taken over {name}, so this one must end: give each runner a name of its own"
    return Aborted(Reason.SESSION_REPLACED, message, {"runner": name})
