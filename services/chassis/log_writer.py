"""Writes the log's lines in a thread of its own: a pipe that nobody reads, or a disk that hangs, stops nobody who logs.

Lines wait in memory, in their order. Those that find no room are dropped and counted, and the log says so where they
are missing, once it goes on. The standard library's QueueListener waits for its stream without end, also as the process
ends, and its queue counts lines, not their size.
"""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from typing import IO

DROPPED_LINES = "lines"


@dataclass(frozen=True, kw_only=True)
class LogLimits:
    """What a log that is not written may hold up."""

    waiting_characters_max: int = 4_000_000
    """Of the lines that wait; so many again may be on their way."""
    flush_seconds_max: float = 2.0
    """How long the end of the process waits for the last lines."""


class LogWriter(logging.Handler):
    """Formats where a line is logged, writes elsewhere. `logging` flushes it as the process ends."""

    def __init__(self, stream: IO[str], limits: LogLimits) -> None:
        super().__init__()
        self._stream = stream
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._characters = 0
        self._dropped = 0
        self._writes = False
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have the line written; return at once."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001  # a line that cannot be made ends nobody's work
            self.handleError(record)
            return
        with self._changed:
            if self._characters + len(line) > self._limits.waiting_characters_max:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._characters += len(line)
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was logged is written, for `flush_seconds_max` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writes, self._limits.flush_seconds_max)

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, self._waiting, self._characters = self._waiting, [], 0
                dropped, self._dropped = self._dropped, 0
                self._writes = True
            if dropped:
                lines.append(self._told(dropped))
            lost = self._lost(lines, dropped)
            with self._changed:
                self._dropped += lost
                self._writes = False
                self._changed.notify_all()

    def _lost(self, lines: list[str], dropped: int) -> int:
        """Write the lines; how many are lost where that fails, with those that were dropped."""
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):  # a full disk; a stream that was closed
            return len(lines) - bool(dropped) + dropped
        return 0

    def _told(self, dropped: int) -> str:
        logger = logging.getLogger(__name__)
        extra = {DROPPED_LINES: dropped}
        record = logger.makeRecord(__name__, logging.WARNING, "", 0, "log_lines_dropped", (), None, extra=extra)
        return self.format(record) + "\n"


def standard_error() -> IO[str]:
    """Standard error, but for Python's own lock of it: the end of the process takes that, and would wait for a writer
    that hangs."""
    theirs = sys.stderr
    return open(theirs.fileno(), "w", encoding=theirs.encoding, errors=theirs.errors, closefd=False)
