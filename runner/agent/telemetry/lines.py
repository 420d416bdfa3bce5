"""Bytes that a process writes, as lines; and any text as lines that fit.

A progress bar that overwrites itself with carriage returns keeps only its last state. A line that is longer than the
limit becomes several, all but the last marked as continued. What is not UTF-8 is replaced, never refused.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from runner.report import LINE_CHARACTERS_MAX


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A line, or a part of one that goes on in the next piece."""

    text: str
    continued: bool = False


def pieces_of(text: str, characters_max: int = LINE_CHARACTERS_MAX) -> list[Piece]:
    """A text of any length, with or without line ends in it, as at least one piece."""
    return [piece for line in text.split("\n") for piece in _pieces_of_line(_last_state(line), characters_max)]


class LineSplitter:
    """Takes the chunks of one stream as they come and gives the lines that are whole."""

    def __init__(self, characters_max: int = LINE_CHARACTERS_MAX) -> None:
        self._characters_max = characters_max
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def feed(self, chunk: bytes) -> list[Piece]:
        """The pieces that end within `chunk`."""
        *lines, self._pending = (self._pending + self._decoder.decode(chunk)).split("\n")
        pieces = [piece for line in lines for piece in _pieces_of_line(_last_state(line), self._characters_max)]
        # A carriage return at the very end may belong to a line end that has not come yet: it stays.
        self._pending = _last_state(self._pending, keep_end=True)
        while len(self._pending) > self._characters_max + 1:
            pieces.append(Piece(text=self._pending[: self._characters_max], continued=True))
            self._pending = self._pending[self._characters_max :]
        return pieces

    def end(self) -> list[Piece]:
        """What the stream left without a line end."""
        rest = _last_state(self._pending + self._decoder.decode(b"", final=True))
        self._pending = ""
        return _pieces_of_line(rest, self._characters_max) if rest else []


def _last_state(line: str, *, keep_end: bool = False) -> str:
    written = line.rstrip("\r")
    end = "\r" if keep_end and len(written) < len(line) else ""
    return written[written.rfind("\r") + 1 :] + end


def _pieces_of_line(line: str, characters_max: int) -> list[Piece]:
    starts = range(0, max(len(line), 1), characters_max)
    return [
        Piece(text=line[start : start + characters_max], continued=start + characters_max < len(line))
        for start in starts
    ]
