"""JSON, token by token: numbers stay the text that was written, and what is wrong is told with its position."""

from __future__ import annotations

import json.decoder
import re
from collections.abc import Callable, Iterator


class JsonError(Exception):
    """The text is no JSON; `position` is where that shows."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position


_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
# One token of JSON after white space; strings are left to the scanner of the json module, which is C.
_TOKEN = re.compile(
    rf'[ \t\r\n]*(?:(?P<mark>[{{}}\[\]:,"])|(?P<number>{_NUMBER})(?![\w.+-])|(?P<word>-?[A-Za-z_][\w.]*))'
)
# A list of numbers on one line, such as a box, in one step: most of a large file is in such lists. Atomic groups keep
# the time linear where it turns out to be something else.
_NUMBERS = re.compile(rf"[ \t]*(?>{_NUMBER}[ \t]*)(?>,[ \t]*{_NUMBER}[ \t]*)*+\]")
scan_string: Callable[[str, int, bool], tuple[str, int]] = json.decoder.scanstring  # type: ignore[attr-defined]  # no stub
# What Python writes for numbers that are not finite is no JSON. It is read all the same: as one bad number, with its
# image and line, it says more than a file that is broken.
_JSON_WORDS = {"true": "true", "false": "false", "null": None} | {
    word: word for word in ("NaN", "Infinity", "-Infinity")
}


def json_tokens(text: str) -> Iterator[tuple[str, str | None, int]]:
    """Tokens as (kind, value, position); the kind of a mark is the mark, the last one is `end`."""
    position = 0
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip(" \t\r\n")
            position = len(text) - len(rest)
            if not rest:
                yield "end", None, position
                return
            raise JsonError(position, f"is not JSON: {rest[:12]!r} was found")
        start = match.start(match.lastgroup or 0)
        position = match.end()
        if match["mark"] == '"':
            text_value, position = _string(text, position)
            yield "string", text_value, start
        elif match["mark"] == "[" and (numbers := _NUMBERS.match(text, position)) is not None:
            yield "numbers", text[position : numbers.end() - 1], start
            position = numbers.end()
        elif match["mark"]:
            yield match["mark"], None, start
        elif match["number"]:
            yield "scalar", match["number"], start
        elif match["word"] in _JSON_WORDS:
            yield "scalar", _JSON_WORDS[match["word"]], start
        else:
            raise JsonError(start, f"is not JSON: {match['word'][:40]!r} was found, text stands in quotes")


def _string(text: str, position: int) -> tuple[str, int]:
    try:
        value, end = scan_string(text, position, True)
    except json.JSONDecodeError as error:
        raise JsonError(error.pos, f"is not JSON: {error.msg}") from error
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise JsonError(position, "is not JSON: half a surrogate pair stands in a text")
    return value, end
