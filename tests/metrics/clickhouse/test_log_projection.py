"""The projection and the index of the lines are used, also on a database from before they were there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import numpy as np, pyarrow as pa
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.lines import FIELDS, SINCE
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.store import LINE_NUMBERS, PROGRESS, STORED_PLACES
from services.metrics.writer_key import WriterKind

engine = open_engine("chdb://" + sys.argv[1], lock_seconds=60, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrations = read_migrations()

def insert(first, count):
    numbers = np.arange(first, first + count)
    connection.insert("logs", pa.table({
        "job_uid": ["j"] * count,
        "attempt": pa.array([1] * count, pa.uint16()), "rank": pa.array([0] * count, pa.uint16()),
        "number": pa.array(numbers, pa.uint64()), "seq": pa.array(numbers // 10 + 1, pa.uint64()),
        "time_unix_us": pa.array(numbers * 1000, pa.int64()), "level": pa.array(numbers % 3, pa.uint8()),
        "source": pa.array(["agent" if n % 2 else "trainer" for n in numbers.tolist()]),
        "stream": pa.array([2] * count, pa.uint8()), "continued": [False] * count,
        "line": [str(n) for n in numbers.tolist()],
    }))

migrate(connection, [m for m in migrations if m.name != "log_fields"][:3])
insert(1, 20_000)
migrate(connection, migrations)
insert(20_001, 20_000)
used = " SETTINGS force_optimize_projection_name = 'fields'"
progress = PROGRESS.format(table="logs", line_number=LINE_NUMBERS[WriterKind.LINES])
print(connection.read(progress + used, {"job_uid": "j", "attempt": 1, "rank": 0}).to_pylist())
for place in ("seq", "number"):
    sql = STORED_PLACES.format(table="logs", place=place) + used
    print(connection.read(sql, {"job_uid": "j"}).to_pylist())
row = connection.read(FIELDS + used, {"job_uid": "j"}).to_pylist()[0]
print({name: sorted(values) for name, values in row.items()})
indexed = " SETTINGS force_data_skipping_indices = 'time_range'"
print(connection.read(SINCE + indexed, {"job_uid": "j", "time_unix_us": 39_990_500}).to_pylist())
"""


def test_what_is_asked_of_lines_is_answered_by_the_projection_and_the_index(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [line for line in result.stdout.splitlines() if "migration_ran" not in line] == [
        "[{'sequence': 4001, 'line_number': 40000}]",
        "[{'attempt': 1, 'rank': 0, 'place': 4001}]",
        "[{'attempt': 1, 'rank': 0, 'place': 40000}]",
        "{'sources': ['agent', 'trainer'], 'ranks': [0], 'streams': [2], 'levels': [0, 1, 2], 'attempts': [1]}",
        "[{'attempt': 1, 'rank': 0, 'first': 39991}]",
    ]
