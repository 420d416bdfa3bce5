"""Benchmarks of conversions, beside the bars of the design: `python -m tests.bench.conversion [--json] [--only PART]`.

Reading COCO's JSON at its full size is no part of it: `coco_json` takes minutes and memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping

from tests.bench import conversion_exports, conversion_lists, conversion_maps, conversion_memory, conversion_values
from tests.bench.result import Result

PARTS: Mapping[str, Callable[[], Iterator[Result]]] = {
    "values": conversion_values.run,
    "maps": conversion_maps.run,
    "lists": conversion_lists.run,
    "exports": conversion_exports.run,
    "memory": conversion_memory.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.conversion", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line; else a table")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given several times")
    given = parser.parse_args()
    missed = 0
    for name in given.only or PARTS:
        for result in PARTS[name]():
            missed += result.holds is False
            print(result.line() if given.json else result.row(), flush=True)
    if not given.json:
        print(f"{missed} bars were missed" if missed else "every bar holds", flush=True)


if __name__ == "__main__":
    main()
