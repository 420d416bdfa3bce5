"""Log lines: which of them are meant. Standard library and errors only.

Levels and streams are the numbers of sihlai.logs.v1, in the table and on the wire alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

SOURCE_CHARACTERS_MAX = 256
"""Of the name of who wrote a line. A page of a thousand fits into every message."""


@dataclass(frozen=True, kw_only=True)
class LogFilter:
    """Conditions that must all hold; an empty one always does. `regex` is an RE2 expression."""

    level_min: int = 0
    sources: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    streams: tuple[int, ...] = ()
    contains: str = ""
    regex: str = ""
    attempts: tuple[int, ...] = ()

    @property
    def expression(self) -> str:
        """The RE2 expression as it is used everywhere: `.` is any character, as some engines have it by default."""
        return f"(?s){self.regex}"

    def takes_writer(self, attempt: int, rank: int) -> bool:
        """Whether lines of this process of this attempt can be meant."""
        return (not self.attempts or attempt in self.attempts) and (not self.ranks or rank in self.ranks)


@dataclass(frozen=True, kw_only=True)
class FromBeginning:
    """Start with the first line."""


@dataclass(frozen=True, kw_only=True)
class FromCursor:
    """Start after what the cursor has seen."""

    cursor: str


@dataclass(frozen=True, kw_only=True)
class FromLast:
    """Start with the newest lines, this many."""

    lines: int


@dataclass(frozen=True, kw_only=True)
class FromTime:
    """Start with the first line of each process that was written at this time or later."""

    time_unix_us: int


Start: TypeAlias = FromBeginning | FromCursor | FromLast | FromTime
