"""Writes the log's lines in a thread of its own: a pipe that nobody reads, or a disk that hangs, stops nobody who logs.

Lines wait in memory, in their order. Those that find no room are dropped and counted, and the log says so where they
are missing, once it goes on. The standard library's QueueListener waits for its stream without end, also as the process
ends, and its queue counts lines, not their size.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO

DROPPED_LINES = "lines"
LINES_AT_ONCE = 1_000
"""That are written in one go."""
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
        while True:
            waiting = [self._lines.get()]
            while len(waiting) < LINES_AT_ONCE and not self._lines.empty():
                waiting.append(self._lines.get())
            told = self._told
            texts = [text for line, dropped in waiting for text in (self._missing(dropped), line)]
            if self._lines.empty():
                texts.append(self._missing(self._dropped))
            if not self._is_written("".join(texts)):
                self._told = told
                self._lost += len(waiting)
            self._taken_characters += sum(len(line) for line, _ in waiting)

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
