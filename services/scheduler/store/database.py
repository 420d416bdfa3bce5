"""The database: one writer thread with group commit, and a few readers. Only here SQLite is known from PostgreSQL.

`write(work)` runs `work` in the writer's thread, together with whatever else waits, in one transaction: each in a
savepoint of its own, so that one that fails takes nothing with it. It returns when the transaction is on disk. Nothing
may wait for the network in there. `read(work)` runs in a reader's thread and sees one snapshot.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from services.chassis.errors import ConfigurationError, Reason, ResourceExhausted, SihlaiError, Unavailable
from services.chassis.log import get_contextvars, get_logger
from services.scheduler.store.transaction import Committed, EncodeFact, Transaction

log = get_logger(__name__)

Result = TypeVar("Result")
Clock = Callable[[Connection], int]
"""Microseconds since 1970. On PostgreSQL the database's own clock, on SQLite the machine's, which is the same."""

SCHEDULER_LOCK = 0x5149_4841  # any number that no other program of this database uses
READ_CACHE_KIB = 16 * 1024
WRITE_CACHE_KIB = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class DatabaseLimits:
    """The database's queues and waits."""

    batch_max: int = 256
    """Requests that one transaction serves at most."""
    queue_max: int = 20_000
    """Requests that may wait for the writer."""
    readers: int = 4
    busy_seconds: float = 10.0
    """How long a statement waits for a lock that another process holds (a backup, a shell)."""


@dataclass(kw_only=True)
class _Unit:
    work: Callable[[Transaction], Any]
    trace_parent: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Database:
    """Make it, `migrate` (see migrations), `start`, use it, `close`. `read` and `write` belong to one event loop."""

    def __init__(
        self,
        url: str,
        *,
        encode_fact: EncodeFact,
        new_id: Callable[[], str],
        clock: Clock | None = None,
        limits: DatabaseLimits | None = None,
    ) -> None:
        self._limits = limits or DatabaseLimits()
        self._url = _checked_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._clock = clock or (_machine_clock if self._is_sqlite else _postgresql_clock)
        self._encode_fact = encode_fact
        self._new_id = new_id
        self.writing = self._engine(readers=None)
        self._reading = self._engine(readers=self._limits.readers)
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_for_ever, name="database-writer", daemon=True)
        self._readers = ThreadPoolExecutor(self._limits.readers, thread_name_prefix="database-reader")
        self._lock: Any = None
        self.before_commit: list[Callable[[Transaction], None]] = []
        """Called in the writer's thread at the end of each transaction, in a savepoint of their own."""
        self.after_commit: list[Callable[[Committed], None]] = []
        """Called in the event loop after each transaction that changed something, before its callers go on."""

    def hold_alone(self) -> None:
        """Take the database for this process, or raise ConfigurationError where another scheduler has it."""
        problem = f"another scheduler works on {self._url.render_as_string(hide_password=True)}: end it first"
        if self._is_sqlite:
            path = Path(str(self._url.database) + ".lock")
            self._lock = path.open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError([problem]) from error
            return
        self._lock = self._reading.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not self._lock.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": SCHEDULER_LOCK}).scalar():
            raise ConfigurationError([problem])

    def start(self) -> None:
        """Start the writer."""
        self._writer.start()

    def close(self) -> None:
        """Serve what waits, then end. Blocks; nothing may be sent any more."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()
        self._readers.shutdown()
        if self._lock is not None:
            self._lock.close()
        self.writing.dispose()
        self._reading.dispose()

    async def write(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` in the writer's transaction and wait until it is on disk. Raises what `work` raises."""
        if self._queue.qsize() >= self._limits.queue_max:
            raise ResourceExhausted(
                Reason.LIMIT_REACHED,
                f"more than {self._limits.queue_max} requests wait for the database: come back in a moment",
                {"what": "write_queue_max", "limit": str(self._limits.queue_max)},
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        trace_parent = str(get_contextvars().get("trace_parent", ""))
        self._queue.put(_Unit(work=work, trace_parent=trace_parent, loop=loop, future=future))
        return await future

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction of a reader. Raises what `work` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def now_us(self, connection: Connection) -> int:
        """The time."""
        return self._clock(connection)

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        try:
            with self._reading.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise _away(error) from error

    def _write_for_ever(self) -> None:
        while (first := self._queue.get()) is not None:
            units, is_last = [first], False
            while len(units) < self._limits.batch_max and not is_last:
                try:
                    unit = self._queue.get_nowait()
                except queue.Empty:
                    break
                is_last = unit is None
                if unit is not None:
                    units.append(unit)
            committed = self._write_batch(units)
            units[0].loop.call_soon_threadsafe(self._finish, units, committed)
            if is_last:
                return

    def _write_batch(self, units: Sequence[_Unit]) -> Committed | None:
        """One transaction. Where it fails as a whole, every unit gets that error and there is nothing to tell."""
        try:
            with self.writing.connect() as connection, connection.begin():
                transaction = Transaction(connection, self._clock(connection), self._encode_fact, self._new_id)
                for unit in units:
                    self._run(unit, transaction)
                for hook in self.before_commit:
                    self._run_hook(hook, transaction)
                transaction.flush()
            return transaction.committed
        except Exception as error:  # noqa: BLE001  # each caller gets it; the writer must live on
            for unit in units:
                unit.error = _away(error) if isinstance(error, SQLAlchemyError) else error
            return None

    def _run(self, unit: _Unit, transaction: Transaction) -> None:
        transaction.trace_parent = unit.trace_parent
        try:
            with transaction.savepoint():
                unit.result = unit.work(transaction)
        except SihlaiError as error:
            unit.error = error
        except DBAPIError as error:
            if error.connection_invalidated or _is_operational(error):
                raise
            unit.error = error
        except Exception as error:  # noqa: BLE001  # its caller gets it; the others in the batch must not
            unit.error = error

    def _run_hook(self, hook: Callable[[Transaction], None], transaction: Transaction) -> None:
        try:
            with transaction.savepoint():
                hook(transaction)
        except DBAPIError as error:
            if error.connection_invalidated or _is_operational(error):
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

    def _engine(self, *, readers: int | None) -> Engine:
        """The writer's engine (`readers` is None) or the readers'."""
        if not self._is_sqlite:
            size: dict[str, Any] = {"pool_size": readers or 1, "max_overflow": 1, "pool_pre_ping": True}
            level = "READ COMMITTED" if readers is None else "REPEATABLE READ"
            return create_engine(self._url, isolation_level=level, **size)
        options: dict[str, Any] = {"connect_args": {"timeout": self._limits.busy_seconds, "check_same_thread": False}}
        if readers is not None:
            options |= {"pool_size": readers, "max_overflow": 0}
        engine = create_engine(self._url, **options)
        begin = "BEGIN IMMEDIATE" if readers is None else "BEGIN"
        _prepare_sqlite(engine, begin=begin, cache_kib=WRITE_CACHE_KIB if readers is None else READ_CACHE_KIB)
        return engine


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


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError([f"database_url {url!r} is no address of a database"]) from error
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError(["database_url names no file: sqlite:////folder/scheduler.sqlite"])
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        return parsed
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigurationError([f"database_url is for {parsed.get_backend_name()}, but must be for sqlite or postgresql"])


def _is_operational(error: DBAPIError) -> bool:
    """Whether the database itself is in trouble (disk full, locked, gone), rather than the statement."""
    return type(error).__name__ in {"OperationalError", "InterfaceError", "InternalError"}


def _away(error: SQLAlchemyError) -> SihlaiError:
    log.error("database_failed", problem=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Unavailable(
        Reason.DATABASE_UNAVAILABLE, "the database does not answer: send the call again", retry_after_seconds=1.0
    )
