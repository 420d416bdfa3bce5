"""Followers that go away, break off and stall, in short; `make chaos-metrics` does it at length."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Iterator

import pytest

from tests.metrics.client import LINES, Metrics, tail_all, texts
from tests.metrics.followers import break_off_and_come_back, come_and_go, memory_comes_back, resident_bytes, stalled
from tests.metrics.job_book import Scheduler, submit

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.fixture
def server(scheduler: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    flags = (
        *("--followers-bytes-max", str(16 * MEGABYTE)),
        *("--follower-bytes-max", str(MEGABYTE)),
        *("--pages-bytes-max", str(4 * MEGABYTE)),
        *("--principal-streams-max", "5000"),  # all followers are one user
        *("--principal-processor-share", "1000"),
        *("--heartbeat-seconds", "0.4"),
        *("--ended-check-seconds", "0.2"),
        *("--job-fresh-seconds", "0"),
    )
    server = Metrics(tmp_path_factory.mktemp("followers"), scheduler.address, flags)
    server.start()
    yield server
    assert server.stop() == 0, server.log_text()[-3000:]
    assert "call_crashed" not in server.log_text()


def test_a_tail_that_breaks_off_and_comes_back_sees_every_line_once(server: Metrics, scheduler: Scheduler) -> None:
    asyncio.run(break_off_and_come_back(server, scheduler.book, breaks=10, kills=1, seed=5))


def test_memory_comes_back_when_followers_have_gone(server: Metrics, scheduler: Scheduler) -> None:
    memory_comes_back(server, scheduler.book, followers=300, rounds=3)


def test_thousands_that_come_back_at_once_are_all_taken(server: Metrics, scheduler: Scheduler) -> None:
    asyncio.run(come_and_go(server, submit(scheduler.book), 2_700))


def test_followers_that_read_nothing_hold_a_bounded_part_of_what_is_written(
    server: Metrics, scheduler: Scheduler
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), kind=LINES)
    chance = random.Random(1)
    # Nothing that compresses: neither the engine nor the network makes it small.
    line = "".join(chance.choices(string.ascii_letters, k=50_000))
    messages = 50
    with stalled(server, job, 50):
        before = resident_bytes(server)
        for sequence in range(1, messages + 1):
            lines = [f"{sequence} {number} {line}" for number in range(10)]
            client.lines(1, sequence, (sequence - 1) * 10 + 1, lines)
            client.wait_stored(1, sequence)
        grown = resident_bytes(server) - before
    # 25 MB for 50 followers: what each of them has not got would be 1.25 GB.
    assert grown < 250 * MEGABYTE, grown
    assert len(texts(tail_all(server.logs(), job))) == messages * 10
    client.close()
