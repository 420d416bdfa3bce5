"""The scheduler as runners meet it: the desk over the real stores and a real database, in a time that is moved by hand.

The event loop's clock is the one that stands still, so a wait of eight seconds is over when eight seconds were passed,
and never before. Between two steps nothing runs: `settle` returns when every call waits for something that has not
happened yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator

from services.chassis.loop import keep_turning
from services.scheduler.desk import DeskLimits, RunnerDesk
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.loop.clock import Clock as LeaseClock
from services.scheduler.loop.clock import TickLimits
from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.store.leader import LeaderLimits
from services.scheduler.store.queue import reload_all
from services.scheduler.store.transaction import Transaction
from services.scheduler.wire.event import fact_to_event
from tests.scheduler.clock import Clock
from tests.scheduler.stores import Stores

LIMITS = DeskLimits(
    wait_seconds_max=8.0,
    idle_wait_seconds_max=8.0,
    idle_calls_per_second=500.0,
    resend_seconds=1.0,
    stop_grace_seconds=60.0,
    forget_seconds=50.0,
    gap_seconds=1.0,
)
PATIENT = LeaderLimits(silence_seconds=600.0)
"""What `together` holds open stands still for as long as the machine takes: that is no leader that hangs."""
AT_ONCE = DatabaseLimits(gather_seconds=0)
"""Where time stands still nobody is waited for: what is to be served together `together` says."""
QUIET_TURNS = 10
"""Turns of the loop without a question to the database, after which nothing happens any more by itself."""
COMMITS = ("fails", "is lost")
"""What may become of a transaction: nothing of it is on disk; or all of it, but nobody is told so."""


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock.monotonic()


class Installation:
    """One scheduler after the other over one database; `restart` is what SIGKILL and a new start do to callers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.runner = asyncio.Runner(loop_factory=lambda: ClockedLoop(self.clock))
        self.ids = itertools.count(1)
        self._asked = 0
        self._looks = False
        self._answered = asyncio.Event()
        self.run(self._open())

    def run(self, coroutine: Awaitable):
        """The coroutine's result, once everything has come to rest."""

        async def settled():
            try:
                return await coroutine
            finally:
                await self._settle()

        return self.runner.run(settled())

    def look(self, question: Awaitable):
        """The answer to a question to the database while everything is at rest: asked in this thread, which is fast."""
        self._looks = True
        try:
            return self.runner.run(_result(question))
        finally:
            self._looks = False

    def start(self, coroutine: Awaitable) -> asyncio.Task:
        """A call that is sent; it goes on whenever the loop runs."""
        return self.runner.get_loop().create_task(coroutine)

    def settle(self) -> None:
        self.runner.run(self._settle())

    def pass_seconds(self, seconds: float) -> None:
        self.clock.pass_seconds(seconds)
        self.settle()

    def restart(self) -> None:
        self.run(self._close())
        self.run(self._open())

    def close(self) -> None:
        self.run(self._close())
        self.runner.close()

    def told_anew(self) -> Dispatcher:
        """A dispatcher that knows what the rows say."""

        def told(connection) -> Dispatcher:
            transaction = Transaction(
                connection,
                dispatcher=Dispatcher(overtakes_max=2),
                projects={},
                encode_fact=fact_to_event,
                new_id=self.stores.new_id,
                renew_sealed=self.stores.database.renew_sealed,
            )
            reload_all(transaction)
            return transaction.dispatcher

        return self.look(self.stores.database.read(told))

    @contextlib.contextmanager
    def commit(self, what: str, *, after: int = 0) -> Iterator[None]:
        """Every transaction inside but for the first ones ends in this way, one of COMMITS."""
        dialect = self.stores.database.writing.dialect
        commit, commits = dialect.do_commit, itertools.count()

        def commit_badly(connection) -> None:
            is_well = next(commits) < after
            if is_well or what == "is lost":
                commit(connection)
            if not is_well:
                raise dialect.loaded_dbapi.OperationalError("the disk is full")

        dialect.do_commit = commit_badly
        try:
            yield
        finally:
            dialect.do_commit = commit

    @contextlib.contextmanager
    def together(self, commit: str = "") -> Iterator[None]:
        """What is started inside and asks the writer for something is served in one transaction.

        `commit`: what becomes of that, one of COMMITS; empty where it is well.
        """
        gate, entered = threading.Event(), asyncio.Event()
        loop = self.runner.get_loop()

        def hold(_transaction: Transaction) -> None:
            loop.call_soon_threadsafe(entered.set)
            gate.wait()

        held = self.start(self.stores.database.write(hold, control=True))
        self.runner.run(entered.wait())
        with self.commit(commit, after=1) if commit else contextlib.nullcontext():
            try:
                yield
                self.runner.run(_turns())  # all that was started has asked
            finally:
                gate.set()
            self.runner.run(_result(held))
            self.settle()

    async def _open(self) -> None:
        self.stores = Stores(self.url, ids=self.ids, clock=self.clock, limits=AT_ONCE, leader_limits=PATIENT)
        database = self.stores.database
        database.write = self._counted(database.write)
        database.read, database.list = self._looking(database.read), self._looking(database.list)
        self.desk = RunnerDesk(self.stores.runners, limits=LIMITS, monotonic=self.clock.monotonic)
        database.after_commit.append(self.desk.on_committed)
        await self.stores.upkeep.restart_clocks()
        turn = LeaseClock(self.stores.upkeep, self.desk, limits=TickLimits()).turn
        self._ticking = asyncio.create_task(keep_turning("clock", turn))

    async def _close(self) -> None:
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        self.stores.database.close()

    def _counted(self, ask: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
        async def counted(*arguments, **options):
            self._asked += 1
            try:
                return await ask(*arguments, **options)
            finally:
                self._asked -= 1
                self._answered.set()

        return counted

    def _looking(self, ask: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
        counted = self._counted(ask)

        async def looking(work):
            if not self._looks:
                return await counted(work)
            with self.stores.database._reading.begin() as connection:
                return work(connection)

        return looking

    async def _settle(self) -> None:
        quiet = 0
        while quiet < QUIET_TURNS:
            if self._asked:
                quiet = 0
                self._answered.clear()
                await self._answered.wait()
            else:
                quiet += 1
                await asyncio.sleep(0)


async def _turns() -> None:
    for _ in range(QUIET_TURNS):
        await asyncio.sleep(0)


async def _result(awaitable: Awaitable):
    return await awaitable
