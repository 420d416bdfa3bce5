"""Curves in a terminal: a chart of several series over their steps, and a sparkline of one.

Spikes stay visible: where a bucket stands for several points its lowest and highest values are drawn, not its mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from sihlai.metrics.v1.metrics_service_pb2 import SERIES_AXIS_RELATIVE_TIME, SERIES_AXIS_TIME, SeriesData
from sihlai.metrics.v1.series_pb2 import BucketColumns, PointColumns

CHART_WIDTH_MAX = 110
CHART_HEIGHT = 14
SPARK_MARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
COLORS = (39, 208, 42, 170, 196, 51, 220, 245)
"""Numbers of the terminal's 256 colours; with more curves they come again."""
MARKS = "*+ox#@%&"
FRAME_IN_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼", "-|+++++++++")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line in a chart: its steps rise, and its values are finite."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def curve_from_points(label: str, points: PointColumns) -> Curve:
    """All finite points, by step."""
    pairs = sorted((s, v) for s, v in zip(points.steps, points.values, strict=True) if math.isfinite(v))
    return Curve(label=label, steps=[float(s) for s, _ in pairs], values=[v for _, v in pairs])


def time_origin(series: Iterable[SeriesData]) -> int:
    """Where the time of series that are drawn in one chart begins: no number of 16 digits is drawn."""
    return min((s.buckets.axis_firsts[0] for s in series if s.axis == SERIES_AXIS_TIME and s.buckets.counts), default=0)


def curve_from_series(label: str, series: SeriesData, *, origin: int) -> Curve:
    """The curve of a series' buckets, over steps, or over seconds since `origin` where it goes by time."""
    curve = curve_from_buckets(label, series.buckets)
    if series.axis not in (SERIES_AXIS_TIME, SERIES_AXIS_RELATIVE_TIME):
        return curve
    begin = origin if series.axis == SERIES_AXIS_TIME else 0
    return Curve(label=label, steps=[(place - begin) / 1e6 for place in curve.steps], values=curve.values)


def curve_from_buckets(label: str, buckets: BucketColumns) -> Curve:
    """Each bucket's lowest and highest value, so that no spike disappears."""
    steps: list[float] = []
    values: list[float] = []
    columns = zip(buckets.axis_firsts, buckets.axis_lasts, buckets.minimums, buckets.maximums, strict=True)
    for first, last, low, high in columns:
        if math.isnan(low):
            continue
        middle = (first + last) / 2
        steps += [middle] if low == high else [middle, middle]
        values += [low] if low == high else [low, high]
    return Curve(label=label, steps=steps, values=values)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves in one frame, with a legend below where there are several; as wide as there is room, or as is said.

    Where there are no colours several curves are told apart by their marks; where there are only the letters of ASCII
    all is drawn with those.
    """

    title: str
    curves: Sequence[Curve]
    width: int | None = None
    height: int = CHART_HEIGHT

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = [curve for curve in self.curves if curve.steps]
        if not drawn:
            yield Text(f"{self.title}: no points yet", style="dim")
            return
        has_colors = console.color_system is not None and not console.no_color
        by_marks = options.ascii_only or (len(drawn) > 1 and not has_colors)
        marks = MARKS if by_marks else ("braille",)
        yield self._lines(drawn, marks, min(self.width or options.max_width, CHART_WIDTH_MAX), options.ascii_only)
        if len(drawn) > 1:
            legend = Text("  ")
            for index, curve in enumerate(drawn):
                mark = marks[index % len(marks)] if by_marks else "━"
                legend.append(f"{mark}{mark} ", style=f"color({COLORS[index % len(COLORS)]})")
                legend.append(f"{curve.label}   ")
            yield legend

    def _lines(self, drawn: Sequence[Curve], marks: Sequence[str], width: int, ascii_only: bool) -> Text:
        import plotext  # a third of a second: whoever draws nothing does not pay for it

        plotext.terminal.limit(False, False)  # the width is ours to know
        figure = plotext.figure
        figure.clear()
        figure.theme("simple")
        figure.canvas("default")
        figure.plot_size(width, self.height)
        figure.title(self.title)
        figure.legend(active=False)
        for index, curve in enumerate(drawn):
            marker = plotext.marker(marks[index % len(marks)], COLORS[index % len(COLORS)])
            signal = figure.signal(list(curve.steps), list(curve.values), marker=marker)
            signal.lines()
            figure.draw(signal)
        text = figure.build().string().rstrip("\n")
        return Text.from_ansi(text.translate(FRAME_IN_ASCII) if ascii_only else text)


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """The shape of a series in one line; what is not finite is a blank, of several in one place the last is drawn."""
    if len(values) > width:
        values = [values[(index + 1) * len(values) // width - 1] for index in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(SPARK_MARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARK_MARKS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)
