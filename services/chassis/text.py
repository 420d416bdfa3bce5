"""Texts from outside: people's are refused where they hold what no text holds, programs' are cleaned.

PostgreSQL takes no NUL byte, terminals obey control characters, and marks that turn the direction of writing, or that
nobody sees, make a name look like another. Line breaks and tabs are allowed where a text may have lines. What joins
letters, and chooses how they look, is needed in many languages and in emoji, but never among ASCII alone.
"""

from __future__ import annotations

import re

from services.chassis.errors import Violation

CUT_MARK = "…"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSEEN = "\xad\u034f\u180e\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
_JOINERS = "\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e01ef"
"""The non-joiner of Persian, the joiner of emoji, and what says how the character before it looks."""
_NO_TEXT = re.compile(f"[{_CONTROLS}{_DIRECTIONS}{_UNSEEN}]|(?<![^\0-\x7f])[{_JOINERS}]+(?![^\0-\x7f])")
_NO_LINE = re.compile("[\t\n]")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""How programs colour what they write, and move the cursor."""


def text_violations(text: str, field: str, *, characters_max: int, lines: bool = False) -> list[Violation]:
    """What is wrong with a person's text. It is never repeated in the description."""
    if len(text) > characters_max:
        description = f"has {len(text)} characters, but at most {characters_max} may be"
        return [Violation(field=field, description=description)]
    found = _NO_TEXT.search(text) or (None if lines else _NO_LINE.search(text))
    if found is None:
        return []
    description = f"holds U+{ord(found.group()[0]):04X} at character {found.start() + 1}, but must be text alone"
    return [Violation(field=field, description=description)]


def cleaned_text(text: str, *, characters_max: int, lines: bool = False) -> str:
    """A program's text without what no text holds, and cut with a mark; its beginning is kept."""
    # What is cut off is not looked at; a terminal's codes may make the text twice as long.
    text = _TERMINAL_CODE.sub("", text[: 2 * characters_max]).replace("\r\n", "\n").replace("\r", "\n")
    text = _NO_TEXT.sub(REPLACEMENT, text)
    if not lines:
        text = _NO_LINE.sub(" ", text)
    return text if len(text) <= characters_max else text[: characters_max - len(CUT_MARK)] + CUT_MARK
