"""Several processes at one ClickHouse server, and inserts that are held up on the way: no row is lost, none doubled."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from sihlai.metrics.v1 import ingest_service_pb2

from services.chassis.errors import Reason
from tests.metrics.clickhouse_server import ClickHouse
from tests.metrics.client import LINES, IngestClient, Metrics, Refused, reason_of, until
from tests.metrics.job_book import Job, Scheduler, submit

LEASE = (
    *("--lease-seconds", "5"),
    *("--lease-renew-seconds", "0.5"),
    *("--lease-poll-seconds", "0.05"),
    *("--lease-settle-seconds", "1"),
    *("--take-over-seconds", "30"),
    *("--block-seconds", "0.01"),
)
ROWS_INSERTED = "INSERT INTO logs"


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    clickhouse = ClickHouse(tmp_path_factory.mktemp("clickhouse"))
    clickhouse.start()
    yield clickhouse
    clickhouse.kill()


@pytest.fixture(scope="module")
def both(
    clickhouse: ClickHouse, scheduler: Scheduler, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Metrics, Metrics]]:
    """Two services at the server that sign and know the same tokens."""
    folder = tmp_path_factory.mktemp("services")
    one, two = (Metrics(folder / name, scheduler.address, LEASE, clickhouse=clickhouse.url) for name in ("one", "two"))
    one.start()
    two.folder.mkdir()
    for key in ("token.pem", "token.pub.pem"):
        shutil.copy(one.folder / key, two.folder / key)  # with its mode
    two.start()
    yield one, two
    for server in (one, two):
        server.kill()


@pytest.fixture
def services(clickhouse: ClickHouse, both: tuple[Metrics, Metrics]) -> Iterator[tuple[Metrics, Metrics]]:
    """Both, and afterwards as they were, whatever a test did to them."""
    yield both
    clickhouse.refuse_kills(False)
    for server in both:
        assert server.process is not None
        server.process.send_signal(signal.SIGCONT)
        if server.process_ended():
            server.start()


@pytest.fixture
def server(services: tuple[Metrics, Metrics]) -> Metrics:
    return services[0]


def open_lines(client: IngestClient, server: Metrics, job: Job) -> int:
    return client.open(1, server.token(job.uid), kind=LINES)


def open_again(server: Metrics, job: Job) -> tuple[IngestClient, int]:
    """As a client does it: again and again, until the writer is not held any more."""
    client = server.ingest()
    opened: list[int] = []

    def is_open() -> bool:
        try:
            opened.append(open_lines(client, server, job))
        except Refused as refused:
            return refused.refusal.permanent
        return True

    until(is_open, "the writer to open")
    assert opened, "the writer is refused for good"
    return client, opened[0]


def send(client: IngestClient, sequence: int) -> None:
    client.lines(1, sequence, sequence, [f"line {sequence}"])


def sent_and_held(clickhouse: ClickHouse, server: Metrics, job: Job, sequence: int) -> IngestClient:
    """A writer whose message is on its way to the engine.

    It may be opened a moment before the service has its next lease; what it sends is then refused.
    """
    held: list[IngestClient] = []

    def is_held() -> bool:
        client, found = open_again(server, job)
        assert found == sequence - 1
        send(client, sequence)
        client.wait(lambda: 1 in client.refusals or bool(running(clickhouse)), "the message to be sent")
        held.append(client)
        return 1 not in client.refusals

    until(is_held, "a message to be on its way")
    clickhouse.wait_held(ROWS_INSERTED)
    return held[-1]


def stored(clickhouse: ClickHouse, job: Job) -> list[tuple[int, str]]:
    sql = f"SELECT seq, line FROM logs WHERE job_uid = '{job.uid}' ORDER BY seq"
    return [(row["seq"], row["line"]) for row in clickhouse.rows(sql)]


def lines(count: int) -> list[tuple[int, str]]:
    return [(number, f"line {number}") for number in range(1, count + 1)]


def running(clickhouse: ClickHouse) -> list[dict[str, Any]]:
    return [query for query in clickhouse.queries() if ROWS_INSERTED in query["sql"]]


@pytest.mark.parametrize("kills_refused", [False, True])
def test_an_insert_that_is_held_up_when_its_service_is_killed_never_lands_beside_the_rows_sent_again(
    clickhouse: ClickHouse, scheduler: Scheduler, server: Metrics, kills_refused: bool
) -> None:
    clickhouse.refuse_kills(kills_refused)
    job = submit(scheduler.book)
    client = server.ingest()
    open_lines(client, server, job)
    with clickhouse.fault(ROWS_INSERTED, hold=True):
        for sequence in (1, 2, 3):
            send(client, sequence)
        clickhouse.wait_held(ROWS_INSERTED)
        server.kill()
        server.start()
        again, found = open_again(server, job)
        assert found == 0
    for sequence in (1, 2, 3, 4):
        send(again, sequence)
    again.wait_stored(1, 4)
    until(lambda: not running(clickhouse), "what was held to have ended")
    assert stored(clickhouse, job) == lines(4)


def test_a_writer_moves_between_two_services_that_are_both_alive(
    clickhouse: ClickHouse, scheduler: Scheduler, services: tuple[Metrics, Metrics]
) -> None:
    one, two = services
    job = submit(scheduler.book)
    last = 0
    client = one.ingest()
    for turn in range(6):
        server = (one, two)[turn % 2]
        before, (client, found) = client, open_again(server, job)
        if turn:
            assert reason_of(before.wait_refusal(1)) is Reason.WRITER_TAKEN
            assert found >= before.stored[1]
        for sequence in range(found + 1, found + 31):
            send(client, sequence)
        client.wait_stored(1, found + 10)
        last = found + 30
    client.wait_stored(1, last)
    assert stored(clickhouse, job) == lines(last)


def test_a_service_that_stalls_and_wakes_stores_nothing_of_what_another_has_taken(
    clickhouse: ClickHouse, scheduler: Scheduler, services: tuple[Metrics, Metrics]
) -> None:
    one, two = services
    job = submit(scheduler.book)
    client = one.ingest()
    open_lines(client, one, job)
    send(client, 1)
    client.wait_stored(1, 1)
    assert one.process is not None
    with clickhouse.fault(ROWS_INSERTED, hold=True):
        send(client, 2)
        clickhouse.wait_held(ROWS_INSERTED)
        send(client, 3)  # waits in the queue of the first service
        one.process.send_signal(signal.SIGSTOP)
        moved, found = open_again(two, job)
        assert found == 1
    for sequence in (2, 3, 4):
        send(moved, sequence)
    moved.wait_stored(1, 4)
    one.process.send_signal(signal.SIGCONT)
    refusal = client.wait_refusal(1)
    assert reason_of(refusal) in (Reason.WRITER_TAKEN, Reason.METRICS_STORE_UNAVAILABLE)
    until(lambda: not running(clickhouse), "what was held to have ended")
    send(moved, 5)
    moved.wait_stored(1, 5)
    assert stored(clickhouse, job) == lines(5)
    # It was taken for dead once. That says nothing of what it opens and stores later.
    with clickhouse.fault(ROWS_INSERTED, hold=True, times=1):
        back = sent_and_held(clickhouse, one, job, 6)
        last = two.ingest()
        opening = ingest_service_pb2.OpenWriter(token=two.token(job.uid), kind=LINES, protocol_version=1)
        last.send(ingest_service_pb2.IngestRequest(writer=1, open=opening))
        assert reason_of(back.wait_refusal(1)) is Reason.WRITER_TAKEN
        assert 1 not in last.stored, "it was opened beside an insert that may still take effect"
    last.wait(lambda: 1 in last.stored, "the writer to open")
    for sequence in range(last.stored[1] + 1, 8):
        send(last, sequence)
    last.wait_stored(1, 7)
    assert stored(clickhouse, job) == lines(7)


def test_an_opening_that_came_to_nothing_is_let_go_of_without_the_one_that_followed_it(
    clickhouse: ClickHouse, scheduler: Scheduler, services: tuple[Metrics, Metrics]
) -> None:
    one, two = services
    job = submit(scheduler.book)
    client = one.ingest()
    with clickhouse.fault("INSERT INTO openings", fail="before", code=241, times=1), pytest.raises(Refused):
        open_lines(client, one, job)
    open_lines(client, one, job)
    let_go = f"SELECT count() AS found FROM openings WHERE job_uid = '{job.uid}' AND let_go"
    until(lambda: clickhouse.rows(let_go)[0]["found"] > 0, "the first opening to be let go of")
    with clickhouse.fault(ROWS_INSERTED, hold=True, times=1):
        send(client, 1)
        clickhouse.wait_held(ROWS_INSERTED)
        other = two.ingest()
        opening = ingest_service_pb2.OpenWriter(token=two.token(job.uid), kind=LINES, protocol_version=1)
        other.send(ingest_service_pb2.IngestRequest(writer=1, open=opening))
        until(lambda: 1 in client.refusals or 1 in other.stored, "the opening to be seen")
        assert 1 not in other.stored, "it was opened beside an insert that may still take effect"
    other.wait(lambda: 1 in other.stored, "the writer to open")
    for sequence in range(other.stored[1] + 1, 3):
        send(other, sequence)
    other.wait_stored(1, 2)
    assert stored(clickhouse, job) == lines(2)


@pytest.mark.parametrize("fault", [{"fail": "after"}, {"fail": "before"}, {"fail": "after", "code": 999}])
def test_an_insert_whose_answer_is_lost_is_asked_for_and_not_sent_again(
    clickhouse: ClickHouse, scheduler: Scheduler, server: Metrics, fault: dict[str, Any]
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    open_lines(client, server, job)
    with clickhouse.fault(ROWS_INSERTED, times=1, **fault) as number:
        send(client, 1)
        assert reason_of(client.wait_refusal(1)) is Reason.METRICS_STORE_UNAVAILABLE
        assert clickhouse.matched(number) == 1
    found = open_lines(client, server, job)
    assert found == (1 if fault["fail"] == "after" else 0)
    for sequence in range(found + 1, 3):
        send(client, sequence)
    client.wait_stored(1, 2)
    assert stored(clickhouse, job) == lines(2)


def test_a_large_insert_is_one_part_so_that_it_is_there_whole_or_not_at_all(
    clickhouse: ClickHouse, scheduler: Scheduler, server: Metrics
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    open_lines(client, server, job)
    client.lines(1, 1, 1, [f"line {number}" for number in range(90_000)])
    client.wait_stored(1, 1)
    (row,) = clickhouse.rows(f"SELECT uniqExact(_part) AS parts, count() AS n FROM logs WHERE job_uid = '{job.uid}'")
    assert row == {"parts": 1, "n": 90_000}


def test_without_a_lease_nothing_is_stored_and_with_the_next_one_all_is(
    clickhouse: ClickHouse, scheduler: Scheduler, server: Metrics
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    open_lines(client, server, job)
    with clickhouse.fault("INSERT INTO leases", fail="before", code=241) as number:
        until(lambda: refusal_of_next(client) != "", "the lease to run out")
        assert clickhouse.matched(number) >= 2
        # Where an insert was on its way when the lease ran out, the engine itself refused it.
        assert reason_of(client.refusals[1]) is Reason.METRICS_STORE_UNAVAILABLE
        last = client.stored[1]
        late, found = open_again(server, job)
        assert found == last
        assert "no lease" in refusal_of_next(late)

    def goes_on() -> bool:
        """A writer may be opened a moment before the lease is there, and is then refused as before."""
        again, found = open_again(server, job)
        assert found == last
        return refusal_of_next(again) == ""

    until(goes_on, "the next lease")
    assert stored(clickhouse, job) == lines(last + 1)


def refusal_of_next(client: IngestClient) -> str:
    """Why the next message is refused; empty where it is stored."""
    sequence = client.stored[1] + 1
    send(client, sequence)
    client.wait(lambda: 1 in client.refusals or client.stored[1] >= sequence, "an answer")
    return client.refusals[1].message if 1 in client.refusals else ""
