"""Rows of deleted jobs, at the engine itself: all tables, again for what comes late, and one deletion at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, json, sys
from services.metrics.clickhouse.deletion import TABLES, Deletions
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations

engine = open_engine("chdb://" + sys.argv[1], lock_seconds=5, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrate(connection, read_migrations())
KEYED = "SELECT table FROM system.columns WHERE database = currentDatabase() AND name = 'job_uid'"

def insert():
    for table in TABLES:
        connection.command(f"INSERT INTO {table} (job_uid) SELECT arrayJoin(['gone', 'kept'])")

def left():
    rows = {table: connection.read(f"SELECT job_uid FROM {table} ORDER BY job_uid", {}) for table in TABLES}
    return sorted({row["job_uid"] for table in rows.values() for row in table.to_pylist()})

async def main():
    deletions = Deletions(engine)
    found = {row["table"] for row in connection.read(KEYED, {}).to_pylist()}
    told = {"tables without a deletion": sorted(found - {*TABLES, "deletions"})}
    insert()
    for uid in ("gone", "no'uid", "nobody"):
        await deletions.write_down(uid)
    told["first"] = [sorted(await deletions.sweep()), left()]
    insert()
    told["late"] = [sorted(await deletions.sweep()), left()]
    told["nothing"] = [sorted(await deletions.sweep()), left()]
    for table in TABLES:
        connection.command(f"SYSTEM STOP MERGES {table}")
        connection.command(f"ALTER TABLE {table} DELETE WHERE job_uid = 'other' SETTINGS mutations_sync = 0")
    insert()
    told["while the engine is at one"] = sorted(await deletions.sweep())
    deletions.close()
    print(json.dumps(told))

asyncio.run(main())
"""


def test_all_rows_of_deleted_jobs_go_again_and_again_and_one_deletion_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "engine")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert json.loads(shown.stdout.splitlines()[-1]) == {
        "tables without a deletion": [],
        "first": [["gone"], ["kept"]],
        "late": [["gone"], ["kept"]],
        "nothing": [[], ["kept"]],
        "while the engine is at one": [],
    }
