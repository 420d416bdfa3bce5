"""One scheduler writes. On SQLite a lock of a file says which; on PostgreSQL a lock of the server, and a number.

The server's lock lives as long as the connection that took it: a scheduler that dies, hangs or is cut off loses it
within `silence_seconds`, and one that stands by takes it. So that the former one, which may not know yet, can write no
more, each leader raises the number `leader`, and each transaction begins with the row of that number, locked: a
transaction of a former leader either ended before the number was raised or finds another one and is refused.

A leader that hangs in the middle of what it says in one go (see `together`) is waited for by the server without end: no
timeout holds there, and the row stays locked. So who takes the lead first ends the former one's connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, literal, or_, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError, Reason, Unavailable
from services.chassis.log import get_logger
from services.chassis.tls import require_encrypted
from services.scheduler.store.clock import SERVER_TIME_US, Fence, machine_time_us
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.tables import counters
from services.scheduler.store.together import Step
from services.scheduler.store.transaction import REVISION

log = get_logger(__name__)

ENCRYPTED = ("require", "verify-ca", "verify-full")
"""The modes of libpq in which nothing is said in the clear; the last one also knows whom it speaks to."""

SCHEDULER_LOCK = 0x5149_4841  # any number that no other program of this database uses
LEADER = "leader"
RESTORED_SEQUENCE, RESTORED_EPOCH = "restored_sequence", "restored_epoch"
FENCING = (LEADER, REVISION, RESTORED_SEQUENCE, RESTORED_EPOCH)
"""What each transaction begins with."""
WRITER = "sihlai scheduler, writing"
"""What the server knows the writer's connection by."""
_END_FORMER = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = :writer"
    " AND datname = current_database() AND usename = current_user"
)
PROBLEM_CHARACTERS_MAX = 500
_TERM = select(counters.c.value).where(counters.c.name == LEADER)
_ROWS = select(counters.c.name, counters.c.value).where(or_(*(counters.c.name == name for name in FENCING)))
_NUMBERS = Statement(_ROWS)
_NUMBERS_AND_TIME = Statement(_ROWS.add_columns(SERVER_TIME_US).with_for_update())


@dataclass(frozen=True, kw_only=True)
class LeaderLimits:
    """How soon a leader that is gone is noticed."""

    look_seconds: float = 0.5
    """How often the leader looks whether it still has the lock, and a standby whether it can have it."""
    silence_seconds: float = 3.0
    """The server ends a connection of a leader that has said nothing for so long, and a transaction that hangs."""
    connect_seconds: int = 2
    """How long a connection to the server may take."""


class Leader:
    """Takes the lead for this process, keeps it, and refuses transactions of who has lost it. `url` is checked."""

    def __init__(self, url: URL, limits: LeaderLimits | None = None) -> None:
        self._url = url
        self._limits = limits or LeaderLimits()
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self._file: Any = None
        self._engine = (
            None
            if self._is_sqlite
            else create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args=self._lock_args())
        )
        self._connection: Connection | None = None
        self._using = threading.Lock()
        self._term: int | None = None

    def take(self) -> bool:
        """Whether this process leads now: it may migrate. On SQLite ConfigurationError where another one does."""
        if self._is_sqlite:
            self._take_file()
            return True
        assert self._engine is not None, "there is a server"
        with self._using:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                lock = text("SELECT pg_try_advisory_lock(:key)")
                if not self._connection.execute(lock, {"key": SCHEDULER_LOCK}).scalar():
                    return False
                if ended := self._connection.execute(_END_FORMER, {"writer": WRITER}).scalar():
                    log.info("former_leader_ended", connections=ended)
                return True
            except SQLAlchemyError as error:
                self._drop_connection()
                raise _unreachable(error) from error

    def begin(self) -> None:
        """The tables are there: from now on transactions of former leaders are refused, and ours are not. Unavailable
        where the lead is lost meanwhile.
        """
        if self._is_sqlite:
            return
        with self._using:
            assert self._connection is not None, "it was taken"
            raised = update(counters).where(counters.c.name == LEADER).values(value=counters.c.value + 1)
            try:
                self._term = int(self._connection.execute(raised.returning(counters.c.value)).scalar_one())
            except SQLAlchemyError as error:
                self._drop_connection()
                raise lost() from error
        log.info("leads", term=self._term)

    def fencing(self, connection: Connection) -> Step[Fence]:
        """The step that begins a transaction: the row of the last revision is locked, so that revisions become visible
        in their order. Unavailable where another scheduler leads now.
        """
        asking = (_NUMBERS if self._is_sqlite else _NUMBERS_AND_TIME).asking(connection, [{}])
        return Step(sql=asking.sql, say=asking.say, hear=lambda cursor: self._fence(asking.hear(cursor)[0]))

    def _fence(self, rows: Sequence[Values]) -> Fence:
        found = {row["name"]: int(row["value"]) for row in rows}
        if self._term is not None and found[LEADER] != self._term:
            raise lost()
        now_us = machine_time_us() if self._is_sqlite else int(rows[0]["now_us"])
        return Fence(
            revision=found[REVISION],
            now_us=now_us,
            restored_sequence=found.get(RESTORED_SEQUENCE, 0),
            restored_epoch=found.get(RESTORED_EPOCH, 0),
        )

    def look(self) -> None:
        """Raise Unavailable where the lead is lost. Blocks for a moment; to be called every `look_seconds` from `take`
        on: the server ends the lock's connection where nothing is said on it for longer.
        """
        if self._is_sqlite:
            return
        with self._using:
            if self._connection is None:
                raise lost()
            # Before `begin` there may be no tables.
            asked = select(literal(None)) if self._term is None else _TERM
            try:
                term = self._connection.execute(asked).scalar_one()
            except SQLAlchemyError as error:
                self._drop_connection()
                raise lost() from error
            if term != self._term:
                raise lost()

    def close(self) -> None:
        """Let go of the lead."""
        if self._file is not None:
            self._file.close()
        with self._using:
            self._drop_connection()

    def connect_args(self, *, writes: bool = False, lists: bool = False) -> dict[str, Any]:
        """For every other connection to the server: none hangs in a transaction, or on a line that is cut.

        `writes`: the writer's.

        `lists`: each takes one core of the server at most, as what runners and stops ask has to come through. All else
        is a step into an index, also where PostgreSQL has no statistics of a table yet, or old ones: it would go
        through a table of a million rows that was small a minute before.
        """
        plans = "-c max_parallel_workers_per_gather=0" if lists else "-c enable_seqscan=off -c jit=off"
        arguments = self._args(f"-c idle_in_transaction_session_timeout={self._silence_ms} {plans}")
        return {**arguments, "application_name": WRITER} if writes else arguments

    def _lock_args(self) -> dict[str, Any]:
        silence = f"-c idle_session_timeout={self._silence_ms} -c statement_timeout={self._silence_ms}"
        return self._args(silence)

    def _args(self, options: str) -> dict[str, Any]:
        seconds = max(1, int(self._limits.silence_seconds) // 3)
        ours = {"keepalives_idle": seconds, "keepalives_interval": seconds, "keepalives_count": 2}
        theirs = f"-c tcp_keepalives_idle={seconds} -c tcp_keepalives_interval={seconds} -c tcp_keepalives_count=2"
        return {
            **ours,
            "tcp_user_timeout": self._silence_ms,
            "connect_timeout": self._limits.connect_seconds,
            "options": f"{options} {theirs}",
        }

    @property
    def _silence_ms(self) -> int:
        return round(self._limits.silence_seconds * 1_000)

    @property
    def look_seconds(self) -> float:
        """How often to `look`, and to try to `take`."""
        return self._limits.look_seconds

    def _take_file(self) -> None:
        path = Path(str(self._url.database) + ".lock")
        self._file = path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = f"another scheduler works on {self._url.render_as_string(hide_password=True)}: end it first"
            raise ConfigurationError([problem]) from error

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None


def checked_url(url: str) -> URL:
    """The address of a database that the scheduler can work on, or ConfigurationError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not quoted, and nothing chained: it may hold a password, which SQLAlchemy would repeat.
        problem = "database_url is no address of a database: sqlite:////folder/scheduler.sqlite or postgresql://…"
        raise ConfigurationError([problem]) from None
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError(["database_url names no file: sqlite:////folder/scheduler.sqlite"])
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        return parsed
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigurationError([f"database_url is for {parsed.get_backend_name()}, but must be for sqlite or postgresql"])


def require_encrypted_database(config: ServerConfig, url: str) -> None:
    """ConfigurationError where PostgreSQL lies on another machine and may be called without TLS.

    By libpq's default (`sslmode=prefer`) it is, without a word, where the server, or who stands between, has none.
    """
    parsed = checked_url(url)
    if parsed.get_backend_name() == "sqlite":
        return
    hosts = [parsed.host or ""]
    for key in ("host", "hostaddr"):  # of several servers, with or without their ports
        given = parsed.query.get(key, ())
        hosts += [part for text in ([given] if isinstance(given, str) else given) for part in text.split(",")]
    hosts = [host.partition(":")[0] if host.count(":") == 1 else host for host in hosts]
    way = f"add ?sslmode={ENCRYPTED[-1]}&sslrootcert=/ca.pem"
    encrypted = parsed.query.get("sslmode") in ENCRYPTED
    require_encrypted(config, "database_url", hosts, encrypted=encrypted, way=way)


def lost() -> Unavailable:
    """What a call gets whose scheduler does not lead any more."""
    message = "another scheduler has taken the lead: send the call again, there"
    return Unavailable(Reason.DATABASE_UNAVAILABLE, message, {"what": LEADER}, retry_after_seconds=1.0)


def _unreachable(error: SQLAlchemyError) -> Unavailable:
    # All lines of the driver's: for a name with several addresses it says what was wrong with each.
    problem = " ".join(str(getattr(error, "orig", None) or error).split())[:PROBLEM_CHARACTERS_MAX]
    return Unavailable(Reason.DATABASE_UNAVAILABLE, f"the database does not answer: {type(error).__name__}: {problem}")
