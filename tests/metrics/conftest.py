"""One server process and one scheduler's double for all tests of metrics that do not end them; jobs of their own."""

from collections.abc import Iterator

import pytest

from tests.metrics.client import IngestClient, Metrics
from tests.metrics.job_book import JobBook, Scheduler

# Small limits, so that pages, slow followers and cut answers are met by few rows.
FLAGS = (
    *("--ended-wait-seconds", "2"),
    *("--ended-check-seconds", "0.2"),
    *("--heartbeat-seconds", "0.4"),
    *("--job-poll-seconds", "1"),
    *("--job-fresh-seconds", "0.2"),
    *("--unopened-wait-seconds", "0.5"),
    *("--follower-bytes-max", "100000"),
    *("--scanned-lines-max", "100"),
    *("--points-max", "5000"),
    *("--few-rows", "20"),
    *("--page-rows", "500"),
    *("--page-lines", "50"),
    *("--batch-bytes-max", "4000"),
    *("--block-seconds", "0.02"),
)


@pytest.fixture(scope="session")
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.fixture(scope="session")
def book(scheduler: Scheduler) -> JobBook:
    return scheduler.book


@pytest.fixture(scope="session")
def server(scheduler: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    server = Metrics(tmp_path_factory.mktemp("metrics"), scheduler.address, FLAGS)
    server.start()
    yield server
    assert server.stop() == 0, server.log_text()[-3000:]
    assert "call_crashed" not in server.log_text()


@pytest.fixture
def ingest(server: Metrics) -> Iterator[IngestClient]:
    client = server.ingest()
    yield client
    client.close()
