"""What the metrics service reaches, beside the bars of the design: `python -m tests.bench.metrics [--json]`.

Generator, server and engine share this machine. Where something bare can do the same work, it is measured in the same
run, and `ratio` is to it: of rates ours to the bare one, of times too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench.metrics import followers, ingest, memory, queries, series, size, trainer
from tests.bench.metrics.stage import Stage, open_stage
from tests.bench.result import Result

PARTS: Mapping[str, Callable[[Stage], Iterator[Result]]] = {
    "ingest": ingest.run,
    "queries": queries.run,
    "series": series.run,
    "trainer": trainer.run,
    "followers": followers.run,
    "memory": memory.run,
    "size": size.run,
}
NEEDS_POINTS = ("queries", "size")
"""Of the jobs that `ingest` fills."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.metrics", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line; else a table")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given several times")
    parser.add_argument("--jobs", type=int, default=50, help="jobs of 200,000 points each")
    parser.add_argument("--followers", type=int, default=1000, help="followers of one log")
    given = parser.parse_args()
    wanted = [name for name in PARTS if not given.only or name in given.only]
    if "ingest" not in wanted and set(wanted) & set(NEEDS_POINTS):
        wanted.insert(0, "ingest")
    missed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        open_stage(Path(folder), jobs_count=given.jobs, followers=given.followers) as stage,
    ):
        for name in wanted:
            for result in PARTS[name](stage):
                missed += result.holds is False
                print(result.line() if given.json else result.row(), flush=True)
    if not given.json:
        print(f"{missed} bars were missed" if missed else "every bar holds", flush=True)


if __name__ == "__main__":
    main()
