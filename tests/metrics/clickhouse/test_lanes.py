"""Lanes: a slow query holds up nobody of another kind, and who waits for a reader hears when that takes too long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys, time
from services.chassis.errors import Unavailable
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.lane import Lane, LaneLimits
from services.metrics.clickhouse.store import Store

SLOW = "SELECT sum(sipHash64(number)) AS x FROM numbers(1000000000000)"
THROWING = "SELECT throwIf(number = 5) AS x FROM numbers(10)"
LARGE = "SELECT groupArray(number) AS x FROM numbers(1000000000)"

async def main(engine):
    store = Store(engine, lanes=LaneLimits(readers={lane: 1 for lane in Lane}, wait_seconds=0.3))
    slow = asyncio.create_task(store.on(Lane.QUERY).read(SLOW))
    await asyncio.sleep(0)
    quick = [await store.on(lane).read("SELECT 1 AS x") for lane in (Lane.FOLLOW, Lane.INGEST)]
    print("others read", [rows["x"][0].as_py() for rows in quick], "beside it", not slow.done())
    try:
        await store.on(Lane.QUERY).read("SELECT 1 AS x")
    except Unavailable as error:
        print(error.reason.value, error.message, dict(error.metadata))
    # Who asks goes away: the query is killed, long before its time is over, and its reader is free.
    cancelled_at = time.monotonic()
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    while True:
        try:
            rows = await store.on(Lane.QUERY).read("SELECT 2 AS x")
        except Unavailable:
            assert time.monotonic() - cancelled_at < 30
        else:
            print("then", rows["x"][0].as_py())
            break
    for failing in (SLOW, THROWING, LARGE):
        try:
            await store.on(Lane.QUERY).read(failing)
        except Exception as error:
            print(type(error).__name__)
        print("then", (await store.on(Lane.QUERY).read("SELECT 4 AS x")).num_rows)
    store.close()
    store = Store(engine, lanes=LaneLimits(readers={lane: 1 for lane in Lane}, wait_seconds=30))
    many = await asyncio.gather(*(store.read("SELECT 3 AS x") for _ in range(20)))
    print("in turn", {rows["x"][0].as_py() for rows in many})
    store.close()

engine = open_engine(
    "chdb://" + sys.argv[1], lock_seconds=5, query_seconds=4, insert_seconds=5, query_memory_bytes=10**8
)
asyncio.run(main(engine))
engine.close()
"""


def test_a_slow_query_holds_up_its_own_lane_only_and_a_wait_for_a_reader_has_an_end(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    # The log of this process goes where the answers go.
    assert [line for line in result.stdout.splitlines() if "[warning  ]" not in line] == [
        "others read [1, 1] beside it True",
        "METRICS_STORE_UNAVAILABLE all readers were busy for 0.3 s (query_readers is 1): ask later "
        "{'what': 'query_readers', 'limit': '1'}",
        "then 2",
        # chDB answers what comes after a query that failed with nothing, unless that is seen to.
        *("DeadlineExceeded", "then 1"),
        *("DatabaseError", "then 1"),
        *("ResourceExhausted", "then 1"),
        "in turn {3}",
    ]
