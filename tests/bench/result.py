"""What a benchmark prints: one JSON object a line for programs, or a table for people."""

from __future__ import annotations

import argparse
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

BAR = re.compile(r"(?P<ratio>ratio )?(?P<sign><=|>=|<|>) (?P<limit>[-+.\de]+)")
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number. `ratio` is to a bare loop in the same run.

    `bar` is what the design wants: of the value, such as `>= 1000`, or of the ratio, such as `ratio <= 3`. Times differ
    by a factor of two from one day's machine to the next, so where something bare can be measured beside, the bar is a
    ratio.
    """

    name: str
    value: float
    unit: str
    bar: str | None = None
    ratio: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None:
            return None
        bar = BAR.fullmatch(self.bar)
        assert bar is not None, f"a bar reads like `>= 1000` or `ratio <= 3`, not {self.bar}"
        measured = self.ratio if bar["ratio"] else self.value
        assert measured is not None, f"{self.name} has a bar for its ratio, and no ratio"
        return SIGNS[bar["sign"]](measured, float(bar["limit"]))

    def line(self) -> str:
        """For programs."""
        ratio = None if self.ratio is None else round(self.ratio, 3)
        shown = {"name": self.name, "value": round(self.value, 4), "unit": self.unit, "bar": self.bar, "ratio": ratio}
        return json.dumps(shown)

    def row(self) -> str:
        """For people."""
        value = f"{self.value:,.0f}" if abs(self.value) >= 1_000 else f"{self.value:.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        mark = {None: "", True: "holds", False: "MISSED"}[self.holds]
        return f"{self.name:72} {value:>12} {self.unit:10} {ratio:>8}  {self.bar or '':16} {mark}"


def print_lines(description: str | None, results: Iterable[Result]) -> None:
    """A program that has no options but `--json`: each result on a line of its own as soon as it is there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.parse_args()
    for result in results:
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()
