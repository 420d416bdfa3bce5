"""The lines of a YOLO label file: a class's number and coordinates as shares of the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing
from services.conversion.formats.format import MapFile
from services.conversion.formats.number import NumberError, read_number

LINES_MAX = 100_000
"""Of one image."""
OVERHANG_SHARE_MAX = 1e-4
"""So far outside 0 to 1 may a share lie without a finding: files hold rounded numbers."""
DIGITS = 6
"""Of a pixel coordinate behind the point: what a share of ten digits says of any image."""

Made = TypeVar("Made")


def read_lines(
    file: MapFile, place: Place, report: Report, read: Callable[[RawThing, str, list[float]], Made | None]
) -> list[Made] | None:
    """What `read` makes of each line's class and shares; None where there were lines and all were bad."""
    try:
        lines = file.content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        report.error("syntax", "the file is not UTF-8: save it as UTF-8", place)
        return None
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(rows) > LINES_MAX:
        message = f"the file has {len(rows)} lines, but at most {LINES_MAX} may be"
        report.error("too_many_objects", message, place, value=str(len(rows)), annotations=len(rows))
        return None
    found: list[Made] = []
    for index, (number, row) in enumerate(rows):
        thing = RawThing(place=replace(place, line=number), index=index, report=report)
        shares = _shares(thing, row)
        if shares is None:
            continue
        made = read(thing, row[0], shares)
        if made is not None and not thing.bad:
            found.append(made)
    return None if rows and not found else found


def category_of(thing: RawThing, text: str, names: tuple[str, ...]) -> str:
    """The name of a class's number, which some tools write as 3.0 or 3.000e+00; empty where it is none."""
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names):
        return names[int(text)]
    with contextlib.suppress(NumberError):
        number = read_number(text)
        if number == int(number) and 0 <= number < len(names):
            return names[int(number)]
    message = f"the class {text!r} is none of `names`, which go from 0 to {len(names) - 1}"
    thing.error("undeclared_category", message, value=text)
    return ""


def check_shares(thing: RawThing, shares: list[float]) -> bool:
    """Whether all lie in the image."""
    if all(-OVERHANG_SHARE_MAX <= share <= 1 + OVERHANG_SHARE_MAX for share in shares):
        return True
    pixels = max(shares) > 2
    hint = "they look like pixels: divide by the image's width and height" if pixels else "mend them"
    thing.error("out_of_range", f"coordinates are shares of the image, from 0 to 1: {hint}", value=str(shares[:16]))
    return False


def pixels(shares: Sequence[float], length: int) -> list[float]:
    """Shares of an image's side in pixels, rounded, so that what was whole is whole again."""
    return [round(min(max(share, 0.0), 1.0) * length, DIGITS) for share in shares]


def share(number: float, length: int) -> str:
    """A coordinate as a share, as short as it can be."""
    return f"{number / length:.12g}"


def _shares(thing: RawThing, row: list[str]) -> list[float] | None:
    try:
        return [read_number(text) for text in row[1:]]
    except NumberError as error:
        thing.error(error.rule, f"the line has what is no coordinate: {error}", value=" ".join(row)[:200])
        return None
