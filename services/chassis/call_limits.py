"""How many calls run at once: of a service, of its users, and of one of them, so that nobody takes all the room.

Who takes too much is slowed down, and refused for nothing: a program that waits for each answer meets no error. Who
asks for too much at once is refused, at a pace as well: refused at once, he would ask again at once, and refusals would
hold up the process as answers do.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Container, Iterator
from dataclasses import dataclass

from services.chassis.auth.access import OPEN_SERVICE
from services.chassis.auth.principal import Kind, Principal
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, ResourceExhausted
from services.chassis.share import Shares, Spending, Turns


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """Each holds for every service by itself: callers of one cannot take the place of another's."""

    calls_max: int
    user_calls_max: int
    """Calls with one answer, but in services of runners: who floods is refused before the rest of the process has to
    wait for the work."""
    principal_calls_max: int
    """The same of one user. Runners and services have no such limit, as one token may stand for many of them."""
    principal_streams_max: int
    """Streams of one user."""
    principal_processor_share: float
    """What all calls of one user may take of a core while others call too; those beyond wait for their turn, as some of
    those that run."""
    principal_refusals_per_second: float
    """How many of one user are refused, or of one host where nobody knows who calls; those beyond wait for it."""


def call_limits(config: ServerConfig) -> CallLimits:
    """The limits of a server that is configured so."""
    return CallLimits(
        calls_max=config.concurrent_calls_max,
        user_calls_max=config.user_calls_max,
        principal_calls_max=config.principal_calls_max,
        principal_streams_max=config.principal_streams_max,
        principal_processor_share=config.principal_processor_share,
        principal_refusals_per_second=config.principal_refusals_per_second,
    )


class CallCounts:
    """The calls of one server that run now. Health always answers."""

    def __init__(self, limits: CallLimits, *, for_runners: Container[str]) -> None:
        """`for_runners`: the services that only runners call."""
        self._limits = limits
        self._for_runners = for_runners
        self._running: Counter[tuple[str, str, str]] = Counter()
        self._shares = Shares(limits.principal_processor_share)
        self._refusals = Turns()
        self._refused = 0
        """Calls that wait to be refused."""

    @contextlib.asynccontextmanager
    async def counted(
        self, service: str, principal: Principal, *, method: str, has_one_answer: bool
    ) -> AsyncIterator[Spending | None]:
        """One more call while it runs, once its turn has come, and what it is to be charged to. ResourceExhausted where
        there are enough, of the narrowest limit first.
        """
        if service == OPEN_SERVICE:
            yield None
            return
        keys = []
        for what, limit, subject in self._limits_of(service, principal, has_one_answer=has_one_answer):
            key = (what, service, subject)
            if self._running[key] >= limit:
                if subject:
                    await self.until_refused(subject)
                raise _too_many(what, limit, service, subject)
            keys.append(key)
        self._running.update(keys)
        try:
            if principal.kind is not Kind.USER:
                yield None
                return
            spending = await self._shares.begin(principal.subject, method, lasts=not has_one_answer)
            try:
                yield spending
            finally:
                self._shares.end(spending)
        finally:
            for key in keys:
                self._running[key] -= 1
                if not self._running[key]:
                    del self._running[key]  # subjects come and go

    async def until_refused(self, subject: str) -> None:
        """Wait for this user's, or host's, turn to be refused. It takes memory: beyond as many calls as may run, nobody
        waits.
        """
        if self._refused >= self._limits.calls_max:
            return
        self._refused += 1
        try:
            await self._refusals.turn(subject, lambda: 1 / self._limits.principal_refusals_per_second)
        finally:
            self._refused -= 1

    def _limits_of(self, service: str, principal: Principal, *, has_one_answer: bool) -> Iterator[tuple[str, int, str]]:
        """Name, limit, and whose calls it counts; of nobody in particular where that is empty."""
        limits = self._limits
        if principal.kind is Kind.USER:
            if has_one_answer:
                yield "principal_calls_max", limits.principal_calls_max, principal.subject
            else:
                yield "principal_streams_max", limits.principal_streams_max, principal.subject
        if has_one_answer and service not in self._for_runners:
            yield "user_calls_max", limits.user_calls_max, ""
        yield "concurrent_calls_max", limits.calls_max, ""


def _too_many(what: str, limit: int, service: str, subject: str) -> ResourceExhausted:
    message = (
        f"more than {limit} calls of {service}{f' by {subject}' if subject else ''} run at once: come back in a moment"
    )
    return ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": what, "limit": str(limit), "service": service})
