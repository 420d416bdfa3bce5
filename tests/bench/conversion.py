"""Benchmarks of conversions, beside the bars of the design: `python -m tests.bench.conversion [--json]`.

All that `conversion_values`, `conversion_maps`, `conversion_lists` and `conversion_memory` measure; reading COCO's JSON
at its full size is `coco_json`, which takes minutes and memory.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain

from tests.bench import conversion_lists, conversion_maps, conversion_memory, conversion_values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.parse_args()
    for result in chain(
        conversion_values.run(), conversion_maps.run(), conversion_lists.run(), conversion_memory.run()
    ):
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
