"""What is said to the database in one go: on PostgreSQL in one round trip (a pipeline), on SQLite one after the other.

A round trip wakes two processes, which takes longer than most statements. Errors are SQLAlchemy's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Unavailable

Result = TypeVar("Result")

PSYCOPG = "psycopg"
_CURSORS = "cursors"
"""Under which a connection's information has those that it says many things with."""

logging.getLogger(PSYCOPG).setLevel(logging.ERROR)
"""It warns of each error behind the one that it raises: what was said after that is not done."""


def nothing(_cursor: Any) -> None:
    """Is to be said or heard."""


def _commit_nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Step(Generic[Result]):
    """A statement. `say` sends it through a cursor of the driver's, `hear` makes of what came what is wanted."""

    sql: str
    say: Callable[[Any], object]
    hear: Callable[[Any], Result]


def words(sql: str) -> Step[None]:
    """A statement without values or rows."""
    return Step(sql=sql, say=lambda cursor: cursor.execute(sql), hear=nothing)


def together(
    connection: Connection, steps: Sequence[Step[Any]], *, commit: Callable[[], None] = _commit_nothing
) -> list[Any]:
    """What comes of each of the steps, and at the end the transaction's commit. After one that fails none is done."""
    with _errors_of(connection, steps):
        driver: Any = connection.connection.dbapi_connection
        many = len(steps) > 1 or commit is not _commit_nothing
        if connection.dialect.driver == PSYCOPG and many:
            return _in_a_pipeline(driver, connection.info.setdefault(_CURSORS, []), steps, commit)
        return _one_by_one(driver, steps, commit)


def _in_a_pipeline(
    driver: Any, cursors: list[Any], steps: Sequence[Step[Any]], commit: Callable[[], None]
) -> list[Any]:
    """`cursors` are the connection's own: psycopg takes as long to make one as to send a statement."""
    cursors += [driver.cursor() for _ in range(len(steps) - len(cursors))]
    try:
        with driver.pipeline():
            for step, cursor in zip(steps, cursors, strict=False):
                step.say(cursor)
            commit()
    except BaseException:
        # psycopg takes for prepared what it meant to prepare behind an error, and forgets it with the whole transaction
        # alone: from then on such a statement would fail each time.
        driver._prepared.clear()
        raise
    return [step.hear(cursor) for step, cursor in zip(steps, cursors, strict=False)]


def _one_by_one(driver: Any, steps: Sequence[Step[Any]], commit: Callable[[], None]) -> list[Any]:
    found = []
    cursor = driver.cursor()
    try:
        for step in steps:
            step.say(cursor)
            found.append(step.hear(cursor))
    finally:
        cursor.close()
    commit()
    return found


@contextmanager
def _errors_of(connection: Connection, steps: Sequence[Step[Any]]) -> Iterator[None]:
    """The driver's errors as SQLAlchemy's; a connection that is gone is not used again."""
    dialect = connection.dialect
    assert dialect.loaded_dbapi is not None, "it is connected"
    try:
        yield
    except dialect.loaded_dbapi.Error as error:
        sql = "; ".join(step.sql for step in steps)
        is_gone = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
        wrapped = DBAPIError.instance(
            sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=is_gone
        )
        if is_gone:
            connection.invalidate(error)
        raise wrapped from error


def is_trouble(error: DBAPIError | Unavailable) -> bool:
    """Whether the database itself is in trouble (disk full, locked, gone), rather than the statement."""
    names = {"OperationalError", "InterfaceError", "InternalError"}
    if isinstance(error, Unavailable):
        return False  # a row was changed by another
    return error.connection_invalidated or type(error).__name__ in names
