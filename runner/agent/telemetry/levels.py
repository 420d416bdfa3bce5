"""How grave a line is that a process wrote without saying so: tracebacks, crashes and warnings are told by their form.

Python prints an exception line by line, and a log that is filtered by level must show all of it or nothing. Lines of
several ranks, and progress bars, may stand between the lines of one traceback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from sihlai.logs.v1 import log_line_pb2

from runner.agent.telemetry.lines import Piece

UNSPECIFIED = log_line_pb2.LOG_LEVEL_UNSPECIFIED
WARNING = log_line_pb2.LOG_LEVEL_WARNING
ERROR = log_line_pb2.LOG_LEVEL_ERROR
Level: TypeAlias = log_line_pb2.LogLevel.ValueType

LOOKED_AT_CHARACTERS = 500
"""Of a line; its form shows at its beginning or, behind a progress bar, at its end."""
STRANGERS_MAX = 50
"""Lines of others in the middle of a traceback, before it counts as broken off."""
RANKS_MAX = 256

PREFIX = re.compile(r"(?:\[[^\]\s]{1,40}\]:? ?)*")
"""What launchers of several processes put before each line, such as `[rank1]: `."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TRACEBACK_WORDS = "Traceback (most recent call last):"
TRACEBACK = re.compile(rf"(?P<group>\s*\+ Exception Group )?{re.escape(TRACEBACK_WORDS)}\s*$")
BAR = re.compile(r"(?<!\d)\d+%\||(?<![\d.])\d+(?:\.\d+)?(?:it/s|s/it)\b|\?it/s")
GROUP_LINE = re.compile(r"\s*(?:\| ?|\+[-+ ])")
GROUP_END = re.compile(r"\s*\+-+$")
CHAIN = re.compile(r"(?:During handling of the above exception, another|The above exception was the direct cause of)")
EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*(?::|$)"  # of a module
    r"|[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Iteration|Group|Failure|Failed|Timeout|Refused)(?::|$)"
)
MAYBE_EXCEPTION = re.compile(r"[A-Z]\w*[a-z]\w*(?:$|: )")
"""Most classes are called like this, and some words of other lines are."""
FRAME = re.compile(r"\s+File \".*\", line \d+")
FATAL = re.compile(r"Fatal Python error: |Timeout \(\d+:\d+:\d+(?:\.\d+)?\)!|terminate called (?:after|without)")
FATAL_LINE = re.compile(
    r"\s|$|(?:Current thread|Thread) 0x|Current thread's C stack|Extension modules: |Python runtime state: |<no Python"
)
NATIVE = re.compile(r"\[([WEF])\d{4,8} ")
"""How the C++ parts of torch begin a line."""
PYTHON_WARNING = re.compile(r"\S.*:\d+: (?:[A-Za-z_]\w*\.)*[A-Z]\w*Warning: ")


class _Place(Enum):
    """Where in a traceback the last line was."""

    FRAMES = "frames"
    ENDED = "ended"
    FATAL = "fatal"
    WARNED = "warned"


@dataclass(kw_only=True)
class _Open:
    """A traceback of one process that may go on."""

    place: _Place
    group: bool = False
    certain: bool = True
    """Whether its end is the exception, and not a line that only looks like one."""
    strangers: int = 0


class LineLevels:
    """Takes the pieces of one stream in order, and tells the level of each."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        """By the prefix of the process."""
        self._last = UNSPECIFIED
        self._continued = False

    def level_of(self, piece: Piece) -> Level:
        """The level; UNSPECIFIED where the line does not show one. All pieces of a line have the same."""
        if not self._continued:
            text = piece.text
            if len(text) > 2 * LOOKED_AT_CHARACTERS:
                text = text[:LOOKED_AT_CHARACTERS] + " " + text[-LOOKED_AT_CHARACTERS:]
            self._last = self._level_of_line(ANSI.sub("", text))
        self._continued = piece.continued
        return self._last

    def _level_of_line(self, line: str) -> Level:
        native = NATIVE.search(line[:80])
        if native is not None:
            return WARNING if native[1] == "W" else ERROR
        match = PREFIX.match(line)
        prefix = match[0] if match is not None else ""
        text = line[len(prefix) :]
        head = TRACEBACK.search(text) if TRACEBACK_WORDS in text else None  # the search alone takes ten times as long
        if head is not None:
            current = self._open.get(prefix)
            inside_group = current is not None and current.group and GROUP_LINE.match(text) is not None
            self._begin(prefix, _Open(place=_Place.FRAMES, group=bool(head["group"]) or inside_group))
            return ERROR
        if BAR.search(text):
            return UNSPECIFIED
        if CHAIN.match(text):  # also where others' lines came between
            return ERROR
        if FATAL.match(text):
            self._begin(prefix, _Open(place=_Place.FATAL))
            return ERROR
        current = self._open.get(prefix)
        if current is not None and (level := self._level_inside(prefix, current, text)) is not None:
            return level
        if FRAME.match(text):  # a syntax error has no line before it
            self._begin(prefix, _Open(place=_Place.FRAMES))
            return ERROR
        if PYTHON_WARNING.match(text):
            self._begin(prefix, _Open(place=_Place.WARNED))
            return WARNING
        return UNSPECIFIED

    def _level_inside(self, prefix: str, current: _Open, text: str) -> Level | None:
        """The level of a line behind others of a traceback; None where it does not belong to it."""
        match current.place:
            case _Place.WARNED:
                del self._open[prefix]
                return WARNING if text[:2].isspace() and text.strip() else None
            case _Place.FATAL:
                if FATAL_LINE.match(text):
                    return ERROR
            case _ if current.group and GROUP_LINE.match(text):
                current.place = _Place.ENDED if GROUP_END.match(text) else _Place.FRAMES
                return ERROR
            case _Place.ENDED:
                return self._level_after(prefix, current, text)
            case _ if current.group:
                pass
            case _ if text[:1].isspace():
                return ERROR
            case _ if EXCEPTION.match(text) or MAYBE_EXCEPTION.match(text):
                current.place, current.certain = _Place.ENDED, EXCEPTION.match(text) is not None
                return ERROR
        current.strangers += 1
        if current.strangers > STRANGERS_MAX:
            del self._open[prefix]
        return None

    def _level_after(self, prefix: str, current: _Open, text: str) -> Level | None:
        """Behind an exception: its message may go on, indented, and another may follow that it caused."""
        if not text.strip() or text[:1].isspace():
            return ERROR
        if not current.certain:
            current.certain = True
            if EXCEPTION.match(text):
                return ERROR
        del self._open[prefix]
        return None

    def _begin(self, prefix: str, begun: _Open) -> None:
        if len(self._open) >= RANKS_MAX:
            self._open.clear()
        self._open[prefix] = begun
