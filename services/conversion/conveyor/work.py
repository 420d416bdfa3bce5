"""Long work that several callers may wait for: done once, followed by all, stopped when the last one leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from services.chassis.auth.principal import Kind, Principal, current_principal
from services.chassis.errors import Reason, ResourceExhausted, SihlaiError

Result = TypeVar("Result")

RATE_SECONDS = 5.0
"""A rate is that of the last so many seconds."""
BUSY_RETRY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a piece of work is. `total` is 0 while unknown, `rate` is in images a second."""

    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    warnings: int = 0


class Meter:
    """Turns counts into progress. `clock` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase = ""
        self._samples: deque[tuple[float, int]] = deque()

    def measure(self, phase: str, done: int, total: int, warnings: int = 0) -> Progress:
        """The progress with `done` of `total`; another phase starts anew."""
        now = self._clock()
        if phase != self._phase:
            self._phase = phase
            self._samples.clear()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_SECONDS:
            self._samples.popleft()
        began, done_then = self._samples[0]
        rate = (done - done_then) / (now - began) if now > began else 0.0
        left = (total - done) / rate if rate > 0 and total >= done else None
        return Progress(phase=phase, done=done, total=total, rate=rate, seconds_left=left, warnings=warnings)


@dataclass(frozen=True, kw_only=True)
class SlotLimits:
    """How many work at once, and how many wait for it. What users may not take is left for runners and services.

    Those have no limit of their own, as one token may stand for many of them.
    """

    running_max: int
    user_running_max: int
    """Of users together."""
    waiting_max: int
    user_waiting_max: int
    """Of users together."""
    principal_waiting_max: int
    """Of one user."""


class Slots:
    """At most `running_max` at once; `waiting_max` wait their turn, and whoever comes then is sent away.

    Who asks for much waits behind himself: turns go round among the principals that wait.
    """

    def __init__(self, limits: SlotLimits) -> None:
        self._limits = limits
        self._running: Counter[Kind] = Counter()
        self._waiting: dict[tuple[Kind, str], deque[asyncio.Future[None]]] = {}
        """By principal; the first one that may take a slot is next."""

    @property
    def idle(self) -> bool:
        """Whether nobody holds a slot."""
        return not self._running.total()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Raises ResourceExhausted where too many wait."""
        principal = current_principal()
        if self._has_room(principal.kind):
            self._running[principal.kind] += 1
        else:
            await self._wait(principal)
        try:
            yield
        finally:
            self._give_up(principal.kind)

    def _has_room(self, kind: Kind) -> bool:
        """Whether one more of this kind may work."""
        if self._running.total() >= self._limits.running_max:
            return False
        return kind is not Kind.USER or self._running[kind] < self._limits.user_running_max

    async def _wait(self, principal: Principal) -> None:
        """Until one who gave a slot up has passed it on."""
        self._require_place(principal)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((principal.kind, principal.subject), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was passed on just now
                self._give_up(principal.kind)
            self._forget_cancelled()
            raise

    def _require_place(self, principal: Principal) -> None:
        """Raise ResourceExhausted where so many wait that this one may not, of the narrowest limit first."""
        waiting = {who: len(turns) for who, turns in self._waiting.items()}
        bounds = [("works_waiting_max", self._limits.waiting_max, "", sum(waiting.values()))]
        if principal.kind is Kind.USER:
            of_users = sum(count for (kind, _), count in waiting.items() if kind is Kind.USER)
            of_one = waiting.get((principal.kind, principal.subject), 0)
            bounds = [
                ("principal_works_waiting_max", self._limits.principal_waiting_max, f" of {principal.subject}", of_one),
                ("user_works_waiting_max", self._limits.user_waiting_max, " of users", of_users),
                *bounds,
            ]
        for what, limit, whose, count in bounds:
            if count >= limit:
                raise ResourceExhausted(
                    Reason.LIMIT_REACHED,
                    f"{count} calls{whose} wait for their turn already, and at most {limit} may: try later",
                    {"what": what, "limit": str(limit)},
                    retry_after_seconds=BUSY_RETRY_SECONDS,
                )

    def _give_up(self, kind: Kind) -> None:
        """One of this kind works no longer: the next one does."""
        self._running[kind] -= 1
        self._forget_cancelled()
        who = next((who for who in self._waiting if self._has_room(who[0])), None)
        if who is None:
            return
        self._running[who[0]] += 1
        turns = self._waiting.pop(who)
        turns.popleft().set_result(None)
        if turns:
            self._waiting[who] = turns  # last in the round

    def _forget_cancelled(self) -> None:
        """A cancelled call has no turn, from the moment on in which it is cancelled."""
        left = {who: deque(turn for turn in turns if not turn.done()) for who, turns in self._waiting.items()}
        self._waiting = {who: turns for who, turns in left.items() if turns}


async def in_thread(executor: Executor, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a thread. A cancelled call waits for the thread: nobody may tidy up under its feet."""
    future = asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        raise


async def some_at_a_time(work: Iterable[Coroutine[Any, Any, None]], at_once_max: int) -> None:
    """Run all, so many at once. Raises the first error, of ours or of the system."""
    waiting = iter(work)

    async def work_on() -> None:
        for each in waiting:
            await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once_max):
                group.create_task(work_on())
    except* (SihlaiError, OSError) as errors:  # what the caller knows: the group is only how we work
        raise errors.exceptions[0] from errors


Tell = Callable[[Progress], None]


@dataclass(kw_only=True)
class _Work(Generic[Result]):
    task: asyncio.Task[Result]
    progress: Progress | None = None
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Works(Generic[Result]):
    """Work by key. Two calls with one key follow one piece of work; a key is free again when its work has ended."""

    def __init__(self, *, progress_seconds: float) -> None:
        self._progress_seconds = progress_seconds
        self._works: dict[str, _Work[Result]] = {}

    def under_way(self, key: str) -> bool:
        """Whether a call with this key would follow work that has begun already."""
        return key in self._works

    async def follow(
        self, key: str, start: Callable[[Tell], Coroutine[Any, Any, Result]]
    ) -> AsyncGenerator[Progress | Result, None]:
        """Progress now and then, last the result. Raises what the work raised.

        Whoever stops iterating must close the iterator: when the last one leaves, the work is cancelled.
        """
        work = self._works.get(key)
        if work is None:
            work = self._start(key, start)
        work.followers += 1
        try:
            sent: Progress | None = None
            while not work.task.done():
                if work.progress is not None and work.progress is not sent:
                    sent = work.progress
                    yield sent
                    await asyncio.wait({work.task}, timeout=self._progress_seconds)
                else:
                    await self._until_changed(work)
            yield work.task.result()
        finally:
            work.followers -= 1
            if not work.followers and not work.task.done():
                self._forget(key, work)
                work.task.cancel()
                await asyncio.wait({work.task})

    async def result(self, key: str, start: Callable[[Tell], Coroutine[Any, Any, Result]], tell: Tell) -> Result:
        """Follow to the end; progress goes to `tell`."""
        async with contextlib.aclosing(self.follow(key, start)) as items:
            async for item in items:
                if not isinstance(item, Progress):
                    return item
                tell(item)
        raise AssertionError("work ends with its result or an error")

    def _start(self, key: str, start: Callable[[Tell], Coroutine[Any, Any, Result]]) -> _Work[Result]:
        def tell(progress: Progress) -> None:
            work.progress = progress
            work.changed.set()

        work = _Work(task=asyncio.create_task(start(tell), name=f"work {key[:16]}"))
        work.task.add_done_callback(lambda _: self._forget(key, work))
        self._works[key] = work
        return work

    def _forget(self, key: str, work: _Work[Result]) -> None:
        if self._works.get(key) is work:
            del self._works[key]
        work.changed.set()

    async def _until_changed(self, work: _Work[Result]) -> None:
        work.changed.clear()
        if not work.task.done():
            await work.changed.wait()
