"""Idle runners that wait, and jobs given to them inside the writer's transaction.

Outside a transaction no waiting project has a job that an idle runner could serve (but where a slot is kept): a runner
that becomes idle takes its pick at once, and a project that becomes servable is looked at before the commit. So the
fair order holds although nobody polls. Belongs to the writer's thread, but for `WaitingCall.over`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from sqlalchemy.exc import IntegrityError

from services.chassis.log import get_logger
from services.scheduler.job import Attempt
from services.scheduler.lease import Runner
from services.scheduler.placement import Capabilities, Gpu, fits, needs_from_key, size
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

FITS_CACHE_MAX = 4096
TRIES_MAX = 8
"""Idle runners of a kind that are tried for one job; a claim fails only where a slot turned out to be taken."""

Offer: TypeAlias = tuple[tuple[Gpu, ...], frozenset[str]]
"""What of a runner decides whether it can serve a job: GPUs and tasks."""


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
        self._by_offer: dict[Offer, dict[str, IdleRunner]] = {}
        """The same runners by what they offer: of a thousand there are a handful of kinds."""

    def claim(self, transaction: Transaction, runner: Runner, call: WaitingCall | None) -> Attempt | None:
        """A job for an idle runner; where there is none it waits in the pool for as long as its call does."""
        self.forget(runner.runner_id)
        attempt = self._claim_for(transaction, runner)
        if attempt is None and call is not None:
            idle = IdleRunner(runner=runner, call=call)
            self._idle[runner.runner_id] = idle
            self._by_offer.setdefault(_offer(runner), {})[runner.runner_id] = idle
        return attempt

    def forget(self, runner_id: str) -> None:
        """The runner is not idle any more."""
        idle = self._idle.pop(runner_id, None)
        if idle is None:
            return
        offer = _offer(idle.runner)
        del self._by_offer[offer][runner_id]
        if not self._by_offer[offer]:
            del self._by_offer[offer]

    def place(self, transaction: Transaction) -> None:
        """Serve the projects that this transaction touched; after it nothing waits that could be served."""
        if not self._idle or not (transaction.touched_projects or transaction.place_everywhere):
            return
        for runner_id in [runner_id for runner_id, idle in self._idle.items() if idle.call.over]:
            self.forget(runner_id)
        if transaction.place_everywhere:
            for idle in list(self._idle.values()):
                if self._claim_for(transaction, idle.runner) is not None:
                    self.forget(idle.runner.runner_id)
        if self._idle and transaction.touched_projects:
            for project_uid in waiting_in_turn(transaction.connection, transaction.touched_projects):
                self._serve(transaction, project_uid)

    def _claim_for(self, transaction: Transaction, runner: Runner) -> Attempt | None:
        def fit(needs_key: str) -> bool:
            return _fits(needs_key, _offer(runner))

        for project_uid in projects_in_turn(transaction.connection, fit, self._limits):
            choice = choose_job(transaction, project_uid, fit, self._registered_fit(transaction), self._limits)
            if choice is not None and (attempt := self._claimed(transaction, choice.job_uid, runner)) is not None:
                return attempt
        return None

    def _serve(self, transaction: Transaction, project_uid: str) -> None:
        """Give the project's next job to the smallest idle runner that can serve it, or to the one idle longest."""

        def fit(needs_key: str) -> bool:
            return any(_fits(needs_key, offer) for offer in self._by_offer)

        choice = choose_job(transaction, project_uid, fit, self._registered_fit(transaction), self._limits)
        if choice is None:
            return
        fitting = [offer for offer in self._by_offer if _fits(choice.needs_key, offer)]
        for offer in sorted(fitting, key=_size):
            for runner in [idle.runner for idle in itertools.islice(self._by_offer[offer].values(), TRIES_MAX)]:
                if self._claimed(transaction, choice.job_uid, runner) is not None:
                    self.forget(runner.runner_id)
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


def _offer(runner: Runner) -> Offer:
    return runner.capabilities.gpus, runner.capabilities.tasks


@lru_cache(maxsize=FITS_CACHE_MAX)
def _fits(needs_key: str, offer: Offer) -> bool:
    return fits(needs_from_key(needs_key), _capabilities(offer))


def _size(offer: Offer) -> tuple[int, int]:
    return size(_capabilities(offer))


def _capabilities(offer: Offer) -> Capabilities:
    gpus, tasks = offer
    return Capabilities(gpus=gpus, tasks=tasks)
