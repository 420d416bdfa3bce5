"""Numbers in documents, where every scalar is the text that was written."""

from __future__ import annotations

import re
from typing import TypeAlias

from services.conversion.file.document import List, Value, kind, shown

NUMBER_MAX = 1e9
"""No coordinate, area or measure is larger: what is would overflow where it is multiplied."""
SHOWN_ITEMS_MAX = 16

Point: TypeAlias = tuple[float, float]

_NOT_FINITE = re.compile(r"[+-]?\.?(?:nan|inf|infinity)", re.IGNORECASE)


class NumberError(Exception):
    """A value is no number that can be used; says which `rule` it breaks."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(problem)
        self.rule = rule


def read_number(value: Value) -> float:
    """The number that a text is. Raises NumberError."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise _problem(value) from None
        if -NUMBER_MAX <= number <= NUMBER_MAX and is_plain(value):  # NaN is on no side of a comparison
            return number
    raise _problem(value)


def read_point(value: Value) -> Point:
    """The numbers of [x, y]. Raises NumberError."""
    if not isinstance(value, List) or len(value) != 2:
        found = f"a list of {len(value)}" if isinstance(value, List) else kind(value)
        raise NumberError("wrong_coordinate_count", f"[x, y] was wanted, but there is {found}")
    return read_number(value[0]), read_number(value[1])


def is_plain(text: str) -> bool:
    """Whether a text that Python reads as a number is one for others too: 1_000 and other scripts' digits are not."""
    return text.isascii() and "_" not in text


def written(number: float) -> int | float:
    """The number as people write it: without a fraction where it has none."""
    return number if number % 1 else int(number)


def shown_numbers(value: Value) -> str:
    """A list of numbers, or of points, for a finding."""
    if not isinstance(value, List):
        return shown(value)
    items = [shown_numbers(each) if isinstance(each, List) else shown(each) for each in value[:SHOWN_ITEMS_MAX]]
    return f"[{', '.join(items)}{', …' if len(value) > SHOWN_ITEMS_MAX else ''}]"


def _problem(value: Value) -> NumberError:
    """Why a value is no number."""
    if not isinstance(value, str):
        return NumberError("bad_value", f"{kind(value)} stands where a number was wanted")
    if _NOT_FINITE.fullmatch(value.strip()):
        return NumberError("not_finite", f"{value} is no number that can be used: give a finite one")
    try:
        too_large = abs(float(value)) > NUMBER_MAX and is_plain(value)
    except ValueError:
        too_large = False
    if too_large:
        return NumberError("number_too_large", f"{value} is too large: at most {NUMBER_MAX:g} may be")
    return NumberError("bad_value", f"{shown(value)!r} stands where a number was wanted")
