"""Idle runners that wait, and jobs given to them inside the writer's transaction.

Outside a transaction no waiting project has a job that an idle runner could serve (but where a slot is kept): a runner
that becomes idle takes its pick at once, and a project that becomes servable is looked at before the commit. So the
fair order holds although nobody polls. Belongs to the writer's thread, but for `WaitingCall.over`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy.exc import IntegrityError

from services.chassis.log import get_logger
from services.scheduler.job import Attempt
from services.scheduler.lease import Runner
from services.scheduler.placement import Needs, fits, needs_from_key, size
from services.scheduler.store.attempts import claim_job
from services.scheduler.store.queue import (
    Fit,
    QueueLimits,
    any_registered_fit,
    choose_job,
    projects_in_turn,
    waiting_in_turn,
)
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

NEEDS_CACHE_MAX = 4096


class WaitingCall:
    """A call of a runner that waits. Whoever holds the call sets `over`; from then on it gets no job."""

    def __init__(self) -> None:
        self.over = False


@dataclass(frozen=True, kw_only=True)
class IdleRunner:
    """A runner in the pool."""

    runner: Runner
    call: WaitingCall


class Claims:
    """The pool of idle runners, and how they get jobs. `place` is to be called before each commit."""

    def __init__(self, *, lease_seconds: float, limits: QueueLimits) -> None:
        self._lease_seconds = lease_seconds
        self._limits = limits
        self._idle: dict[str, IdleRunner] = {}

    def claim(self, transaction: Transaction, runner: Runner, call: WaitingCall | None) -> Attempt | None:
        """A job for an idle runner; where there is none it waits in the pool for as long as its call does."""
        self._idle.pop(runner.runner_id, None)
        attempt = self._claim_for(transaction, runner)
        if attempt is None and call is not None:
            self._idle[runner.runner_id] = IdleRunner(runner=runner, call=call)
        return attempt

    def forget(self, runner_id: str) -> None:
        """The runner is not idle any more."""
        self._idle.pop(runner_id, None)

    def place(self, transaction: Transaction) -> None:
        """Serve the projects that this transaction touched; after it nothing waits that could be served."""
        if not (transaction.touched_projects or transaction.place_everywhere):
            return
        for runner_id in [runner_id for runner_id, idle in self._idle.items() if idle.call.over]:
            del self._idle[runner_id]
        if transaction.place_everywhere:
            for idle in list(self._idle.values()):
                if self._claim_for(transaction, idle.runner) is not None:
                    del self._idle[idle.runner.runner_id]
        if self._idle and transaction.touched_projects:
            for project_uid in waiting_in_turn(transaction.connection, transaction.touched_projects):
                self._serve(transaction, project_uid)

    def _claim_for(self, transaction: Transaction, runner: Runner) -> Attempt | None:
        def fit(needs_key: str) -> bool:
            return fits(_needs(needs_key), runner.capabilities)

        for project_uid in projects_in_turn(transaction.connection, fit, self._limits):
            choice = choose_job(transaction, project_uid, fit, self._registered_fit(transaction), self._limits)
            if choice is not None and (attempt := self._claimed(transaction, choice.job_uid, runner)) is not None:
                return attempt
        return None

    def _serve(self, transaction: Transaction, project_uid: str) -> None:
        """Give the project's next job to the smallest idle runner that can serve it, or to the one idle longest."""

        def candidates(needs_key: str) -> list[Runner]:
            needs = _needs(needs_key)
            fitting = [idle.runner for idle in self._idle.values() if fits(needs, idle.runner.capabilities)]
            return sorted(fitting, key=lambda runner: size(runner.capabilities))

        def fit(needs_key: str) -> bool:
            needs = _needs(needs_key)
            return any(fits(needs, idle.runner.capabilities) for idle in self._idle.values())

        choice = choose_job(transaction, project_uid, fit, self._registered_fit(transaction), self._limits)
        if choice is None:
            return
        for runner in candidates(choice.needs_key):
            if self._claimed(transaction, choice.job_uid, runner) is not None:
                del self._idle[runner.runner_id]
                return

    def _claimed(self, transaction: Transaction, job_uid: str, runner: Runner) -> Attempt | None:
        """The new attempt; None where one of the two slots turned out to be taken."""
        try:
            with transaction.savepoint():
                return claim_job(transaction, job_uid, runner, lease_seconds=self._lease_seconds)
        except IntegrityError:
            log.warning("claim_too_late", job_uid=job_uid, runner=runner.name)
            return None

    def _registered_fit(self, transaction: Transaction) -> Fit:
        return lambda needs_key: any_registered_fit(transaction.connection, needs_key)


@lru_cache(maxsize=NEEDS_CACHE_MAX)
def _needs(key: str) -> Needs:
    return needs_from_key(key)
