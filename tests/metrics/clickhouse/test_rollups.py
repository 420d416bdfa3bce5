"""Rollups are used: a query that says a projection's expression otherwise would read every row, and nobody see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, re, sys
import numpy as np, pyarrow as pa
from services.metrics.clickhouse import catalog, rollup, series, store
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.wanted import OF_SERIES, Wanted
from services.metrics.grid import Axis, Bounds, Grid
from services.metrics.point import Cuts

engine = open_engine("chdb://" + sys.argv[1], lock_seconds=5, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrate(connection, read_migrations())
COUNT = 40_000
for by_time in (False, True):
    connection.insert("points", pa.table({
        "job_uid": ["job"] * COUNT, "series_id": np.full(COUNT, 7 + by_time, np.uint64),
        "step": np.arange(COUNT), "attempt": np.ones(COUNT, np.uint16), "rank": np.zeros(COUNT, np.uint16),
        "seq": np.ones(COUNT, np.uint64), "row": np.arange(COUNT, dtype=np.uint32), "by_time": [by_time] * COUNT,
        "time_unix_us": 1_700_000_000_000_000 + np.arange(COUNT) * 1_000_000, "value": np.ones(COUNT),
    }))
JOBS = {"job_uids": ["job"]}
SERIES = {"series": [("job", 7)]}
WRITER = {"job_uid": "job", "attempt": 1, "rank": 0}

def explained(name, sql, parameters):
    rows = connection.read("EXPLAIN " + sql, parameters)
    text = " ".join(rows[rows.column_names[0]].to_pylist())
    print(json.dumps([name, re.findall(r"ReadFromMergeTree \\(([\\w.]+)\\)", text)]))

def wanted(by_time, **changes):
    values = {"series": {"job": (7 + by_time,)}, "by_time": by_time, "axis": Axis.STEP, "bounds": Bounds(),
              "cuts": {}, "origins": {}}
    return Wanted(**{**values, **changes})

def rollups(name, asked, bits):
    for index, sql in enumerate(series._rollup_queries(asked, Grid(bits=bits))):
        explained(f"{name} {index}", sql, asked.parameters())

whole = series.SUMMARIES.format(
    columns=rollup.SUMMARY_COLUMNS, of_series=OF_SERIES, conditions="", settings=rollup.BY_SERIES)
explained("summaries", whole, SERIES)
explained("summaries of very many", whole.replace(OF_SERIES, "job_uid IN {job_uids:Array(String)}"), JOBS)
explained("logged", catalog.LOGGED, JOBS)
explained("origins", series.ORIGINS, JOBS)
explained("places", series.PLACES, JOBS)
explained("progress", store.PROGRESS.format(table="points", line_number="0"), WRITER)
explained("stored sequences", store.STORED_PLACES.format(table="points", place="seq"), {"job_uid": "job"})
rollups("64 steps", wanted(False), 6)
rollups("128 steps", wanted(False), 7)
rollups("4096 steps", wanted(False), 13)
rollups("67 seconds", wanted(True), 26)
rollups("72 minutes", wanted(True), 33)
rollups("steps within bounds", wanted(False, bounds=Bounds(low=100, high=20_000)), 12)
rollups("steps below a cut", wanted(False, cuts={"job": Cuts({1: 0, 2: 20_001})}), 12)
rollups("one bucket", wanted(False), 64)
"""
EXPECTED = {
    "summaries": ["by_series"],
    "summaries of very many": ["by_series"],
    "logged": ["by_writer"],
    "origins": ["by_writer"],
    "places": ["by_writer"],
    "progress": ["by_writer"],
    "stored sequences": ["by_writer"],
    "64 steps 0": ["by_64"],
    "128 steps 0": ["by_64"],
    "4096 steps 0": ["by_4096"],
    "67 seconds 0": ["by_64"],
    "72 minutes 0": ["by_4096"],
    # The rows at both ends, then the blocks of each level between.
    "steps within bounds 0": ["sihlai.points"],
    "steps within bounds 1": ["by_64"],
    "steps within bounds 2": ["by_4096"],
    "steps below a cut 0": ["sihlai.points"],
    "steps below a cut 1": ["by_64"],
    "steps below a cut 2": ["by_4096"],
    "one bucket 0": ["by_4096"],
}


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("rollups"))]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(line) for line in result.stdout.splitlines() if line.startswith('["'))


def test_every_question_is_known(explained: dict[str, list[str]]) -> None:
    assert explained.keys() == EXPECTED.keys()


@pytest.mark.parametrize("question", EXPECTED)
def test_each_question_is_answered_by_its_projection(explained: dict[str, list[str]], question: str) -> None:
    assert explained[question] == EXPECTED[question]


BEFORE = """
import sys
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations
engine = open_engine("chdb://" + sys.argv[1], lock_seconds=5, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrations = read_migrations()
migrate(connection, migrations[:1])
connection.command("INSERT INTO series VALUES ('job', 1, 'system/gpu', map(), ''), ('job', 2, 'loss', map(), '')")
connection.command("INSERT INTO points (job_uid, series_id, step, attempt, rank, seq, time_unix_us, value)"
    " SELECT 'job', 1 + number % 2, number, 1, 0, 1, number, number FROM numbers(1000)")
migrate(connection, migrations)
rows = connection.read("SELECT series_id, min(by_time) AS least, max(by_time) AS most, count() AS count FROM points"
    " GROUP BY series_id ORDER BY series_id", {})
print("rows", rows.to_pylist())
for migration in migrations[1:2]:
    for statement in migration.statements:
        connection.command(statement)
print("again", connection.read("SELECT count() AS count FROM points", {})["count"][0].as_py())
"""


def test_a_folder_of_the_version_before_keeps_its_rows_and_learns_what_goes_by_time(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", BEFORE, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    said = [line for line in result.stdout.splitlines() if line.startswith(("rows", "again"))]
    assert said == [
        "rows [{'series_id': 1, 'least': True, 'most': True, 'count': 500}, "
        "{'series_id': 2, 'least': False, 'most': False, 'count': 500}]",
        "again 1000",
    ]
