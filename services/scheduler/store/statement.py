"""Statements of the busiest calls: compiled once by SQLAlchemy, then run through the database's driver.

SQLAlchemy takes several times as long to run a statement as SQLite does. What it knows is used all the same: the SQL of
each dialect, and how a value goes into it and comes out.

Many of the same are one statement where that is to be had: rows that have one of many keys, and on PostgreSQL new and
changed rows, which go there as one JSON document: psycopg takes longer for the values of a row than PostgreSQL does for
the row.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeAlias, cast

import msgspec
from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    Insert,
    LargeBinary,
    Select,
    Text,
    Update,
    any_,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.engine import Dialect

from services.chassis.errors import Reason, Unavailable
from services.scheduler.store.together import PSYCOPG, Step, nothing, together

Values: TypeAlias = dict[str, Any]
Clause: TypeAlias = Select[Any] | Insert | Update | Delete
KEY = "id"
"""The parameter of a statement that finds rows by a key."""
_KEYS = "ids"
_OWN_KEY = "key of the row"
_ROWS = "rows"
_NUMBER = "number"
_PARAMETER = re.compile(r"%\((\w+)\)s(::[A-Z]+(\([0-9]+\))?)?")
"""As psycopg's are written, with the type that they are cast to."""


def to_json(value: Any) -> str:
    """What is stored in a column of JSON; a tenth of what the standard library takes."""
    return msgspec.json.encode(value).decode()


class NotJson:
    """What a column of JSON holds that is none: nothing can be made of it, and the row that it is in is damaged."""


def from_json(text: str | bytes) -> Any:
    """What is stored in such a column. NotJson is for the row's own reader: here all rows would fail with this one."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        return NotJson()


class Statement:
    """`clause` takes its values by the names of its parameters; an insert has one for each column of `columns`.

    One with a `key` finds the rows in which that column is the value of the parameter KEY. A `guarded` update is of one
    row as it was read, so no two are of the same: where it is not so any more, Unavailable is raised.
    """

    def __init__(
        self,
        clause: Clause,
        *,
        columns: Sequence[str] | None = None,
        key: ColumnElement[str] | None = None,
        guarded: bool = False,
    ) -> None:
        self._clause = clause
        self._columns = columns
        self._key = key
        self.guarded = guarded
        self._compiled: dict[str, _Compiled] = {}
        self._compiled_for_many: dict[str, _Compiled] = {}

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[Values]:
        """The rows."""
        return self.each(connection, [values])[0]

    def one(self, connection: Connection, values: Mapping[str, Any]) -> Values | None:
        """The only row; None where there is none."""
        rows = self.all(connection, values)
        assert len(rows) <= 1, "there is a key"
        return rows[0] if rows else None

    def each(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> list[list[Values]]:
        """The rows for each of the values, in their order; the database is asked for all of them at once."""
        if not many:
            return []
        (found,) = together(connection, [self.asking(connection, many)])
        return cast(list[list[Values]], found)

    def asking(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> Step[list[list[Values]]]:
        """The step of `each`."""
        compiled = self._for(connection.dialect)
        if len(many) == 1:
            bound = compiled.bound(many[0])
            return Step(
                sql=compiled.sql,
                say=lambda cursor: cursor.execute(compiled.sql, bound),
                hear=lambda cursor: [compiled.rows(cursor)],
            )
        if self._key is not None:
            return self._asking_keys(connection.dialect, [values[KEY] for values in many])
        if connection.dialect.driver == PSYCOPG:
            numbered = [{**values, _NUMBER: number} for number, values in enumerate(many)]
            document = compiled.document(numbered)
            return Step(
                sql=compiled.of_document,
                say=lambda cursor: cursor.execute(compiled.of_document, document),
                hear=lambda cursor: compiled.rows_of_each(cursor, len(many)),
            )
        return Step(sql=compiled.sql, say=nothing, hear=partial(_one_after_the_other, compiled, many))

    def changing(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> Step[None]:
        """The step that changes rows by the statement with each of the values; a server gets all of them at once."""
        compiled = self._for(connection.dialect)
        hear = partial(self._check, len(many))
        if len(many) == 1:
            bound = compiled.bound(many[0])
            return Step(sql=compiled.sql, say=lambda cursor: cursor.execute(compiled.sql, bound), hear=hear)
        if compiled.of_document:
            document = compiled.document(many)
            return Step(
                sql=compiled.of_document,
                say=lambda cursor: cursor.execute(compiled.of_document, document),
                hear=hear,
            )
        each = [compiled.bound(values) for values in many]
        return Step(sql=compiled.sql, say=lambda cursor: cursor.executemany(compiled.sql, each), hear=hear)

    def _asking_keys(self, dialect: Dialect, keys: Sequence[str]) -> Step[list[list[Values]]]:
        compiled = self._compiled_for_many.get(dialect.driver)
        if compiled is None:
            compiled = _Compiled(self._clause_for_many(dialect), None, dialect)
            self._compiled_for_many[dialect.driver] = compiled
        sql, made = compiled.sql, compiled.rows
        bound = compiled.bound({_KEYS: keys if dialect.driver == PSYCOPG else to_json(keys)})

        def hear(cursor: Any) -> list[list[Values]]:
            found: dict[str, list[Values]] = {}
            for row in made(cursor):
                found.setdefault(row.pop(_OWN_KEY), []).append(row)
            return [found.get(key, []) for key in keys]

        return Step(sql=sql, say=lambda cursor: cursor.execute(sql, bound), hear=hear)

    def _clause_for_many(self, dialect: Dialect) -> Clause:
        clause, key = self._clause, self._key
        assert isinstance(clause, Select), "what has a key finds rows"
        assert key is not None, "it was asked before"
        if dialect.driver == PSYCOPG:
            is_one = key == any_(bindparam(_KEYS, type_=ARRAY(Text)))
        else:
            is_one = key.in_(select(column("value")).select_from(func.json_each(bindparam(_KEYS, type_=Text))))
        return clause.add_columns(key.label(_OWN_KEY)).where(is_one)

    def _check(self, rows: int, cursor: Any) -> None:
        if self.guarded and cursor.rowcount != rows:
            message = "what this call is about was changed by another: send it again"
            raise Unavailable(Reason.DATABASE_UNAVAILABLE, message)

    def _for(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.driver)
        if compiled is None:
            clause = self._clause
            if self._key is not None:
                assert isinstance(clause, Select), "what has a key finds rows"
                clause = clause.where(self._key == bindparam(KEY, type_=Text))
            compiled = _Compiled(clause, self._columns, dialect, guarded=self.guarded)
            self._compiled[dialect.driver] = compiled
        return compiled


class _Compiled:
    """The statement in a dialect. `of_document`: the same for any number of rows, where there is such a one."""

    def __init__(
        self, clause: Clause, columns: Sequence[str] | None, dialect: Dialect, *, guarded: bool = False
    ) -> None:
        if isinstance(clause, Insert):
            clause = clause.inline()  # nobody asks for the key that was given
        compiled: Any = clause.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        assert "POSTCOMPILE" not in self.sql, "the length of a list is no part of a statement that is compiled once"
        binds: Mapping[str, BindParameter[Any]] = compiled.binds
        self._fixed = {name: bind.value for name, bind in binds.items() if not bind.required}
        types = {name: bind.type for name, bind in binds.items() if bind.required}
        self.of_document = ""
        if dialect.driver == PSYCOPG and (isinstance(clause, (Insert, Select)) or guarded):
            binary = {name for name, kind in types.items() if isinstance(kind, LargeBinary)}
            typed = {name: "TEXT" if name in binary else kind.compile(dialect=dialect) for name, kind in types.items()}
            self.of_document = _of_document(self.sql, typed, binary)
        self._is_positional = compiled.positiontup is not None
        self._binds: list[str] = compiled.positiontup if self._is_positional else list(binds)
        self._taken = _taker(self._binds)
        processors = [binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in self._binds]
        self._bind_processors = [(index, each) for index, each in enumerate(processors) if each is not None]
        self._dialect = dialect
        self._columns = list(clause.selected_columns) if isinstance(clause, Select) else []
        self._names = [sys.intern(str(column.key)) for column in self._columns]
        """As Python has the names of fields: SQLAlchemy's own are slow to be told from one another."""
        self._processed: list[tuple[str, Callable[[Any], Any]]] | None = None
        """What makes values of what the driver finds, where the two differ; known with the first rows."""

    def bound(self, values: Mapping[str, Any]) -> Any:
        """The values as the driver takes them. KeyError where one is missing."""
        given = {**self._fixed, **values} if self._fixed else values
        bound = list(self._taken(given))
        for index, process in self._bind_processors:
            bound[index] = process(bound[index])
        return bound if self._is_positional else dict(zip(self._binds, bound, strict=True))

    def document(self, many: Sequence[Mapping[str, Any]]) -> Values:
        """The rows as `of_document` takes them. Bytes are in it in base64, as msgspec writes them."""
        return {**self._fixed, _ROWS: to_json(many)}

    def rows(self, cursor: Any) -> list[Values]:
        """The rows that the driver found."""
        return self._made(cursor.fetchall(), cursor.description)

    def rows_of_each(self, cursor: Any, number: int) -> list[list[Values]]:
        """Those that it found for each row of a document, by the row's number."""
        found: list[list[Values]] = [[] for _ in range(number)]
        rows = cursor.fetchall()
        made = self._made([row[:-1] for row in rows], cursor.description[:-1])
        for row, values in zip(rows, made, strict=True):
            found[row[-1]].append(values)
        return found

    def _made(self, found: Sequence[Sequence[Any]], description: Sequence[Any]) -> list[Values]:
        rows = [dict(zip(self._names, row, strict=True)) for row in found]
        if self._processed is None:
            self._processed = list(self._processors(description))
        for name, process in self._processed:
            for row in rows:
                row[name] = process(row[name])
        return rows

    def _processors(self, description: Sequence[Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        for name, found, (_, driver_type, *_) in zip(self._names, self._columns, description, strict=True):
            process = found.type.dialect_impl(self._dialect).result_processor(self._dialect, driver_type)
            if process is not None:
                yield name, process


def _taker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """What takes the values of these names."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: [values[name] for name in names]


def _of_document(sql: str, types: Mapping[str, str], binary: Set[str]) -> str:
    """PostgreSQL's statement for many rows, whose columns stand where the one for a single row has its parameters."""

    def column_of(found: re.Match[str]) -> str:
        name = found[1]
        if name not in types:
            return found[0]
        return f"decode(given.{name}, 'base64')" if name in binary else f"given.{name}"

    of_rows = _PARAMETER.sub(column_of, sql)
    numbered = {**types, _NUMBER: "INTEGER"} if sql.startswith("SELECT") else types
    typed = ", ".join(f"{name} {kind}" for name, kind in numbered.items())
    rows = f"json_to_recordset(%({_ROWS})s::json) AS given({typed})"
    if sql.startswith("SELECT"):
        return f"SELECT found.*, given.{_NUMBER} FROM {rows} CROSS JOIN LATERAL ({of_rows}) AS found"  # noqa: S608
    if of_rows.startswith("INSERT"):
        head, _, values = of_rows.partition(" VALUES ")
        return f"{head} SELECT {values.strip('()')} FROM {rows}"  # noqa: S608  # our own names
    head, _, condition = of_rows.partition(" WHERE ")
    return f"{head} FROM {rows} WHERE {condition}"


def _one_after_the_other(compiled: _Compiled, many: Sequence[Mapping[str, Any]], cursor: Any) -> list[list[Values]]:
    found = []
    for values in many:
        cursor.execute(compiled.sql, compiled.bound(values))
        found.append(compiled.rows(cursor))
    return found
