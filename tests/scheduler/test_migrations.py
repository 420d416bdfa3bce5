"""The tables that migrations make, and what they keep of an old database."""

from __future__ import annotations

import re

from alembic import command
from sqlalchemy import JSON, MetaData, create_engine, inspect, select, text

from services.scheduler.migrations import alembic_config, migrate
from services.scheduler.store.tables import attempts, metadata


def test_migrations_give_exactly_the_tables_of_the_code(tmp_path):
    migrated = create_engine(f"sqlite:///{tmp_path}/migrated.sqlite")
    for _ in range(2):
        with migrated.begin() as connection:
            migrate(connection)
    created = create_engine(f"sqlite:///{tmp_path}/created.sqlite")
    metadata.create_all(created)

    def schema(engine):
        tables = inspect(engine)
        indexes = text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        with engine.connect() as connection:
            found = {row.name: re.sub(r"\s+", " ", row.sql) for row in connection.execute(indexes)}
        for name in tables.get_table_names():
            columns = {c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in tables.get_columns(name)}
            found[name] = (columns, tables.get_pk_constraint(name)["constrained_columns"])
            found[f"{name}/unique"] = tables.get_unique_constraints(name)
        return {name: value for name, value in found.items() if not name.startswith("alembic")}

    assert schema(migrated) == schema(created)


def test_migration_keeps_how_far_a_running_job_is(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/old.sqlite")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0003")
        old = MetaData()
        old.reflect(connection)
        for name, values in {
            "jobs": {"uid": "a", "progress": {"iteration": 7}},
            "attempts": {"job_uid": "a", "active": True},
        }.items():
            columns = [column for column in old.tables[name].c if not column.nullable]
            blank = {c.name: {} if isinstance(c.type, JSON) else c.type.python_type() for c in columns}
            connection.execute(old.tables[name].insert(), {**blank, **values})
        migrate(connection)
        assert connection.execute(select(attempts.c.progress)).scalar_one() == {"iteration": 7}
