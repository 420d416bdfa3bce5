"""How far long work on datasets is, on standard error: a bar at a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from sihlai.conversion.v1.conversion_service_pb2 import WorkProgress

from services.cli.view.dataset_table import counted
from services.cli.view.output import Output
from services.cli.view.table import seconds_text

PLAIN_SECONDS = 3.0
"""How often a line is said where there is no terminal to draw on; shorter work says none."""


class WorkBar:
    """Shows the progress of one piece of work while its block runs; nothing of it is left afterwards."""

    def __init__(self, output: Output, phase: str) -> None:
        self._output = output
        self._drawn = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            console=output.errors,
            disable=not output.draws_progress,
            transient=True,
            expand=True,
            # What is written to standard output must stay there, also while the bar is drawn.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar = self._drawn.add_task(phase, total=None, numbers="")
        self._said_at = time.monotonic()

    def __enter__(self) -> WorkBar:
        self._drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drawn.stop()

    def show(self, progress: WorkProgress) -> None:
        """Show how far the work is."""
        if not self._drawn.disable:
            total = progress.total or None
            numbers = numbers_text(progress)
            self._drawn.update(
                self._bar, description=progress.phase, completed=progress.done, total=total, numbers=numbers
            )
        elif not self._output.as_json and not self._output.quiet and time.monotonic() - self._said_at > PLAIN_SECONDS:
            self._said_at = time.monotonic()
            self._output.note(f"{progress.phase} {numbers_text(progress)}")

    def say(self, line: Text) -> None:
        """A line of the result, on standard output; where both are a terminal, above the bar."""
        drawn_over = self._output.live and not self._drawn.disable
        console = self._drawn.console if drawn_over else self._output.console
        console.print(line, soft_wrap=True)


def numbers_text(progress: WorkProgress) -> str:
    """`2,000 of 10,000, 812 images/s, 9.8 s left, 3 warnings`."""
    parts = [f"{progress.done:,} of {progress.total:,}" if progress.total else ""]
    if progress.rate:
        parts.append(f"{progress.rate:,.0f} images/s")
    if progress.HasField("time_left"):
        parts.append(f"{seconds_text(progress.time_left.ToTimedelta().total_seconds())} left")
    if progress.warnings:
        parts.append(counted(progress.warnings, "warning"))
    return ", ".join(part for part in parts if part)
