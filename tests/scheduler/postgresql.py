"""A statement to a PostgreSQL server, outside any transaction."""

from __future__ import annotations

from sqlalchemy import create_engine, text


def run_on_postgresql(address: str, statement: str) -> None:
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
