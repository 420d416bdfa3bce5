"""What the scheduler reaches, beside the bars of the design: `python -m tests.bench.scheduler [--json]`.

Clients, simulated runners, server and database share this machine. Where something bare can do the same work it is
measured in the same run: an empty call, or the very statements without the store around them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from tests.bench.result import Result
from tests.bench.scheduler import calls, large, stores
from tests.bench.scheduler.stage import Place, open_place

PARTS: Mapping[str, Callable[[Place], AsyncIterator[Result]]] = {
    "store-submits": stores.submits,
    "claims": stores.claims,
    "idle-calls": stores.idle_calls,
    "submits": calls.submits,
    "token-cost": calls.token_cost,
    "hand-overs": calls.hand_overs,
    "burst": calls.burst_and_stops,
    "lost": calls.lost_runner,
}
LARGE: Mapping[str, Callable[[Place], AsyncIterator[Result]]] = {
    "million": large.million_jobs,
    "many-runners": large.many_runners,
}
"""Minutes each: only where they are asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scheduler", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line; else a table")
    parser.add_argument(
        "--only", action="append", choices=[*PARTS, *LARGE], help="this part; may be given several times"
    )
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"], help="both where left out")
    given = parser.parse_args()
    missed = 0
    for kind in given.database or ["sqlite", "postgresql"]:
        for name in given.only or PARTS:
            with tempfile.TemporaryDirectory() as folder, open_place(kind, Path(folder)) as place:
                for result in asyncio.run(_results((PARTS | LARGE)[name], place)):
                    missed += result.holds is False
                    print(result.line() if given.json else result.row(), flush=True)
    if not given.json:
        print(f"{missed} bars were missed" if missed else "every bar holds", flush=True)


async def _results(part: Callable[[Place], AsyncIterator[Result]], place: Place) -> list[Result]:
    return [result async for result in part(place)]


if __name__ == "__main__":
    main()
