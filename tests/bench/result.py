"""What a benchmark prints: one JSON object a line, so that runs can be compared by programs."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number. `bar` is what the design wants, such as `>= 1000`; `ratio` is to a bare loop in the same run."""

    name: str
    value: float
    unit: str
    bar: str | None = None
    ratio: float | None = None

    def line(self) -> str:
        ratio = None if self.ratio is None else round(self.ratio, 3)
        shown = {"name": self.name, "value": round(self.value, 4), "unit": self.unit, "bar": self.bar, "ratio": ratio}
        return json.dumps(shown)
