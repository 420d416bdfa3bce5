"""Rows that fit a terminal: where there is no room long texts break first, then columns go; what a row is called stays
in one piece as long as the terminal has as many columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

COLUMN_GAP = 2
BROKEN_WIDTH_MIN = 18
"""Narrower than this a text is not broken: a column goes instead."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a listing."""

    name: str
    goes: int = 0
    """The column with the highest number goes first, also where no row has anything in it; with 0 it stays."""
    breaks: bool = False
    """Whether its cells may break into lines."""


class Listing:
    """Rows of cells, which are texts or mark-up. Which columns are seen is decided where it is drawn."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """One more row."""
        assert len(cells) == len(self._columns), "a cell for each column"
        self._rows.append(tuple(Text.from_markup(cell) if isinstance(cell, str) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._drawn(options.max_width)

    def _drawn(self, width: int) -> Table:
        widths = [self._width(place) for place in range(len(self._columns))]
        wanted, broken = self._fitted(widths, width)
        table = Table(box=None, padding=(0, COLUMN_GAP, 0, 0), pad_edge=False, header_style="bold")
        for place in wanted:
            whole = place not in broken
            least = widths[place] if whole else min(widths[place], BROKEN_WIDTH_MIN)
            table.add_column(self._columns[place].name, overflow="fold", no_wrap=whole, min_width=least)
        for row in self._rows:
            table.add_row(*(row[place] for place in wanted))
        return table

    def _fitted(self, widths: Sequence[int], width: int) -> tuple[list[int], set[int]]:
        """The columns that are seen, and those of them whose cells may break."""
        wanted = [place for place, column in enumerate(self._columns) if not column.goes or self._has_anything(place)]
        broken = {place for place in wanted if self._columns[place].breaks}
        while True:
            least = (min(widths[place], BROKEN_WIDTH_MIN) if place in broken else widths[place] for place in wanted)
            if sum(least) + COLUMN_GAP * (len(wanted) - 1) <= width:
                return wanted, broken
            going = max(wanted, key=lambda place: self._columns[place].goes)
            whole = [place for place in wanted if place not in broken]
            if self._columns[going].goes:
                wanted.remove(going)
            elif whole:
                broken.add(max(whole, key=lambda place: widths[place]))  # a name is broken, and not cut off
            else:
                return wanted, broken

    def _has_anything(self, place: int) -> bool:
        return any(row[place].plain for row in self._rows)

    def _width(self, place: int) -> int:
        """How wide a column is where nothing is broken."""
        lines = (line for row in self._rows for line in row[place].plain.split("\n"))
        return max(cell_len(line) for line in (self._columns[place].name, *lines))
