"""The database: one writer thread with group commit, and a few readers. Here and in `leader` alone SQLite is known from
PostgreSQL.

`write(work)` runs `work` in the writer's thread, together with whatever else waits, in one transaction: each as a part
of its own, so that one that fails takes nothing with it (see `transaction`). It returns when the transaction is on
disk. Nothing may wait for the network in there. `read(work)` runs in a reader's thread and sees one snapshot.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.chassis.errors import Reason, ResourceExhausted, SihlaiError, Unavailable
from services.chassis.log import get_contextvars, get_logger
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.store.leader import Leader, checked_url
from services.scheduler.store.transaction import (
    Committed,
    EncodeFact,
    Part,
    Question,
    Transaction,
    is_trouble,
)

log = get_logger(__name__)

Result = TypeVar("Result")
Clock = Callable[[Connection], int]
"""Microseconds since 1970. On PostgreSQL the database's own clock, on SQLite the machine's, which is the same."""

READ_CACHE_KIB = 16 * 1024
WRITE_CACHE_KIB = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class DatabaseLimits:
    """The database's queues and waits."""

    batch_max: int = 256
    """Requests that one transaction serves at most."""
    queue_max: int = 20_000
    """Requests that may wait for the writer."""
    control_queue_max: int = 20_000
    """Requests of runners, stops and upkeep that may wait for the writer, in a queue of their own."""
    ordinary_min: int = 16
    """Other requests that a transaction takes however many of the former wait."""
    readers: int = 4
    """Threads for what runners and stops ask."""
    list_readers: int = 2
    """Threads for lists and watches, which may be slow, and delay nothing but one another."""
    list_queue_max: int = 1_000
    """Lists that may wait for a thread."""
    busy_seconds: float = 10.0
    """How long a statement waits for a lock that another process holds (a backup, a shell)."""


class _Waiting:
    """The writer's two queues: what keeps runners alive goes before everything else."""

    def __init__(self, limits: DatabaseLimits) -> None:
        self._limits = limits
        self._control: deque[_Unit] = deque()
        self._ordinary: deque[_Unit] = deque()
        self._filled = threading.Condition()
        self._closed = False

    def put(self, unit: _Unit, *, control: bool) -> None:
        """Raises ResourceExhausted where the queue is full."""
        queue, name = (self._control, "control_queue_max") if control else (self._ordinary, "write_queue_max")
        limit = self._limits.control_queue_max if control else self._limits.queue_max
        with self._filled:
            if len(queue) >= limit:
                raise ResourceExhausted(
                    Reason.LIMIT_REACHED,
                    f"more than {limit} requests wait for the database: come back in a moment",
                    {"what": name, "limit": str(limit)},
                )
            queue.append(unit)
            self._filled.notify()

    def close(self) -> None:
        """Nothing more comes; what waits is still served."""
        with self._filled:
            self._closed = True
            self._filled.notify()

    def take(self) -> tuple[list[_Unit], list[_Unit]]:
        """What the next transaction serves, as soon as there is anything; nothing once it is closed and empty.

        What goes first, and the rest.
        """
        with self._filled:
            while not (self._control or self._ordinary or self._closed):
                self._filled.wait()
            control = _taken(self._control, self._limits.batch_max)
            room = max(self._limits.batch_max - len(control), self._limits.ordinary_min)
            return control, _taken(self._ordinary, room)


def _taken(queue: deque[_Unit], number: int) -> list[_Unit]:
    return [queue.popleft() for _ in range(min(number, len(queue)))]


@dataclass(kw_only=True)
class _Unit:
    work: Callable[[Transaction], Any]
    then: Callable[[Transaction, Any], Any] | None
    ahead: Sequence[Question]
    trace_parent: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    part: Part = field(default_factory=Part)
    result: Any = None
    error: BaseException | None = None


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
    ) -> None:
        self._limits = limits or DatabaseLimits()
        self._url = checked_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._clock = clock or (_machine_clock if self._is_sqlite else _postgresql_clock)
        self._encode_fact = encode_fact
        self._new_id = new_id
        self._dispatcher = dispatcher
        self._is_told = False
        """Whether the dispatcher knows what the rows say."""
        self._unsure: Committed | None = None
        """What a transaction changed of which nobody knows whether it is on disk: it is told with the next one."""
        self._transactions = 0
        self.leader = Leader(self._url)
        self.writing = self._engine(readers=None)
        self._reading = self._engine(readers=self._limits.readers)
        self._driver_error: type[Exception] = self.writing.dialect.loaded_dbapi.Error
        self._listing = self._engine(readers=self._limits.list_readers, lists=True)
        self._waiting = _Waiting(self._limits)
        self._writer = threading.Thread(target=self._write_for_ever, name="database-writer", daemon=True)
        self._readers = ThreadPoolExecutor(self._limits.readers, thread_name_prefix="database-reader")
        self._list_readers = ThreadPoolExecutor(self._limits.list_readers, thread_name_prefix="database-lister")
        self._lists = 0
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
        ahead: Sequence[Question] = (),
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
        unit = _Unit(work=work, then=then, ahead=ahead, trace_parent=trace_parent, loop=loop, future=future)
        self._waiting.put(unit, control=control)
        return await future

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction of a reader. Raises what `work` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, _read, self._reading, work)

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
            return await asyncio.get_running_loop().run_in_executor(self._list_readers, _read, self._listing, work)
        finally:
            self._lists -= 1

    def now_us(self, connection: Connection) -> int:
        """The time."""
        return self._clock(connection)

    def _write_for_ever(self) -> None:
        while any(queues := self._waiting.take()):
            units = [unit for queue in queues for unit in queue]
            committed = self._write_batch(units, queues)
            units[0].loop.call_soon_threadsafe(self._finish, units, committed)

    def _write_batch(self, units: Sequence[_Unit], queues: Sequence[Sequence[_Unit]]) -> Committed | None:
        """One transaction. Where it fails as a whole, every unit gets that error and there is nothing to tell."""
        commits = False
        try:
            with self.writing.connect() as connection, connection.begin():
                transaction = self._begin(connection)
                for queue in queues:
                    transaction.read_ahead(question for unit in queue for question in unit.ahead)
                    for unit in queue:
                        self._run(unit, transaction, unit.work)
                transaction.settle()
                for hook in self.before_commit:
                    self._run_hook(hook, transaction)
                transaction.settle()
                for unit in units:
                    unit.error = unit.error or unit.part.error
                    if unit.then is not None and unit.error is None:
                        self._run(unit, transaction, partial(_then, unit))
                transaction.flush()
                commits = True
            self._dispatcher.keep()
            self._unsure = None
            return transaction.committed
        except Exception as error:  # noqa: BLE001  # each caller gets it; the writer must live on
            self._dispatcher.undo()
            if commits:  # it may be on disk all the same
                self._is_told, self._unsure = False, transaction.committed
                self._unsure.given.clear()
            for unit in units:
                unit.error = _away(error) if isinstance(error, (SQLAlchemyError, self._driver_error)) else error
            return None

    def _begin(self, connection: Connection) -> Transaction:
        self._transactions += 1
        revision = self.leader.fence(connection)
        transaction = Transaction(
            connection,
            self._clock(connection),
            dispatcher=self._dispatcher,
            encode_fact=self._encode_fact,
            new_id=self._new_id,
            renew_sealed=self.renew_sealed,
            revision=revision,
            unsure=self._unsure,
            number=self._transactions,
        )
        if not self._is_told:
            for hook in self.on_reload:
                hook(transaction)
            self._is_told = True
        return transaction

    def _run(self, unit: _Unit, transaction: Transaction, work: Callable[[Transaction], Any]) -> None:
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

    def _finish(self, units: Sequence[_Unit], committed: Committed | None) -> None:
        if committed is not None:
            for hook in self.after_commit:
                hook(committed)
        for unit in units:
            if unit.future.done():
                continue  # its caller went away
            if unit.error is not None:
                unit.future.set_exception(unit.error)
            else:
                unit.future.set_result(unit.result)

    def _engine(self, *, readers: int | None, lists: bool = False) -> Engine:
        """The writer's engine (`readers` is None), the readers', or the one of `lists`."""
        if not self._is_sqlite:
            size: dict[str, Any] = {"pool_size": readers or 1, "max_overflow": 1, "pool_pre_ping": True}
            level = "READ COMMITTED" if readers is None else "REPEATABLE READ"
            arguments = self.leader.connect_args(lists=lists)
            return create_engine(self._url, isolation_level=level, connect_args=arguments, **size)
        options: dict[str, Any] = {"connect_args": {"timeout": self._limits.busy_seconds, "check_same_thread": False}}
        if readers is not None:
            options |= {"pool_size": readers, "max_overflow": 0}
        engine = create_engine(self._url, **options)
        begin = "BEGIN IMMEDIATE" if readers is None else "BEGIN"
        _prepare_sqlite(engine, begin=begin, cache_kib=WRITE_CACHE_KIB if readers is None else READ_CACHE_KIB)
        return engine


def _read(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    try:
        with engine.begin() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise _away(error) from error


def _then(unit: _Unit, transaction: Transaction) -> Any:
    assert unit.then is not None, "it is asked before"
    return unit.then(transaction, unit.result)


def _prepare_sqlite(engine: Engine, *, begin: str, cache_kib: int) -> None:
    """WAL, every commit synced to disk, and transactions that begin where we say so."""

    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 would begin transactions by its own rules, and late: writers that read first get SQLITE_BUSY.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"cache_size=-{cache_kib}", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _machine_clock(_connection: Connection) -> int:
    return time.time_ns() // 1000


def _postgresql_clock(connection: Connection) -> int:
    row = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))
    return int(row.scalar_one())


def _away(error: Exception) -> SihlaiError:
    log.error("database_failed", problem=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Unavailable(
        Reason.DATABASE_UNAVAILABLE, "the database does not answer: send the call again", retry_after_seconds=1.0
    )
