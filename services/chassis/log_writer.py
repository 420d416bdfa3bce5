"""Writes the log's lines in a thread of its own: a pipe that nobody reads, or a disk that hangs, stops nobody who logs.

Lines wait in memory, in their order. Those that find no room are dropped and counted, and the log says so where they
are missing, once it goes on. Others write to the same pipe (tracebacks, warnings, libraries in C): a line of ours is
never cut in two by theirs, unless it is a very long one. The standard library's QueueListener waits for its stream
without end, also as the process ends, and its queue counts lines, not their size.
"""

from __future__ import annotations

import logging
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

DROPPED_LINES = "lines"
TOLD_BYTES = 400
"""Of a line that says how many are missing."""
WHOLE_BYTES = select.PIPE_BUF - TOLD_BYTES
"""Of the lines that are written in one go: what a pipe takes whole or not at all, whoever else writes to it (POSIX)."""
FLUSH_LOOK_SECONDS = 0.002


@dataclass(frozen=True, kw_only=True)
class LogLimits:
    """What a log that is not written may hold up."""

    waiting_characters_max: int = 4_000_000
    """Of the lines that wait; so many again may be on their way."""
    flush_seconds_max: float = 2.0
    """How long the end of the process waits for the last lines."""


class LogWriter(logging.Handler):
    """Formats where a line is logged, writes elsewhere. `logging` flushes it as the process ends.

    Nothing but `logging`'s own lock of a handler is held here, and never while something is waited for: a finalizer
    that logs may run anywhere, in the thread that writes too. Each count has one writer.
    """

    def __init__(self, stream: IO[str], limits: LogLimits) -> None:
        super().__init__()
        self._stream = stream
        self._limits = limits
        self._lines: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        """With how many were dropped before each."""
        self._put_characters = self._taken_characters = 0
        self._dropped = self._lost = self._told = 0
        """Lines for which there was no room, lines that could not be written, and how many of both were told."""
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have the line written; return at once."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001  # a line that cannot be made ends nobody's work
            self.handleError(record)
            return
        waiting = self._put_characters - self._taken_characters
        if waiting + len(line) > self._limits.waiting_characters_max:
            self._dropped += 1
            return
        self._put_characters += len(line)
        self._lines.put((line, self._dropped))

    def flush(self) -> None:
        """Wait until all that was logged is written, for `flush_seconds_max` at most."""
        ends_at = time.monotonic() + self._limits.flush_seconds_max
        while self._taken_characters != self._put_characters and time.monotonic() < ends_at:
            time.sleep(FLUSH_LOOK_SECONDS)

    def _write_for_ever(self) -> None:
        for group in self._groups():
            told = self._told
            texts = [text for line, dropped in group for text in (self._missing(dropped), line)]
            if self._lines.empty():
                texts.append(self._missing(self._dropped))
            if not self._is_written("".join(texts)):
                self._told = told
                self._lost += len(group)
            self._taken_characters += sum(len(line) for line, _ in group)

    def _groups(self) -> Iterator[list[tuple[str, int]]]:
        """The lines, as many together as go out whole and as wait."""
        group: list[tuple[str, int]] = []
        room_bytes = WHOLE_BYTES
        while True:
            if group and self._lines.empty():
                yield group
                group, room_bytes = [], WHOLE_BYTES
            line = self._lines.get()
            size_bytes = len(line[0].encode(errors="surrogatepass"))
            if group and size_bytes > room_bytes:
                yield group
                group, room_bytes = [], WHOLE_BYTES
            group.append(line)
            room_bytes -= size_bytes

    def _is_written(self, text: str) -> bool:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a full disk; a stream that was closed
            return False
        return True

    def _missing(self, dropped: int) -> str:
        """A line that says how many are missing here; empty where none are."""
        missing = dropped + self._lost - self._told
        if not missing:
            return ""
        self._told += missing
        extra = {DROPPED_LINES: missing}
        logger = logging.getLogger(__name__)
        record = logger.makeRecord(__name__, logging.WARNING, "", 0, "log_lines_dropped", (), None, extra=extra)
        return self.format(record) + "\n"


def standard_error() -> IO[str]:
    """Standard error, but for Python's own lock of it: the end of the process takes that, and would wait for a writer
    that hangs."""
    theirs = sys.stderr
    return open(theirs.fileno(), "w", encoding=theirs.encoding, errors=theirs.errors, closefd=False)
