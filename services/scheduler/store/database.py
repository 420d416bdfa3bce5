"""The database: one writer thread with group commit, and a few readers.

`write(work)` runs `work` in the writer's thread, together with whatever else waits, in one transaction: each as a part
of its own, so that one that fails takes nothing with it (see `transaction`). It returns when the transaction is on
disk. Nothing may wait for the network in there. `read(work)` runs in a reader's thread and sees one snapshot.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.chassis.errors import Reason, ResourceExhausted, SihlaiError, Unavailable
from services.chassis.log import get_contextvars, get_logger
from services.chassis.share import charged, current_spending
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.project import Project
from services.scheduler.store.clock import Clock, clock_of
from services.scheduler.store.committed import Committed
from services.scheduler.store.engine import make_engine
from services.scheduler.store.gathering import Ahead, DatabaseLimits, Gathering, Unit, Waiting
from services.scheduler.store.leader import Leader, LeaderLimits, checked_url
from services.scheduler.store.together import is_trouble
from services.scheduler.store.transaction import EncodeFact, Question, Transaction
from services.scheduler.store.write_ahead_log import WriteAheadLog

log = get_logger(__name__)

Result = TypeVar("Result")


class Database:
    """Make it, lead (see `leader`), `migrate` (see migrations), `start`, use it, `close`.

    `read` and `write` belong to one event loop. `dispatcher` mirrors what is committed, and belongs to the writer.
    """

    def __init__(
        self,
        url: str,
        *,
        encode_fact: EncodeFact,
        new_id: Callable[[], str],
        dispatcher: Dispatcher,
        clock: Clock | None = None,
        limits: DatabaseLimits | None = None,
        leader_limits: LeaderLimits | None = None,
    ) -> None:
        self._limits = limits or DatabaseLimits()
        self._url = checked_url(url)
        self._clock = clock
        self._clock_of_readers = clock or clock_of(self._url)
        self._encode_fact = encode_fact
        self._new_id = new_id
        self._dispatcher = dispatcher
        self._is_told = False
        """Whether the dispatcher knows what the rows say."""
        self._unsure: Committed | None = None
        """What a transaction changed of which nobody knows whether it is on disk: it is told with the next one."""
        self._transactions = 0
        self._projects: dict[str, Project] = {}
        """Those that transactions have read, as they are on disk: nobody but the writer changes one."""
        self.leader = Leader(self._url, leader_limits)
        make = partial(make_engine, self._url, self.leader, limits=self._limits)
        self.writing = make(readers=None)
        self._reading = make(readers=self._limits.readers)
        self._driver_error: type[Exception] = self.writing.dialect.loaded_dbapi.Error
        self._listing = make(readers=self._limits.list_readers, lists=True)
        self._log = WriteAheadLog(self.writing, bytes_max=self._limits.log_bytes_max)
        self._waiting = Waiting(self._limits)
        self._gathering = Gathering(self._waiting, limits=self._limits)
        self._writer = threading.Thread(target=self._write_for_ever, name="database-writer", daemon=True)
        self._readers = ThreadPoolExecutor(self._limits.readers, thread_name_prefix="database-reader")
        self._list_readers = ThreadPoolExecutor(self._limits.list_readers, thread_name_prefix="database-lister")
        self._lists = 0
        self.clock_ahead_us = 0
        """By how much the clock was set forward since this process began; see `old_time_us`."""
        self.on_reload: list[Callable[[Transaction], None]] = []
        """Called in the writer's thread where the dispatcher is to be told anew what the rows say."""
        self.renew_sealed: Callable[[bytes], bytes] = lambda sealed: sealed
        """Seals by the newest key what an older one sealed; called in the writer's thread."""
        self.before_commit: list[Callable[[Transaction], None]] = []
        """Called in the writer's thread at the end of each transaction, in a savepoint of their own."""
        self.after_commit: list[Callable[[Committed], None]] = []
        """Called in the event loop after each transaction that changed something, before its callers go on."""

    def start(self) -> None:
        """Start the writer."""
        self._writer.start()

    def close(self) -> None:
        """Serve what waits, then end. Blocks; nothing may be sent any more."""
        if self._writer.is_alive():
            self._waiting.close()
            self._writer.join()
        self._readers.shutdown()
        self._list_readers.shutdown()
        self.leader.close()
        self.writing.dispose()
        self._reading.dispose()
        self._listing.dispose()

    async def write(
        self,
        work: Callable[[Transaction], Result],
        *,
        then: Callable[[Transaction, Result], Result] | None = None,
        ahead: Ahead = lambda _: (),
        control: bool = False,
    ) -> Result:
        """Run `work` in the writer's transaction and wait until it is on disk. Raises what `work` raises.

        `then` makes the result of what `work` returned, once the transaction has done all else. `ahead`: what `work`
        will ask first, so that it is asked for all who wait at once. `control`: runners, stops and upkeep, which go
        before all that waits otherwise.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        trace_parent = str(get_contextvars().get("trace_parent", ""))
        unit = Unit(
            work=work,
            then=then,
            ahead=ahead,
            trace_parent=trace_parent,
            loop=loop,
            future=future,
            spending=current_spending(),
        )
        self._waiting.put(unit, control=control)
        self._gathering.came(loop, control=control)
        return await future

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction of a reader. Raises what `work` raises."""
        return await _in_thread(self._readers, partial(_read, self._reading, work))

    async def list(self, work: Callable[[Connection], Result]) -> Result:
        """As `read`, for what may be slow: with threads of its own, and ResourceExhausted where too many wait."""
        limit = self._limits.list_queue_max
        if self._lists >= limit:
            raise ResourceExhausted(
                Reason.LIMIT_REACHED,
                f"more than {limit} lists wait for the database: come back in a moment",
                {"what": "list_queue_max", "limit": str(limit)},
            )
        self._lists += 1
        try:
            return await _in_thread(self._list_readers, partial(self._read_long, work))
        finally:
            self._lists -= 1

    def _read_long(self, work: Callable[[Connection], Result]) -> Result:
        with self._log.listing():
            return _read(self._listing, work)

    def old_time_us(self, now_us: int) -> int:
        """The time by which things grow old: a clock that is set forward makes nothing old."""
        return now_us - self.clock_ahead_us

    def now_us(self, connection: Connection) -> int:
        """The time."""
        return self._clock_of_readers(connection)

    def _write_for_ever(self) -> None:
        while queues := [queue for queue in self._waiting.take() if queue]:
            units = [unit for queue in queues for unit in queue]
            began = time.thread_time()
            committed = self._write_batch(units, queues)
            seconds_each = (time.thread_time() - began) / len(units)
            units[0].loop.call_soon_threadsafe(self._finish, units, committed, seconds_each)
            self._log.look()

    def _write_batch(self, units: Sequence[Unit], queues: Sequence[Sequence[Unit]]) -> Committed | None:
        """One transaction. Where it fails as a whole, every unit gets that error and there is nothing to tell."""
        commits = False
        try:
            with self.writing.connect() as connection:
                root = connection.begin()
                try:
                    transaction = self._begin(connection, queues)
                    self._serve(units, queues, transaction)
                    commits = True
                    commit = partial(connection.dialect.do_commit, connection.connection)
                    while not transaction.end(commit):
                        self._complete(units, transaction)
                    root.close()  # it is committed, which SQLAlchemy does not know
                except BaseException:
                    root.rollback()
                    raise
                for unit in units:
                    unit.error = unit.error or unit.part.error
            self._dispatcher.keep()
            self._unsure = None
            return transaction.committed
        except Exception as error:  # noqa: BLE001  # each caller gets it; the writer must live on
            self._dispatcher.undo()
            self._projects.clear()
            if commits:  # it may be on disk all the same
                self._is_told, self._unsure = False, transaction.committed
                self._unsure.given.clear()
                self._unsure.stopping.clear()
            for unit in units:
                unit.error = _away(error) if isinstance(error, (SQLAlchemyError, self._driver_error)) else error
            return None

    def _serve(self, units: Sequence[Unit], queues: Sequence[Sequence[Unit]], transaction: Transaction) -> None:
        """Everything but the commit."""
        for number, queue in enumerate(queues):
            if number > 0:
                transaction.read_ahead(_questions(queue, transaction))
            for unit in queue:
                self._run(unit, transaction, unit.work)
        self._complete(units, transaction)

    def _complete(self, units: Sequence[Unit], transaction: Transaction) -> None:
        """What is done once for all units, and what some do after that: they must know by then what they have done."""
        some = [unit for unit in units if unit.then is not None]
        if some:
            transaction.settle()
        for hook in self.before_commit:
            self._run_hook(hook, transaction)
        for unit in some:
            unit.error = unit.error or unit.part.error
            if unit.error is None:
                self._run(unit, transaction, partial(_then, unit))
                unit.then = None

    def _begin(self, connection: Connection, queues: Sequence[Sequence[Unit]]) -> Transaction:
        self._transactions += 1
        transaction = Transaction(
            connection,
            dispatcher=self._dispatcher,
            projects=self._projects,
            encode_fact=self._encode_fact,
            new_id=self._new_id,
            renew_sealed=self.renew_sealed,
            unsure=self._unsure,
            number=self._transactions,
        )
        transaction.begin(self.leader.fencing(connection), _questions(queues[0], transaction))
        if self._clock is not None:
            transaction.now_us = self._clock(connection)
        if not self._is_told:
            for hook in self.on_reload:
                hook(transaction)
            self._is_told = True
        return transaction

    def _run(self, unit: Unit, transaction: Transaction, work: Callable[[Transaction], Any]) -> None:
        transaction.trace_parent = unit.trace_parent
        try:
            with transaction.part() as unit.part:
                unit.result = work(transaction)
        except SihlaiError as error:
            unit.error = error
        except DBAPIError as error:
            if is_trouble(error):
                raise
            unit.error = error
        except Exception as error:
            if isinstance(error, self._driver_error):
                raise  # a savepoint failed, which goes past SQLAlchemy: the connection is in trouble
            unit.error = error  # its caller gets it; the others in the batch must not

    def _run_hook(self, hook: Callable[[Transaction], None], transaction: Transaction) -> None:
        try:
            with transaction.part():
                hook(transaction)
        except DBAPIError as error:
            if is_trouble(error):
                raise
            log.exception("before_commit_failed")
        except Exception:
            log.exception("before_commit_failed")

    def _finish(self, units: Sequence[Unit], committed: Committed | None, seconds_each: float) -> None:
        self._gathering.served(len(units))
        if committed is not None:
            for hook in self.after_commit:
                hook(committed)
        for unit in units:
            if unit.spending is not None:
                unit.spending.add(seconds_each)
            if unit.future.done():
                continue  # its caller went away
            if unit.error is not None:
                unit.future.set_exception(unit.error)
            else:
                unit.future.set_result(unit.result)


async def _in_thread(executor: ThreadPoolExecutor, read: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(executor, charged(read))


def _read(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    try:
        with engine.begin() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise _away(error) from error


def _questions(queue: Sequence[Unit], transaction: Transaction) -> Iterator[Question]:
    return (question for unit in queue for question in unit.ahead(transaction))


def _then(unit: Unit, transaction: Transaction) -> Any:
    assert unit.then is not None, "it is asked before"
    return unit.then(transaction, unit.result)


def _away(error: Exception) -> SihlaiError:
    log.error("database_failed", problem=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Unavailable(
        Reason.DATABASE_UNAVAILABLE, "the database does not answer: send the call again", retry_after_seconds=1.0
    )
