"""Lines of ICDAR's files.

    38,43,920,43,920,215,38,215,Tiredness     2015: four corners and a text, which may hold commas
    38 43 920 215 "Tiredness"                 2013: a box and a text, with or without commas
    word_1.png, "Tiredness"                   words: an image and its text

A text of `###` cannot be read: it is to be ignored.
"""

from __future__ import annotations

import re

from services.conversion.foreign.text_quads import QuadLine
from services.conversion.formats.number import NumberError, read_number

CATEGORY = "text"
ILLEGIBLE = "###"
_NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)"
_CORNERS = re.compile("^" + ",".join([_NUMBER] * 8) + r"(?:\s*,(.*))?$")
_BOX = re.compile("^" + r"[,\s]".join([_NUMBER] * 4) + r'\s*[,\s]\s*"(.*)"\s*$')
_WORD = re.compile(r"^\s*(?P<image>[^,]+?\.[A-Za-z0-9]+)\s*,\s*\"?(?P<text>.*?)\"?\s*$")


def read_line(line: str) -> QuadLine | None:
    """What a line says of a quadrilateral; None for an empty one."""
    if not line.strip():
        return None
    found = _CORNERS.match(line) or _BOX.match(line)
    if found is None:
        problem = 'the line must be eight numbers and a text, or four numbers and a "text", with commas'
        return QuadLine(problem=("bad_value", problem))
    *numbers, text = found.groups()
    try:
        return QuadLine(
            numbers=tuple(map(read_number, numbers)), category=CATEGORY, ignore=(text or "").strip() == ILLEGIBLE
        )
    except NumberError as error:
        return QuadLine(problem=(error.rule, f"the line has what is no coordinate: {error}"))


def text_of(line: str) -> str:
    """The text in a line of a quadrilateral."""
    found = _CORNERS.match(line) or _BOX.match(line)
    return "" if found is None else (found.groups()[-1] or "").strip()


def read_word(line: str) -> tuple[str, str] | None:
    """The image and the text of a word; None where the line is something else."""
    found = _WORD.match(line)
    return None if found is None else (found["image"], found["text"].replace('\\"', '"').replace("\\\\", "\\"))
