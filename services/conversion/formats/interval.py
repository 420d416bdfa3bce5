"""The metadata key `range: [lo, hi]`: the measures that an annotation may have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.conversion.file.document import List, Mapping
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.number import NumberError, read_number, shown_numbers, written

KEY = "range"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


def read_interval(metadata: Mapping, place: Place, report: Report) -> Interval:
    """The interval that the metadata declare. What is missing or wrong fails, and anything stands in for it."""
    value = metadata.get(KEY)
    place = replace(place, line=metadata.lines.get(KEY, place.line))
    stand_in = Interval(low=0.0, high=1.0)
    if value is None:
        report.fail("missing_key", f"the key {KEY!r} is missing: give the lowest and the highest value", place)
        return stand_in
    if not isinstance(value, List) or len(value) != 2:
        message = f"{KEY!r} must be a list of two numbers, the lowest and the highest value"
        report.fail("bad_value", message, place, value=shown_numbers(value))
        return stand_in
    try:
        low, high = read_number(value[0]), read_number(value[1])
    except NumberError as error:
        report.fail(error.rule, f"in {KEY!r} {error}", place, value=shown_numbers(value))
        return stand_in
    if low >= high:
        message = f"{KEY!r} must begin with the lower of two different numbers"
        report.fail("bad_value", message, place, value=shown_numbers(value))
        return stand_in
    return Interval(low=low, high=high)


def write_interval(interval: Interval) -> Json:
    """The pair of `read_interval`."""
    return [written(interval.low), written(interval.high)]
