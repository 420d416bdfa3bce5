"""Writes of the embedded engine that find no room: it says nothing, and still nothing is taken for stored, or lost.

A limit on the size of files stands in for a full disk: the kernel refuses what the engine writes, at a moment that the
test can choose. A process of its own, because the limit is of the whole process. `make chaos-metrics` fills real disks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, resource, sys, threading, time
from pathlib import Path
from services.metrics.clickhouse.disk import Disk, DiskLimits
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.repair import Repairs, write_failures
from services.metrics.clickhouse.upkeep import Upkeep

folder, begins = Path(sys.argv[1]), sys.argv[2] == "begin"
engine = open_engine(f"chdb://{folder}", lock_seconds=10, query_seconds=30, insert_seconds=30)
connection = engine.connect()
migrate(connection, read_migrations())
repairs = connection.repairs
upkeep = Upkeep(engine.connect(), Disk(folder=folder, limits=DiskLimits(watch_bytes_min=2**62)), repairs)

def no_room(sql):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
    try:
        connection.command(sql)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

def insert(number):
    return f"INSERT INTO gaps SELECT 'job', 1, 0, 'points', {number}, {number}, 0"

def stored():
    return [row["n"] for row in connection.ask("SELECT first_seq AS n FROM gaps ORDER BY n")]

def parts():
    return connection.ask("SELECT count() AS n FROM system.parts WHERE table = 'gaps' AND active")[0]["n"]

if begins:
    upkeep.look()
    for number in (1, 2, 3):
        connection.command(insert(number))
        assert repairs.is_whole(connection, "gaps")
    before = write_failures(connection)
    no_room(insert(4))
    assert write_failures(connection) > before, "the engine counts what it does not say"
    print("an insert without room is whole:", repairs.is_whole(connection, "gaps"), stored())
    connection.command("SYSTEM START MERGES")
    no_room("OPTIMIZE TABLE gaps FINAL")
    (merged,) = connection.ask("SELECT name, level FROM system.parts WHERE table = 'gaps' AND active")
    assert merged["level"] > 0
    # The table was attached anew a moment ago: it is not attached again before some seconds have passed.
    deadline = time.monotonic() + 60
    while parts() == 1:
        assert not threading.Event().wait(0.2) and time.monotonic() < deadline
        upkeep.look()
    print("a merge without room was undone:", parts(), stored())
    upkeep.look()
    no_room("OPTIMIZE TABLE gaps FINAL")
    sys.stdout.flush()
    os._exit(0)  # as if killed: the next process finds what the last merge has left
print("in the next process:", stored(), repairs.in_doubt)
"""


def said(folder: Path, how: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), how], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [line for line in result.stdout.splitlines() if not line.startswith("2")]


def test_an_insert_that_found_no_room_is_not_stored_and_a_merge_that_did_not_loses_nothing(tmp_path: Path) -> None:
    assert said(tmp_path, "begin") == [
        "an insert without room is whole: False [1, 2, 3]",
        "a merge without room was undone: 3 [1, 2, 3]",
    ]
    assert said(tmp_path, "again") == ["in the next process: [1, 2, 3] False"]
