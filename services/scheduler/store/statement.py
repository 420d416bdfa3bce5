"""Statements of the busiest calls: compiled once by SQLAlchemy, then run through the database's driver.

SQLAlchemy takes several times as long to run a statement as SQLite does. What it knows is used all the same: the SQL of
each dialect, and how a value goes into it and comes out. Errors are SQLAlchemy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import BindParameter, Connection, Delete, Insert, Select, Update
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Reason, Unavailable

Values: TypeAlias = dict[str, Any]
Clause: TypeAlias = Select[Any] | Insert | Update | Delete


class Statement:
    """`clause` takes its values by the names of its parameters; an insert has one for each column of `columns`.

    A `guarded` update is of one row as it was read: where that is not so any more, Unavailable is raised.
    """

    def __init__(self, clause: Clause, *, columns: Sequence[str] | None = None, guarded: bool = False) -> None:
        self._clause = clause
        self._columns = columns
        self._guarded = guarded
        self._compiled: dict[str, _Compiled] = {}

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[Values]:
        """The rows."""
        compiled = self._for(connection.dialect)
        with _cursor(connection, compiled.sql) as cursor:
            cursor.execute(compiled.sql, compiled.bound(values))
            return compiled.rows(cursor)

    def one(self, connection: Connection, values: Mapping[str, Any]) -> Values | None:
        """The only row; None where there is none."""
        rows = self.all(connection, values)
        assert len(rows) <= 1, "there is a key"
        return rows[0] if rows else None

    def each(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> list[list[Values]]:
        """The rows for each of the values, in their order; a server is asked for all of them at once."""
        if len(many) <= 1 or connection.dialect.driver != "psycopg":
            return [self.all(connection, values) for values in many]
        compiled = self._for(connection.dialect)
        driver: Any = connection.connection.driver_connection
        with _errors_of(connection, compiled.sql), driver.pipeline():
            cursors = [driver.execute(compiled.sql, compiled.bound(values)) for values in many]
            return [compiled.rows(cursor) for cursor in cursors]

    def run(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Change rows."""
        compiled = self._for(connection.dialect)
        with _cursor(connection, compiled.sql) as cursor:
            cursor.execute(compiled.sql, compiled.bound(values))
            self._check(cursor, 1)

    def run_each(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> None:
        """Change rows by the statement with each of the values; a server gets all of them at once."""
        if len(many) == 1:
            self.run(connection, many[0])
            return
        compiled = self._for(connection.dialect)
        with _cursor(connection, compiled.sql) as cursor:
            cursor.executemany(compiled.sql, [compiled.bound(values) for values in many])
            self._check(cursor, len(many))

    def _check(self, cursor: Any, rows: int) -> None:
        if self._guarded and cursor.rowcount != rows:
            message = "what this call is about was changed by another: send it again"
            raise Unavailable(Reason.DATABASE_UNAVAILABLE, message)

    def _for(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.driver)
        if compiled is None:
            compiled = self._compiled[dialect.driver] = _Compiled(self._clause, self._columns, dialect)
        return compiled


class _Compiled:
    """The statement in a dialect."""

    def __init__(self, clause: Clause, columns: Sequence[str] | None, dialect: Dialect) -> None:
        if isinstance(clause, Insert):
            clause = clause.inline()  # nobody asks for the key that was given
        compiled: Any = clause.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        assert "POSTCOMPILE" not in self.sql, "the length of a list is no part of a statement that is compiled once"
        binds: Mapping[str, BindParameter[Any]] = compiled.binds
        self._fixed = {name: bind.value for name, bind in binds.items() if not bind.required}
        self._is_positional = compiled.positiontup is not None
        names = compiled.positiontup if self._is_positional else list(binds)
        self._binds = [(name, binds[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in names]
        self._dialect = dialect
        self._columns = list(clause.selected_columns) if isinstance(clause, Select) else []
        self._names = [str(column.key) for column in self._columns]
        self._processed: list[tuple[str, Callable[[Any], Any]]] | None = None
        """What makes values of what the driver finds, where the two differ; known with the first rows."""

    def bound(self, values: Mapping[str, Any]) -> Any:
        """The values as the driver takes them. KeyError where one is missing."""
        given = {**self._fixed, **values} if self._fixed else values
        if self._is_positional:
            return [given[name] if process is None else process(given[name]) for name, process in self._binds]
        return {name: given[name] if process is None else process(given[name]) for name, process in self._binds}

    def rows(self, cursor: Any) -> list[Values]:
        """The rows that the driver found."""
        rows = [dict(zip(self._names, row, strict=True)) for row in cursor.fetchall()]
        if self._processed is None:
            self._processed = list(self._processors(cursor.description))
        for name, process in self._processed:
            for row in rows:
                row[name] = process(row[name])
        return rows

    def _processors(self, description: Sequence[Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        for name, column, (_, driver_type, *_) in zip(self._names, self._columns, description, strict=True):
            process = column.type.dialect_impl(self._dialect).result_processor(self._dialect, driver_type)
            if process is not None:
                yield name, process


@contextmanager
def _cursor(connection: Connection, sql: str) -> Iterator[Any]:
    with _errors_of(connection, sql):
        cursor = connection.connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()


@contextmanager
def _errors_of(connection: Connection, sql: str) -> Iterator[None]:
    """The driver's errors as SQLAlchemy's; a connection that is gone is not used again."""
    dialect = connection.dialect
    assert dialect.loaded_dbapi is not None, "it is connected"
    try:
        yield
    except dialect.loaded_dbapi.Error as error:
        is_gone = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
        wrapped = DBAPIError.instance(
            sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=is_gone
        )
        if is_gone:
            connection.invalidate(error)
        raise wrapped from error
