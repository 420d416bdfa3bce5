"""Whether a call may go on: looked at when it begins, with what it asks for, and on a stream for as long as it lasts.

The server's interceptor asks a guard about each call but those of health. What was verified once is remembered for a
moment, as a signature takes longer to check than many calls take.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from services.chassis.auth.access import Rule, rule_of
from services.chassis.auth.keys import LEEWAY_SECONDS, token_expired
from services.chassis.auth.principal import ANONYMOUS, Principal
from services.chassis.auth.revocation import Revocations, key_revocation
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, SihlaiError, Unauthenticated

Item = TypeVar("Item")

AUTHORIZATION = "authorization"
SCHEME = "bearer "
REFLECTION = frozenset({"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"})
VERIFIED_MAX = 10_000
"""Tokens whose signature is remembered."""
VERIFIED_SECONDS = 60.0
"""How long; a key that is taken away takes so long to be missed."""
TIMER_SECONDS_MAX = 86_400.0
"""A longer wait for a token's end is made of several."""
UNREAD_SECONDS = 5.0
"""How long a stream whose token has ended may wait for its client to read before it is cut off without a word."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A call that may begin: who makes it, and what its request is still asked."""

    principal: Principal
    method: str
    rule: Rule | None = None
    """None asks nothing."""

    def check(self, request: Any) -> None:
        """Raise PermissionDenied where the caller may not do this to what the request names."""
        if self.rule is not None:
            self.rule.check(self.principal, self.method, request)


class Guard(Protocol):
    """Who may call what."""

    async def admit(self, metadata: Mapping[str, str], *, method: str) -> Admission:
        """The call's admission (`method` is `/package.Service/Method`, keys in lower case), or Unauthenticated, or
        PermissionDenied.
        """
        ...

    def lasting(self, admission: Admission, items: AsyncIterator[Item]) -> AsyncGenerator[Item, None]:
        """The items of a stream for as long as its caller may have them, then Unauthenticated."""
        ...


class Verifier(Protocol):
    """Who a token stands for."""

    def verify_access(self, text: str, *, now: datetime) -> Principal:
        """The principal, or Unauthenticated with the reason. It never waits."""
        ...


class OpenGuard:
    """Everybody may do everything, as "users/anonymous". For servers that nobody but their starter can reach."""

    async def admit(self, metadata: Mapping[str, str], *, method: str) -> Admission:
        """Nobody in particular."""
        return Admission(principal=ANONYMOUS, method=method)

    async def lasting(self, admission: Admission, items: AsyncIterator[Item]) -> AsyncGenerator[Item, None]:
        """All of them."""
        async for item in items:
            yield item


class TokenGuard:
    """Asks each call for a token (`authorization: Bearer …`) and looks its method up in the table."""

    def __init__(
        self,
        verifier: Verifier,
        revocations: Revocations,
        *,
        open_methods: frozenset[str] = frozenset(),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._verifier = verifier
        self._revocations = revocations
        self._open_methods = open_methods
        self._now = now
        self._verified: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    async def admit(self, metadata: Mapping[str, str], *, method: str) -> Admission:
        """See Guard."""
        if method in self._open_methods and AUTHORIZATION not in metadata:
            return Admission(principal=ANONYMOUS, method=method)
        principal = self._principal(_token_in(metadata))
        rule = rule_of(method)
        rule.admit(principal, method)
        return Admission(principal=principal, method=method, rule=rule)

    async def lasting(self, admission: Admission, items: AsyncIterator[Item]) -> AsyncGenerator[Item, None]:
        """See Guard. Costs a stream one timer, and its items next to nothing."""
        tenure = _Tenure()
        with self._ended(admission.principal, tenure.end):
            while True:
                try:
                    item = await tenure.next(items)
                except StopAsyncIteration:
                    return
                yield item

    def _principal(self, token: str) -> Principal:
        """Who the token stands for: verified, and neither ended nor revoked."""
        known = self._verified.get(token)
        if known is not None and time.monotonic() - known[0] < VERIFIED_SECONDS:
            principal = known[1]
            late = (self._now() - principal.expires_at).total_seconds()
            if late > LEEWAY_SECONDS:
                raise token_expired(late)
        else:
            self._verified.pop(token, None)
            principal = self._verifier.verify_access(token, now=self._now())
            self._verified[token] = (time.monotonic(), principal)
            while len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)
        for token_id in _revocable(principal):
            if token_id in self._revocations:
                raise token_revoked(principal.token_id)
        return principal

    @contextlib.contextmanager
    def _ended(self, principal: Principal, end: Callable[[SihlaiError], None]) -> Iterator[None]:
        """Call `end` once when the principal's token ends, or is revoked."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            left = (principal.expires_at - self._now()).total_seconds() + LEEWAY_SECONDS
            if left <= 0:
                end(token_expired(LEEWAY_SECONDS - left))
            else:
                timer = loop.call_later(min(left, TIMER_SECONDS_MAX), look)

        look()
        with contextlib.ExitStack() as told:
            for token_id in _revocable(principal):
                tell = functools.partial(end, token_revoked(principal.token_id))
                told.enter_context(self._revocations.told(token_id, tell))
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()


def token_guard(config: ServerConfig, verifier: Verifier, revocations: Revocations) -> TokenGuard:
    """The guard of a service that is configured so."""
    return TokenGuard(verifier, revocations, open_methods=REFLECTION if config.reflection_open else frozenset())


class _Tenure:
    """Ends one stream from outside. The stream's own task is cancelled where it waits for its next item; where it waits
    for its client to read, it is told before the next one.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._waiting = False
        self._error: SihlaiError | None = None
        self._cancelled = False

    def end(self, error: SihlaiError) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._waiting:
            self._cancel()
        else:
            asyncio.get_running_loop().call_later(UNREAD_SECONDS, self._cut_off)

    async def next(self, items: AsyncIterator[Item]) -> Item:
        """The next item, or the error that the stream was ended with."""
        self._raise_if_ended()
        self._waiting = True
        try:
            return await anext(items)
        except asyncio.CancelledError:
            assert self._task is not None, "a call is a task"
            if self._cancelled and self._task.uncancel() == 0:
                self._raise_if_ended()
            raise
        finally:
            self._waiting = False

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error

    def _cut_off(self) -> None:
        if self._task is not None and not self._task.done() and not self._cancelled:
            self._cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


def _revocable(principal: Principal) -> tuple[str, ...]:
    """What a revocation may name: the token, or all that its key signed."""
    return (principal.token_id, *((key_revocation(principal.key_id),) if principal.key_id else ()))


def token_revoked(token_id: str) -> Unauthenticated:
    """What the holder of a token is told that was taken back."""
    return Unauthenticated(Reason.TOKEN_REVOKED, f"the token {token_id} was revoked: get a new one")


def _token_in(metadata: Mapping[str, str]) -> str:
    given = metadata.get(AUTHORIZATION, "")
    if not given:
        message = "this call needs a token, in the metadata as `authorization: Bearer …`, and has none"
        raise Unauthenticated(Reason.TOKEN_MISSING, message)
    if given[: len(SCHEME)].lower() != SCHEME:
        message = "the metadata's authorization must begin with `Bearer `, then the token"
        raise Unauthenticated(Reason.TOKEN_INVALID, message)
    return given[len(SCHEME) :].strip()
