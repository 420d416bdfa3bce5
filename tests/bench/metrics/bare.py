"""The engine alone, in a process of its own: the same rows inserted, and the same answers asked for by plain SQL.

No gRPC, no service: clickhouse-connect, and a folder that a service has made the tables in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from services.metrics.clickhouse.engine import SETTINGS
from services.metrics.clickhouse.repair import DATABASE
from services.metrics.point import series_id_of
from tests.bench.metrics.load import START_UNIX_US, columns_of, names
from tests.metrics.client import Metrics

BLOCK_ROWS = 100_000
LINES_A_MESSAGE = 500


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """Rows a second, and processor time for each."""

    rate: float
    cpu_us: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One query many times."""

    p50: float
    p99: float
    cpu_seconds: float


def empty_folder(folder: Path, scheduler_address: str) -> Path:
    """A folder with the service's tables, and no rows."""
    maker = Metrics(folder, scheduler_address)
    maker.start()
    maker.stop()
    return folder / "data"


def insert_rate(data: Path, table: str, **changes: int) -> Ingested:
    """Rows of `table` (points, logs) in full blocks: as many jobs, in turns, as a service has taken."""
    found = _process("insert", data, {"table": table, **changes})
    return Ingested(rate=found["rate"], cpu_us=found["cpu_us"])


def ask(data: Path, questions: Sequence[Mapping[str, Any]], *, turns: int) -> list[Asked]:
    """Each question (`sql`, `parameters`) so many times; parameters that are lists of lists take turns."""
    return [Asked(**found) for found in _process("ask", data, {"questions": questions, "turns": turns})]


def read(data: Path, sql: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    found: list[dict[str, Any]] = _process("read", data, {"sql": sql})
    return found


def _process(what: str, data: Path, told: Mapping[str, Any]) -> Any:
    command = [sys.executable, "-m", "tests.bench.metrics.bare", what, str(data)]
    result = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def _client(data: Path) -> Any:
    import clickhouse_connect  # only the process that asks the engine loads it

    path = str(data / "engine")
    return clickhouse_connect.get_client(interface="chdb", path=path, database=DATABASE, settings=dict(SETTINGS))


def _insert(data: Path, told: Mapping[str, Any]) -> dict[str, float]:
    client = _client(data)
    described = client.raw_query(f"DESCRIBE TABLE {told['table']}", fmt="TabSeparatedRaw").decode()
    wanted = {line.split("\t")[0] for line in described.splitlines()}
    blocks = _point_blocks(**{**told, "wanted": wanted}) if told["table"] == "points" else _line_blocks(**told)
    rows, seconds, cpu = 0, 0.0, 0.0
    # What a message holds is made beforehand, as for the service; the block is put together inside.
    for parts in blocks:
        began, used = time.perf_counter(), time.process_time()
        block = pa.table({name: _joined([part[name] for part in parts]) for name in parts[0] if name in wanted})
        client.insert_arrow(told["table"], block)
        seconds += time.perf_counter() - began
        cpu += time.process_time() - used
        rows += block.num_rows
    return {"rate": rows / seconds, "cpu_us": cpu / rows * 1e6}


def _joined(arrays: list[Any]) -> Any:
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    if isinstance(arrays[0], list):
        return pa.array([each for array in arrays for each in array])
    return pa.chunked_array(arrays).unify_dictionaries().combine_chunks()


def _repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def _point_blocks(
    *, jobs: int, turns: int, points: int, series: int, wanted: set[str], table: str
) -> Iterator[list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    ids = {job: [series_id_of(f"{job:032d}", name, ()) for name in names(series)] for job in range(jobs)}
    parts: list[dict[str, Any]] = []
    for sequence in range(1, turns + 1):
        for job in range(jobs):
            steps, times, values = zip(*columns_of(rng, sequence, points, series), strict=True)
            each = np.array([len(column) for column in steps])
            part = {
                "job_uid": _repeated(f"{job:032d}", points),
                "attempt": np.ones(points, np.uint16),
                "rank": np.zeros(points, np.uint16),
                "seq": np.full(points, sequence, np.uint64),
                "series_id": np.repeat(np.array(ids[job], np.uint64), each),
                "step": np.concatenate(steps),
                "time_unix_us": np.concatenate(times),
                "value": np.concatenate(values),
                "row": np.arange(points, dtype=np.uint32),
            }
            parts.append({name: column for name, column in part.items() if name in wanted})
            if len(parts) * points >= BLOCK_ROWS:
                yield parts
                parts = []
    if parts:
        yield parts


def _line_blocks(*, messages: int, table: str) -> Iterator[list[dict[str, Any]]]:
    parts: list[dict[str, Any]] = []
    for sequence in range(1, messages + 1):
        rows, first = LINES_A_MESSAGE, (sequence - 1) * LINES_A_MESSAGE + 1
        numbers = np.arange(first, first + rows, dtype=np.uint64)
        parts.append(
            {
                "job_uid": _repeated("0" * 32, rows),
                "attempt": np.ones(rows, np.uint16),
                "rank": np.zeros(rows, np.uint16),
                "seq": np.full(rows, sequence, np.uint64),
                "number": numbers,
                "time_unix_us": (START_UNIX_US + numbers).astype(np.int64),
                "level": np.full(rows, 2, np.uint8),
                "source": _repeated("trainer", rows),
                "stream": np.ones(rows, np.uint8),
                "continued": np.zeros(rows, np.bool_),
                "line": [f"iteration {number} of 100000, loss 0.{number:07d}" for number in numbers],
            }
        )
        if len(parts) * rows >= BLOCK_ROWS:
            yield parts
            parts = []
    if parts:
        yield parts


def _ask(data: Path, told: Mapping[str, Any]) -> list[dict[str, float]]:
    client = _client(data)
    found = []
    for question in told["questions"]:
        seconds = []
        for turn in range(-1, told["turns"]):
            if turn == 0:
                cpu = time.process_time()
            parameters = question["turns"][turn % len(question["turns"])]
            began = time.perf_counter()
            answer = client.raw_query(question["sql"], parameters=parameters, fmt="ArrowStream")
            pa.ipc.open_stream(answer).read_all()
            if turn >= 0:
                seconds.append(time.perf_counter() - began)
        used = (time.process_time() - cpu) / told["turns"]
        found.append({"p50": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99)), "cpu_seconds": used})
    return found


def _read(data: Path, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    answer = _client(data).raw_query(told["sql"], fmt="ArrowStream")
    found: list[dict[str, Any]] = pa.ipc.open_stream(answer).read_all().to_pylist()
    return found


if __name__ == "__main__":
    what, data, told = sys.argv[1], Path(sys.argv[2]), json.load(sys.stdin)
    print(json.dumps({"insert": _insert, "ask": _ask, "read": _read}[what](data, told)))
