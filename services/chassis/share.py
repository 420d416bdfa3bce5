"""What one user takes of the processor, so that his calls wait when it is more than his share while others call too.

Who is alone takes what there is: nobody is held up for a place that nobody wants.

Measured is what a call does itself: how long its steps hold up the event loop, and what the work takes that it has done
in threads (`charged`). Counting calls would not do: a list costs as much as hundreds of reads. Steps are measured by
the clock, so that a process that gets less of its machine gives less of it away.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

BURST_SECONDS = 1.0
"""Of rest that count: who has called nobody for so long may begin with that much at once."""
DEBT_SECONDS_MAX = 2.0
"""Longest wait for a first turn, whatever was taken before: also who follows much in a long stream can begin a call."""
CALL_SECONDS = 0.0005
"""What gRPC and the interceptor take for a call, which is not measured."""
GUESS_SECONDS = 0.005
"""Of a call of which none has ended yet."""
COMPANY_SECONDS = 10.0
"""So long after a user's last call he still counts as one who is there."""
SAMPLE_SECONDS = 1.0
"""What streams take later is no longer what it costs to begin one."""
SAMPLE_WEIGHT = 0.2


@dataclass(kw_only=True)
class _Account:
    free_at: float
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Turns are taken in the order in which they were asked for."""


class Turns:
    """When each of many may begin the next thing, where each costs him some seconds of his time."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        """Of those who have taken anything in the last second, or wait; who came last, last."""

    async def turn(self, subject: str, seconds: Callable[[], float]) -> float:
        """Wait until what was taken before is paid for; then it takes so many seconds. Who goes away before its turn
        takes none. Returned: see `charge`.
        """
        account = self._account(subject)
        async with account.door:
            # What runs meanwhile may put it off, so it is looked at again.
            while (wait := account.free_at - self._clock()) > 0:  # noqa: ASYNC110 — it waits for a time
                await asyncio.sleep(wait)
            return self.charge(subject, seconds())

    def charge(self, subject: str, seconds: float, *, debt_seconds_max: float = DEBT_SECONDS_MAX) -> float:
        """Take so many seconds (below 0: give them back) without waiting. Returned are those that count: what goes
        beyond the debt that one can have is let off.
        """
        account, now = self._account(subject), self._clock()
        before = max(account.free_at, now - BURST_SECONDS)
        account.free_at = min(before + seconds, now + debt_seconds_max)
        return account.free_at - before

    def _account(self, subject: str) -> _Account:
        rested_at = self._clock() - BURST_SECONDS
        account = self._accounts.get(subject)
        if account is None:
            account = self._accounts[subject] = _Account(free_at=rested_at)
        else:
            self._accounts.move_to_end(subject)
        oldest = next(iter(self._accounts))
        rests = self._accounts[oldest].free_at < rested_at and not self._accounts[oldest].door.locked()
        if rests and oldest != subject:
            del self._accounts[oldest]
        return account


class Shares:
    """What each user takes; `share` is what he may take of one core for long when he is not alone."""

    def __init__(self, share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._turns = Turns(clock=clock)
        self._there: OrderedDict[str, float] = OrderedDict()
        """When each who is there last called; who came last, last."""
        self._usual: dict[str, float] = {}
        """What calls of a method took lately."""
        self._in_threads: deque[tuple[Spending, float]] = deque()
        """What threads took, until somebody asks: to wake the event loop for it would cost as much again."""

    async def begin(self, subject: str, method: str, *, lasts: bool = True) -> Spending:
        """Wait for this user's turn, unless he is alone. The call is taken to cost what such calls usually do, until it
        is known: at its end, or where it `lasts` after SAMPLE_SECONDS.
        """
        expected = 0.0

        def expect() -> float:
            nonlocal expected
            self._take_in()
            expected = self._usual.get(method, GUESS_SECONDS)
            return CALL_SECONDS + expected

        if self._is_alone(subject):
            paid = self._charge(subject, expect())
        else:
            paid = self._share * await self._turns.turn(subject, lambda: expect() / self._share)
        return Spending(
            expected=expected,
            paid=paid - CALL_SECONDS,
            charge=lambda seconds: self._charge(subject, seconds),
            sample=lambda spending: self._learn(method, spending),
            in_threads=self._in_threads,
            lasts=lasts,
        )

    def end(self, spending: Spending) -> None:
        """The call has ended: what was paid and not taken is given back, what was let off is not. Threads may still
        take something for it.
        """
        self._take_in()
        spending.end()

    def _charge(self, subject: str, seconds: float) -> float:
        debt_seconds_max = 0.0 if self._is_alone(subject) else DEBT_SECONDS_MAX
        return self._share * self._turns.charge(subject, seconds / self._share, debt_seconds_max=debt_seconds_max)

    def _is_alone(self, subject: str) -> bool:
        """Whether nobody else was there lately; he himself is from now on."""
        now = self._clock()
        self._there[subject] = now
        self._there.move_to_end(subject)
        while self._there[next(iter(self._there))] < now - COMPANY_SECONDS:
            self._there.popitem(last=False)
        return len(self._there) == 1

    def _take_in(self) -> None:
        while self._in_threads:
            spending, seconds = self._in_threads.popleft()
            spending.add(seconds)

    def _learn(self, method: str, spending: Spending) -> None:
        self._take_in()
        usual = self._usual.get(method, spending.taken)
        self._usual[method] = usual + SAMPLE_WEIGHT * (spending.taken - usual)


class Spending:
    """What one call takes. `expected` of it is charged already; `paid` is what counted of that, as `charge` returns."""

    def __init__(
        self,
        *,
        expected: float,
        paid: float,
        charge: Callable[[float], float],
        sample: Callable[[Spending], None],
        in_threads: deque[tuple[Spending, float]],
        lasts: bool,
    ) -> None:
        self._charged, self._paid = expected, paid
        self._charge, self._sample, self._in_threads = charge, sample, in_threads
        self.taken = 0.0
        self._is_sampled = False
        self._sampling = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._end_sample) if lasts else None

    def add(self, seconds: float) -> None:
        """So many seconds of processor more."""
        self.taken += seconds
        if self.taken > self._charged:
            self._paid += self._charge(self.taken - self._charged)
            self._charged = self.taken

    def add_in_thread(self, seconds: float) -> None:
        """The same from any thread."""
        self._in_threads.append((self, seconds))

    def end(self) -> None:
        """See Shares."""
        self._end_sample()
        if self._paid > self.taken:
            self._paid += self._charge(self.taken - self._paid)
        self._charged = self.taken

    def _end_sample(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
        if not self._is_sampled:
            self._is_sampled = True
            self._sample(self)


_spending: ContextVar[Spending | None] = ContextVar("sihlai_spending", default=None)


def set_current_spending(spending: Spending) -> None:
    """For the interceptor alone; see `set_current_principal`."""
    _spending.set(spending)


def current_spending() -> Spending | None:
    """Of the call that this task serves; None where nobody counts."""
    return _spending.get()


def charged(work: Callable[[], Result]) -> Callable[[], Result]:
    """The work, to be done in a thread, at the cost of the call that asks for it."""
    spending = _spending.get()
    if spending is None:
        return work

    def measured() -> Result:
        began = time.thread_time()
        try:
            return work()
        finally:
            spending.add_in_thread(time.thread_time() - began)

    return measured


class Stepped(Generic[Result]):
    """Awaits the work, and charges each of its steps on the event loop."""

    def __init__(self, work: Awaitable[Result], spending: Spending) -> None:
        self._work = work
        self._spending = spending

    def __await__(self) -> Generator[Any, Any, Result]:
        steps: Any = self._work.__await__()
        step: Callable[[Any], Any] = steps.send
        given: Any = None
        while True:
            began = time.perf_counter()
            try:
                waited_for = step(given)
            except StopIteration as ended:
                result: Result = ended.value
                return result
            finally:
                self._spending.add(time.perf_counter() - began)
            try:
                given, step = (yield waited_for), steps.send
            except BaseException as error:  # noqa: BLE001 — the work's to catch
                given, step = error, steps.throw


class SteppedItems(Generic[Result]):
    """The items, each awaited at the call's cost."""

    def __init__(self, items: AsyncIterator[Result], spending: Spending) -> None:
        self._items = items
        self._spending = spending

    def __aiter__(self) -> SteppedItems[Result]:
        return self

    def __anext__(self) -> Stepped[Result]:
        return Stepped(anext(self._items), self._spending)
