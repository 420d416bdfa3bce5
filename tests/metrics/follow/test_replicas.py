"""Two services over one ClickHouse: who follows at one sees what the other has stored."""

from __future__ import annotations

from pathlib import Path

from tests.metrics.clickhouse_server import ClickHouse
from tests.metrics.client import LINES, Metrics
from tests.metrics.conftest import FLAGS
from tests.metrics.job_book import Scheduler, submit
from tests.metrics.tail import Tail, write


def test_a_tail_sees_what_another_service_stores(scheduler: Scheduler, tmp_path: Path) -> None:
    engine = ClickHouse(tmp_path / "engine")
    engine.start()
    flags = (*FLAGS, "--follower-poll-seconds", "0.1")
    servers = []
    for name in ("one", "two"):
        # One after the other: the first migrates.
        servers.append(Metrics(tmp_path / name, scheduler.address, flags, clickhouse=engine.url))
        servers[-1].start()
    one, two = servers
    job = submit(scheduler.book)
    client = one.ingest()
    client.open(1, one.token(job.uid), kind=LINES)
    write(client, 1, ["one", "two"])
    tails = [Tail(server, job) for server in (one, two)]
    for tail in tails:
        tail.wait_caught_up()
    for sequence in range(2, 8):
        write(client, sequence, [f"{sequence} a", f"{sequence} b"])
    for tail in tails:
        tail.wait_lines(14)
    client.finish(1, 7)
    scheduler.book.end(job.uid)
    for tail in tails:
        assert tail.wait_ended().logs_complete
        assert tail.lines == ["one", "two", *(f"{n} {letter}" for n in range(2, 8) for letter in "ab")]
    client.close()
    for server in servers:
        assert server.stop() == 0
    engine.kill()
