"""Lines that an older version has stored, which took sources of any length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc

from tests.metrics.client import Metrics, tail_all
from tests.metrics.job_book import Scheduler, submit

PROGRAM = """
import sys
import pyarrow as pa
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import migrate, read_migrations

engine = open_engine("chdb://" + sys.argv[1], lock_seconds=60, query_seconds=60, insert_seconds=60)
connection = engine.connect()
migrate(connection, read_migrations())
for number in range(1, 7):
    connection.insert("logs", pa.table({
        "job_uid": [sys.argv[2]], "attempt": pa.array([1], pa.uint16()), "rank": pa.array([0], pa.uint16()),
        "number": pa.array([number], pa.uint64()), "seq": pa.array([number], pa.uint64()),
        "time_unix_us": pa.array([number], pa.int64()), "level": pa.array([2], pa.uint8()),
        "source": ["s" * 4_000_000 + str(number)], "stream": pa.array([2], pa.uint8()), "continued": [False],
        "line": [str(number)],
    }))
"""


def test_lines_with_very_long_sources_are_read(scheduler: Scheduler, tmp_path: Path) -> None:
    job = submit(scheduler.book)
    folder = tmp_path / "metrics"
    arguments = [sys.executable, "-c", PROGRAM, str(folder / "data"), job.uid]
    subprocess.run(arguments, check=True, capture_output=True)
    server = Metrics(folder, scheduler.address)
    server.start()
    try:
        batches = [response.batch for response in tail_all(server.logs(), job)]
        assert [line.line for batch in batches for line in batch.lines] == ["1", "2", "3", "4", "5", "6"]
        assert {len(line.source) for batch in batches for line in batch.lines} == {256}
        logs = log_service_pb2_grpc.LogServiceStub(server.channel(usual=True))
        fields = logs.ListLogFields(log_service_pb2.ListLogFieldsRequest(job=job.name))
        assert [len(source) for source in fields.sources] == [256]
    finally:
        assert server.stop() == 0, server.log_text()[-3000:]
