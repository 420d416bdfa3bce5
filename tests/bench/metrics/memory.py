"""What the service holds in memory: idle, under the load that takes most, and when that is over."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.metrics.ingest import ingest_rate, line_rate
from tests.bench.metrics.process import memory_bytes, peak_memory, wait_calm
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result
from tests.metrics.job_book import submit

WARM_MESSAGES = 500
MESSAGES = 5_000
SERIES = 200


def run(stage: Stage) -> Iterator[Result]:
    """Columns of one point, and lines; once before, so that what is allocated only once does not count."""
    server = stage.server
    ingest_rate(server, [submit(stage.book)], messages=WARM_MESSAGES, points=SERIES, series=SERIES)
    line_rate(server, submit(stage.book))
    wait_calm(server)
    before = memory_bytes(server)
    yield Result(name="memory of the service, idle", value=before / 1e6, unit="MB")
    with peak_memory(server) as highest:
        ingest_rate(server, [submit(stage.book)], messages=MESSAGES, points=SERIES, series=SERIES)
        line_rate(server, submit(stage.book))
    yield Result(name="the same under one-point columns and lines, peak", value=highest[0] / 1e6, unit="MB")
    wait_calm(server)
    after = memory_bytes(server)
    yield Result(name="the same after it", value=after / 1e6, unit="MB", bar="ratio <= 1.1", ratio=after / before)
