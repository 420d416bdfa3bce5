"""The HTTP front of the tests does to inserts and answers what a ClickHouse server and its network can do to them."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlencode

import pyarrow as pa
import pytest

from tests.metrics.clickhouse_server import DATABASE, ClickHouse, ClickHouseError
from tests.metrics.client import until

INSERT = "INSERT INTO t (x, word) FORMAT ArrowStream"
IN_TIME = (
    "INSERT INTO t (x, word) SELECT x, word FROM input('x Int64, word LowCardinality(String)') "
    "WHERE throwIf(now64(6) > fromUnixTimestamp64Micro({deadline:Int64}), 'late') = 0 FORMAT ArrowStream"
)
VALUE_OF_THROW_IF = 395


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    clickhouse = ClickHouse(tmp_path_factory.mktemp("front"))
    clickhouse.start()
    clickhouse.execute(f"CREATE DATABASE {DATABASE}", database="default")
    yield clickhouse
    clickhouse.kill()


@pytest.fixture(autouse=True)
def table(clickhouse: ClickHouse) -> Iterator[None]:
    clickhouse.execute("CREATE OR REPLACE TABLE t (x Int64, word LowCardinality(String)) ENGINE = MergeTree ORDER BY x")
    yield
    until(lambda: not clickhouse.queries(), "all queries to end")


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as threads:
        yield threads


def arrow(*numbers: int) -> bytes:
    table = pa.table({"x": pa.array(numbers, pa.int64()), "word": pa.array(["w"] * len(numbers)).dictionary_encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def stored(clickhouse: ClickHouse) -> list[int]:
    return [row["x"] for row in clickhouse.rows("SELECT x FROM t ORDER BY x")]


def refusal(future: Future[bytes]) -> int:
    error = future.exception(60)
    assert isinstance(error, ClickHouseError), error
    return error.code


def now_us(clickhouse: ClickHouse) -> int:
    (row,) = clickhouse.rows("SELECT toUnixTimestamp64Micro(now64(6)) AS now")
    return int(row["now"])


def test_a_held_insert_takes_effect_when_it_is_released_and_others_pass_it(
    clickhouse: ClickHouse, beside: ThreadPoolExecutor
) -> None:
    with clickhouse.fault("insert into t", hold=True, times=1) as fault:
        held = beside.submit(clickhouse.execute, INSERT, arrow(1), query_id="first")
        assert clickhouse.wait_held("INSERT INTO t")["query_id"] == "first"
        clickhouse.execute(INSERT, arrow(2))
        assert stored(clickhouse) == [2]
        assert clickhouse.matched(fault) == 1
        (running,) = clickhouse.rows("SELECT query_id, query FROM system.processes WHERE query_id = 'first'")
        assert running == {"query_id": "first", "query": INSERT}
    held.result(60)
    assert stored(clickhouse) == [1, 2]


@pytest.mark.parametrize("fault", [{"hold": True}, {"delay_seconds": 60.0}])
def test_a_killed_insert_has_no_effect_and_the_kill_returns_when_that_is_certain(
    clickhouse: ClickHouse, beside: ThreadPoolExecutor, fault: dict[str, float]
) -> None:
    with clickhouse.fault("insert into t", **fault):
        insert = beside.submit(clickhouse.execute, INSERT, arrow(1), query_id="doomed")
        until(lambda: any(query["query_id"] == "doomed" for query in clickhouse.queries()), "the insert")
        kill = "KILL QUERY WHERE query_id = {query_id:String} SYNC"
        assert clickhouse.rows(kill, param_query_id="another") == []
        assert not insert.done()
        (killed,) = clickhouse.rows(kill, param_query_id="doomed")
        assert (killed["kill_status"], killed["query_id"]) == ("finished", "doomed")
        assert refusal(insert) == 394
    assert stored(clickhouse) == []


def test_a_kill_may_be_refused(clickhouse: ClickHouse, beside: ThreadPoolExecutor) -> None:
    clickhouse.refuse_kills()
    with clickhouse.fault("insert into t", hold=True):
        insert = beside.submit(clickhouse.execute, INSERT, arrow(1), query_id="safe")
        clickhouse.wait_held("INSERT")
        with pytest.raises(ClickHouseError, match="ACCESS_DENIED") as refused:
            clickhouse.execute("KILL QUERY WHERE query_id = 'safe' SYNC")
        assert refused.value.code == 497
    clickhouse.refuse_kills(False)
    insert.result(60)
    assert stored(clickhouse) == [1]


def test_a_query_that_runs_in_the_engine_is_killed_there(clickhouse: ClickHouse, beside: ThreadPoolExecutor) -> None:
    count = beside.submit(clickhouse.execute, "SELECT sum(number) FROM numbers(1e13)", query_id="endless")
    until(lambda: any(query["state"] == "running" for query in clickhouse.queries()), "the query")
    clickhouse.execute("KILL QUERY WHERE query_id = 'endless' SYNC")
    assert refusal(count) == 394


def test_an_insert_is_judged_by_the_engines_clock_when_it_runs_there(
    clickhouse: ClickHouse, beside: ThreadPoolExecutor
) -> None:
    deadline = now_us(clickhouse) + 1_000_000
    clickhouse.execute(IN_TIME, arrow(1), param_deadline=str(now_us(clickhouse) + 60_000_000))
    assert stored(clickhouse) == [1]
    with clickhouse.fault("insert into t", hold=True):
        late = beside.submit(clickhouse.execute, IN_TIME, arrow(2), param_deadline=str(deadline))
        clickhouse.wait_held("INSERT")
        until(lambda: now_us(clickhouse) > deadline, "the deadline")
    assert refusal(late) == VALUE_OF_THROW_IF
    assert stored(clickhouse) == [1]


@pytest.mark.parametrize("code", [241, 252, 159])
def test_an_insert_fails_before_or_after_it_takes_effect(clickhouse: ClickHouse, code: int) -> None:
    for number, fail in enumerate(("before", "after")):
        with clickhouse.fault("insert into t", fail=fail, code=code), pytest.raises(ClickHouseError) as refused:
            clickhouse.execute(INSERT, arrow(number))
        assert refused.value.code == code
    assert stored(clickhouse) == [1]


def test_a_connection_is_cut_before_or_after_an_insert_takes_effect(clickhouse: ClickHouse) -> None:
    for number, fail in enumerate(("before", "after")):
        with clickhouse.fault("insert into t", fail=fail), pytest.raises(ConnectionError):
            clickhouse.execute(INSERT, arrow(number))
    assert stored(clickhouse) == [1]


@pytest.mark.parametrize(("framing", "told"), [("length", True), ("chunked", True), ("close", False)])
def test_half_an_answer_is_told_from_a_whole_one_only_where_its_length_is_known(
    clickhouse: ClickHouse, framing: str, told: bool
) -> None:
    clickhouse.execute(INSERT, arrow(*range(100)))
    with clickhouse.fault("select x", framing=framing):
        assert stored(clickhouse) == list(range(100))
    with clickhouse.fault("select x", answer="half", framing=framing):
        if told:
            with pytest.raises(http.client.IncompleteRead):
                clickhouse.execute("SELECT x FROM t")
        else:
            assert 0 < len(clickhouse.execute("SELECT x FROM t").splitlines()) < 100


def test_an_insert_goes_on_when_its_client_is_gone_but_not_when_half_of_it_came(clickhouse: ClickHouse) -> None:
    head = f"POST /?{urlencode({'database': DATABASE, 'query': INSERT})} HTTP/1.1\r\nHost: x\r\n"
    request = f"{head}Content-Length: {len(arrow(1))}\r\n\r\n".encode() + arrow(1)
    with clickhouse.fault("insert into t", hold=True):
        with socket.create_connection(("127.0.0.1", clickhouse.port)) as abandoned:
            abandoned.sendall(request)
            clickhouse.wait_held("INSERT")
        with socket.create_connection(("127.0.0.1", clickhouse.port)) as torn:
            torn.sendall(request[:-8])
    until(lambda: stored(clickhouse) == [1], "the abandoned insert")


def test_a_query_id_that_runs_already_is_refused(clickhouse: ClickHouse, beside: ThreadPoolExecutor) -> None:
    with clickhouse.fault("insert into t", hold=True):
        first = beside.submit(clickhouse.execute, INSERT, arrow(1), query_id="same")
        clickhouse.wait_held("INSERT")
        assert refusal(beside.submit(clickhouse.execute, INSERT, arrow(2), query_id="same")) == 216
    first.result(60)
    assert stored(clickhouse) == [1]


def test_a_share_of_inserts_fails_and_the_seed_says_which(clickhouse: ClickHouse) -> None:
    def failed() -> list[int]:
        numbers = []
        with clickhouse.fault("insert into t", fail="before", code=241, chance=0.5, seed=3):
            for number in range(20):
                try:
                    clickhouse.execute(INSERT, arrow(number))
                except ClickHouseError:
                    numbers.append(number)
        return numbers

    first = failed()
    assert 0 < len(first) < 20
    assert failed() == first


def test_settings_hold_for_their_own_request(clickhouse: ClickHouse) -> None:
    with pytest.raises(ClickHouseError) as refused:
        clickhouse.execute("SELECT sum(number) FROM numbers(1e13)", max_execution_time="0.1")
    assert refused.value.code == 159
    asked = "SELECT toFloat64(getSetting('max_execution_time')) AS seconds"
    barrier = threading.Barrier(4)

    def seconds(wanted: int) -> float:
        barrier.wait()
        (row,) = clickhouse.rows(asked, max_execution_time=str(wanted))
        return float(row["seconds"])

    with ThreadPoolExecutor(max_workers=4) as threads:
        assert list(threads.map(seconds, range(61, 65))) == [61, 62, 63, 64]
    (row,) = clickhouse.rows(asked)
    assert row["seconds"] == 0
