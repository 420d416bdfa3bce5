"""The trainer's voice: points, lines, progress and checkpoints, sent to the agent in the order in which they happened.

A line goes to the log of the job and never to standard output. Only the thread that trains may speak.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from runner.report import (
    LINE_CHARACTERS_MAX,
    CheckpointStarted,
    CheckpointWritten,
    Ended,
    Level,
    Line,
    Points,
    Progress,
    ReportWriter,
)

PROGRESS_SECONDS_MIN = 0.25
"""Progress is reported at most this often, but always at the first step and at the last."""


class Reporter:
    """Writes reports with the time of `now`, in nanoseconds since 1970."""

    def __init__(self, writer: ReportWriter, now: Callable[[], int] = time.time_ns) -> None:
        self._writer = writer
        self._now = now
        self._progress_at: int | None = None
        self._validating_at: int | None = None

    def points(self, step: int, values: dict[str, float], context: Mapping[str, str] | None = None) -> None:
        """Report scalars after this many steps; NaN and infinite ones as they are."""
        self._writer.write(
            Points(step=step, time_unix_us=self._now() // 1_000, values=values, context=dict(context or {}))
        )

    def line(self, text: str, level: Level = Level.INFO) -> None:
        """Report a line; one that is too long is split, as is one with line breaks."""
        for part in text.splitlines():
            for start in range(0, max(1, len(part)), LINE_CHARACTERS_MAX):
                piece = part[start : start + LINE_CHARACTERS_MAX]
                self._writer.write(Line(time_unix_us=self._now() // 1_000, level=level, text=piece))

    def warning(self, text: str) -> None:
        """Report a line that somebody should see."""
        self.line(text, Level.WARNING)

    def trace(self, error: BaseException) -> None:
        """Report an exception with its stack, for whoever looks for our mistake."""
        for part in traceback.format_exception(error):
            self.line(part, Level.ERROR)

    def progress(self, iteration: int, iterations_max: int, seconds_left: float | None, *, last: bool = False) -> None:
        """Report the steps done, unless that was done a moment ago; the last ones are always reported."""
        now = self._now()
        if not last and self._progress_at is not None and now - self._progress_at < PROGRESS_SECONDS_MIN * 1e9:
            return
        self._progress_at = now
        self._writer.write(Progress(iteration=iteration, iterations_max=iterations_max, seconds_left=seconds_left))

    def validating(self, iteration: int, iterations_max: int, done: int, images: int) -> None:
        """Report how many of the images to validate on are done, unless that was done a moment ago."""
        now = self._now()
        if done and self._validating_at is not None and now - self._validating_at < PROGRESS_SECONDS_MIN * 1e9:
            return
        self._validating_at = now
        report = Progress(iteration=iteration, iterations_max=iterations_max, done=done, total=images)
        self._writer.write(report)

    def checkpoint_started(self, iteration: int) -> None:
        """Report that the last checkpoint is being written."""
        self._writer.write(CheckpointStarted(iteration=iteration))

    def checkpoint_written(
        self, folder: Path, *, iteration: int, cause: str, selection_value: float | None, best: bool
    ) -> None:
        """Report a checkpoint that is whole."""
        self._writer.write(
            CheckpointWritten(
                folder=str(folder), iteration=iteration, cause=cause, selection_value=selection_value, best=best
            )
        )

    def ended(self, ended: Ended) -> None:
        """The last word; a message as long as a log is cut to what a line holds."""
        self._writer.write(msgspec.structs.replace(ended, message=ended.message[:LINE_CHARACTERS_MAX]))
