"""How many calls run at once: of a service, of its users, and of one of them, so that nobody takes all the room.

Who asks too fast is slowed down, and refused for nothing: a program that waits for each answer meets no error. Who
asks for too much at once is refused, a little late, or he would ask again at once and cost more than his answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Container, Iterator
from dataclasses import dataclass

from services.chassis.auth.access import OPEN_SERVICE
from services.chassis.auth.principal import Kind, Principal
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, ResourceExhausted

BURST_SECONDS = 1.0
"""Of calls, so many seconds' may come at once."""


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
    principal_calls_per_second: float
    """What one user may begin of either; what comes faster waits for its turn, as one of those that are open."""
    principal_refusal_seconds: float
    """How late a user is told at least that there are too many of his, and at most twice as late."""


def call_limits(config: ServerConfig) -> CallLimits:
    """The limits of a server that is configured so."""
    return CallLimits(
        calls_max=config.concurrent_calls_max,
        user_calls_max=config.user_calls_max,
        principal_calls_max=config.principal_calls_max,
        principal_streams_max=config.principal_streams_max,
        principal_calls_per_second=config.principal_calls_per_second,
        principal_refusal_seconds=config.principal_refusal_seconds,
    )


class CallCounts:
    """The calls of one server that run now. Health always answers."""

    def __init__(self, limits: CallLimits, *, for_runners: Container[str]) -> None:
        """`for_runners`: the services that only runners call."""
        self._limits = limits
        self._for_runners = for_runners
        self._running: Counter[tuple[str, str, str]] = Counter()
        self._pace = Pace(limits.principal_calls_per_second)
        self._randomness = random.Random()  # noqa: S311 — spreads calls, guards nothing

    @contextlib.asynccontextmanager
    async def counted(self, service: str, principal: Principal, *, has_one_answer: bool) -> AsyncIterator[None]:
        """One more call while it runs, once its turn has come. ResourceExhausted where there are enough, of the
        narrowest limit first.
        """
        if service == OPEN_SERVICE:
            yield
            return
        keys = []
        for what, limit, subject in self._limits_of(service, principal, has_one_answer=has_one_answer):
            key = (what, service, subject)
            if self._running[key] >= limit:
                if subject:
                    # Spread, or hundreds that were refused together come back together.
                    await asyncio.sleep(self._limits.principal_refusal_seconds * self._randomness.uniform(1, 2))
                raise _too_many(what, limit, service, subject)
            keys.append(key)
        self._running.update(keys)
        try:
            if principal.kind is Kind.USER and (wait := self._pace.wait_seconds(principal.subject)):
                await asyncio.sleep(wait)
            yield
        finally:
            for key in keys:
                self._running[key] -= 1
                if not self._running[key]:
                    del self._running[key]  # subjects come and go

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


class Pace:
    """When each of many may begin the next call: so many a second, and those of a second at once after a rest."""

    def __init__(self, calls_per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart = 1.0 / calls_per_second
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """Who has called in the last second, or waits, the newest last."""

    def wait_seconds(self, subject: str) -> float:
        """How long this call has to wait; it counts from now on."""
        now = self._clock()
        free_at = max(now - BURST_SECONDS, self._free_at.pop(subject, 0.0))
        self._free_at[subject] = free_at + self._apart
        oldest = next(iter(self._free_at))
        if self._free_at[oldest] < now - BURST_SECONDS:
            del self._free_at[oldest]
        return max(0.0, free_at - now)


def _too_many(what: str, limit: int, service: str, subject: str) -> ResourceExhausted:
    message = (
        f"more than {limit} calls of {service}{f' by {subject}' if subject else ''} run at once: come back in a moment"
    )
    return ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": what, "limit": str(limit), "service": service})
