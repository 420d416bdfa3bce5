"""What a point takes on disk, after the engine has put together what was written."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.metrics.bare import read
from tests.bench.metrics.process import wait_calm
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result

BYTES = "SELECT sum(bytes_on_disk) / sum(rows) AS size FROM system.parts WHERE active AND table = 'points'"


def run(stage: Stage) -> Iterator[Result]:
    wait_calm(stage.server)
    with stage.stopped() as data:
        (row,) = read(data, BYTES)
    yield Result(name="bytes a point on disk, projections included", value=row["size"], unit="bytes", bar="<= 6")
