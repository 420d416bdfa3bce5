"""What a database's writer says to its driver, statement by statement: also what goes past SQLAlchemy."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus
from sqlalchemy import Engine, event


@dataclass(frozen=True, kw_only=True)
class Executed:
    """`many`: `parameters` are a list, one for each time. `waits`: the answer comes before the next one is sent."""

    statement: str
    parameters: Any
    many: bool = False
    waits: bool = True


def record(engine: Engine) -> list[list[Executed]]:
    """One list for each transaction, from the engine's first connection on. Call it before that."""
    groups: list[list[Executed]] = [[]]

    class SqliteCursor(sqlite3.Cursor):
        def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
            groups[-1].append(Executed(statement=statement, parameters=parameters))
            return super().execute(statement, parameters)

        def executemany(self, statement: str, many: Any) -> sqlite3.Cursor:
            groups[-1].append(Executed(statement=statement, parameters=list(many), many=True))
            return super().executemany(statement, many)

    class SqliteConnection(sqlite3.Connection):
        def cursor(self, factory: Any = SqliteCursor) -> Any:
            return super().cursor(factory)

    class PostgresqlCursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            waits = self.connection.pgconn.pipeline_status == PipelineStatus.OFF
            groups[-1].append(Executed(statement=str(query), parameters=params, waits=waits))
            return super().execute(query, params, **options)

        def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
            groups[-1].append(Executed(statement=str(query), parameters=list(params_seq), many=True))
            super().executemany(query, params_seq, **options)

    def connect(dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        options |= (
            {"cursor_factory": PostgresqlCursor} if dialect.driver == "psycopg" else {"factory": SqliteConnection}
        )

    event.listen(engine, "do_connect", connect)
    commit = engine.dialect.do_commit

    def commit_and_begin_anew(connection: Any) -> None:
        commit(connection)
        groups.append([])

    engine.dialect.do_commit = commit_and_begin_anew  # type: ignore[method-assign]
    return groups
