"""A stream that has used up its credit is not kept waiting for a block to fill that its credit cannot fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metrics.client import LINES, Metrics
from tests.metrics.job_book import Scheduler, submit

BLOCK_SECONDS = 30
MESSAGES = 60
LINES_A_MESSAGE = 100
FLAGS = (
    *("--block-seconds", str(BLOCK_SECONDS)),
    *("--credit-bytes-max", str(2**18)),
    *("--credit-bytes-min", str(2**16)),
)


@pytest.fixture
def server(scheduler: Scheduler, tmp_path: Path) -> Iterator[Metrics]:
    server = Metrics(tmp_path / "server", scheduler.address, FLAGS)
    server.start()
    yield server
    assert server.stop() == 0, server.log_text()[-3000:]


def test_lines_of_one_stream_do_not_wait_for_a_block_that_their_credit_cannot_fill(
    server: Metrics, scheduler: Scheduler
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), kind=LINES)
    for sequence in range(1, MESSAGES + 1):
        first = (sequence - 1) * LINES_A_MESSAGE + 1
        client.lines(1, sequence, first, ["x" * 50] * LINES_A_MESSAGE)
    # All but what is under half of the credit: the client could send as much again without waiting.
    client.wait_stored(1, MESSAGES * 3 // 4, BLOCK_SECONDS - 10)
    client.close()
