"""How many calls run at once: of a service, of its users, and of one of them, so that nobody takes all the room.

What is counted is open calls, not calls a second: a service that is slow lets in fewer, and who waits for an answer
before the next question never meets a limit.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass

from services.chassis.auth.access import OPEN_SERVICE
from services.chassis.auth.principal import Kind, Principal
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, ResourceExhausted


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


def call_limits(config: ServerConfig) -> CallLimits:
    """The limits of a server that is configured so."""
    return CallLimits(
        calls_max=config.concurrent_calls_max,
        user_calls_max=config.user_calls_max,
        principal_calls_max=config.principal_calls_max,
        principal_streams_max=config.principal_streams_max,
    )


class CallCounts:
    """The calls of one server that run now. Health always answers."""

    def __init__(self, limits: CallLimits, *, for_runners: Container[str]) -> None:
        """`for_runners`: the services that only runners call."""
        self._limits = limits
        self._for_runners = for_runners
        self._running: Counter[tuple[str, str, str]] = Counter()

    @contextlib.contextmanager
    def counted(self, service: str, principal: Principal, *, has_one_answer: bool) -> Iterator[None]:
        """One more call while it runs. ResourceExhausted where there are enough, of the narrowest limit first."""
        if service == OPEN_SERVICE:
            yield
            return
        keys = []
        for what, limit, subject in self._limits_of(service, principal, has_one_answer=has_one_answer):
            key = (what, service, subject)
            if self._running[key] >= limit:
                raise _too_many(what, limit, service, subject)
            keys.append(key)
        self._running.update(keys)
        try:
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


def _too_many(what: str, limit: int, service: str, subject: str) -> ResourceExhausted:
    message = (
        f"more than {limit} calls of {service}{f' by {subject}' if subject else ''} run at once: come back in a moment"
    )
    return ResourceExhausted(Reason.LIMIT_REACHED, message, {"what": what, "limit": str(limit), "service": service})
