"""What the demo shows: headings, and a job while it trains, drawn over at a terminal, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.cli.command.log import line_text
from services.cli.demo.witness import LOSS, Witness
from services.cli.view.curve import Chart
from services.cli.view.table import number, progress_text, seconds_text, state_text
from services.client.name import short

DRAWING_SECONDS = 0.3
"""How often a terminal is drawn over: a drawing takes time from who trains on the same two cores."""
PLAIN_SECONDS = 3.0
"""How often a line is said where there is no terminal to draw on."""
LINES_SHOWN = 6
CHART_HEIGHT = 11
PLAIN_WIDTH = 100


class Screen:
    """Speaks for the demo."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=PLAIN_WIDTH)
        self._started_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the demo has been running."""
        return time.monotonic() - self._started_at

    def heading(self, text: str) -> None:
        """Begin a new part."""
        self.console.print(Rule(f"[bold]{text}[/bold]  [dim]{seconds_text(self.seconds)}[/dim]", align="left"))

    def say(self, text: str) -> None:
        """A line, with mark-up."""
        self.console.print(text)

    def show(self, renderable: RenderableType) -> None:
        """A table or a drawing."""
        self.console.print(renderable)

    @asynccontextmanager
    async def watching(self, witness: Witness, accuracy: str) -> AsyncIterator[None]:
        """Show the job while the block runs, and once more at its end."""
        # Drawn by a task: a thread of its own would read what the witness saw while it changes.
        live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        with live or nullcontext():
            task = asyncio.create_task(
                self._draw(live, witness, accuracy) if live else self._say_now_and_then(witness, accuracy)
            )
            try:
                yield
            finally:
                task.cancel()
            if live:
                live.update(_drawing(witness, accuracy, self.console.width), refresh=True)
            else:
                self.say(_line(witness, accuracy))

    async def _draw(self, live: Live, witness: Witness, accuracy: str) -> None:
        while True:
            live.update(_drawing(witness, accuracy, self.console.width), refresh=True)
            await asyncio.sleep(DRAWING_SECONDS)

    async def _say_now_and_then(self, witness: Witness, accuracy: str) -> None:
        lines_said = 0
        while True:
            await asyncio.sleep(PLAIN_SECONDS)
            self.say(_line(witness, accuracy))
            for line in witness.lines[lines_said:][-2:]:
                self.console.print(Text("  ") + line_text(line))
            lines_said = len(witness.lines)


def _line(witness: Witness, accuracy: str) -> str:
    loss, measured = witness.series.last(LOSS), witness.series.last(accuracy)
    parts = [
        f"{short(witness.job.name)} {state_text(witness.job)}",
        progress_text(witness.job) if loss is None else f"step {loss[0]}, loss {number(loss[1])}",
        f"validation accuracy {measured[1]:.2%} at step {measured[0]}" if measured else "",
    ]
    return ", ".join(part for part in parts if part)


def _drawing(witness: Witness, accuracy: str, width: int) -> RenderableType:
    table = Table.grid(expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    half = width // 2 - 1
    table.add_row(
        *(
            Chart(title=label, curves=[witness.series.curve(label)], width=half, height=CHART_HEIGHT)
            for label in (LOSS, accuracy)
        )
    )
    lines = [line_text(line) for line in witness.lines[-LINES_SHOWN:]]
    for line in lines:
        line.truncate(width - 4, overflow="ellipsis")
    log = Panel(Group(*lines) if lines else Text("no lines yet", style="dim"), title="log", title_align="left")
    return Group(Text.from_markup(_line(witness, accuracy)), table, log)
