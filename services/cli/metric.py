"""`sihlai metrics`: show, watch, compare."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1.series_pb2 import Series
from sihlai.scheduler.v1 import job_pb2

from services.cli.curve import SPARK_WIDTH, chart, curve_from_buckets, sparkline
from services.cli.log import on_break
from services.cli.name import job_name, short
from services.cli.points import LiveSeries
from services.cli.session import Session, command
from services.cli.stream import watch_metrics
from services.cli.table import best_table, differences_table, series_label, series_table

PAGE_SIZE = 1_000
BUCKETS = 120
"""Twice as many as a chart has columns of dots is enough to lose no spike."""
CHARTS_MAX = 4
SYSTEM_PREFIX = "system/"
DEFAULT_CURVES = ("train/loss", "valid/loss")
PLAIN_SECONDS = 2.0
"""How often `watch` says a line where there is no terminal to draw on."""
DRAWING_SECONDS = 0.25
"""How often `watch` draws at a terminal, at most."""

app = typer.Typer(no_args_is_help=True, help="Series of jobs: shown, watched live, compared.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Such as `digits/first`.")]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[SERIES]...", help="Names such as train/loss, with * for any text.")
]


@app.command("show")
@command
async def show_metrics(
    session: Session,
    job: JobArgument,
    names: Names = None,
    all_series: Annotated[
        bool, typer.Option("--all", help="System metrics and values by class too, where no series is named.")
    ] = False,
    curves: Annotated[bool, typer.Option("--curves/--no-curves", help="Draw curves.")] = True,
    buckets: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many buckets a series.")] = BUCKETS,
) -> None:
    """Show a job's series: last, lowest and highest values, and curves."""
    name = job_name(job)
    series = [each for each in await all_of(session, name) if _is_wanted(each, names, all_series)]
    wanted = sorted({each.definition.name for each in series})
    data = pb.QuerySeriesResponse()
    if wanted:
        selector = pb.SeriesSelector(names=wanted)
        data = await session.services.metrics.QuerySeries(
            pb.QuerySeriesRequest(job=name, selector=selector, buckets_max=buckets)
        )
    if session.output.as_json:
        session.output.json(pb.ListSeriesResponse(series=series))
        session.output.json(data)
        return
    shapes = {each.definition.series_id: sparkline(each.buckets.lasts, SPARK_WIDTH) for each in data.series}
    session.output.show(series_table(series, shapes))
    if curves:
        for drawn in _charts(data.series, names, width=session.output.console.width):
            session.output.show(drawn)


@app.command("watch")
@command
async def watch_job_metrics(session: Session, job: JobArgument, names: Names = None) -> None:
    """Draw a job's curves live until it has ended; over broken connections too."""
    output = session.output
    request = pb.WatchMetricsRequest(job=job_name(job), selector=pb.SeriesSelector(names=names or ["*/loss"]))
    live = LiveSeries()
    pause = DRAWING_SECONDS if output.live else PLAIN_SECONDS
    shown_at = 0.0
    # Drawn by this loop alone: a thread of its own would read the points while they change.
    with Live(console=output.console, auto_refresh=False) if output.live else contextlib.nullcontext() as screen:
        async for answer in watch_metrics(session.services, request, on_break=on_break(output)):
            live.add(answer)
            due = time.monotonic() - shown_at > pause or answer.WhichOneof("message") == "ended"
            if output.as_json:
                output.json(answer)
            elif due:
                shown_at = time.monotonic()
                if screen:
                    screen.update(_live_charts(live, width=output.console.width), refresh=True)
                else:
                    output.line(live.line())
    if not output.as_json:
        state = job_pb2.JobState.Name(live.state).removeprefix("JOB_STATE_").lower()
        output.note(f"{short(job_name(job))} is {state}" + ("" if live.complete else "; some points may be missing"))


@app.command("compare")
@command
async def compare_jobs(
    session: Session,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Such as `digits/first digits/second`.")],
    series: Annotated[
        list[str] | None, typer.Option(help="Draw this series; * stands for any text; may be repeated.")
    ] = None,
    buckets: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many buckets a series.")] = BUCKETS,
) -> None:
    """Compare jobs: where their configurations differ, their best values, and their curves."""
    answer = await session.services.metrics.CompareJobs(
        pb.CompareJobsRequest(
            jobs=[job_name(job) for job in jobs],
            selector=pb.SeriesSelector(names=series or DEFAULT_CURVES),
            buckets_max=buckets,
        )
    )
    if session.output.as_json:
        session.output.json(answer)
        return
    for part in comparison_parts(answer, width=session.output.console.width):
        session.output.show(part)


async def all_of(session: Session, name: str) -> list[Series]:
    """All series of a job, with their summaries."""
    found: list[Series] = []
    token = ""
    while True:
        page = await session.services.metrics.ListSeries(
            pb.ListSeriesRequest(job=name, page_size=PAGE_SIZE, page_token=token)
        )
        found += page.series
        token = page.next_page_token
        if not token:
            return found


def comparison_parts(answer: pb.CompareJobsResponse, *, width: int) -> list[RenderableType]:
    """A comparison as tables and charts."""
    parts: list[RenderableType] = []
    if answer.configurations_missing:
        parts.append(Text("the scheduler does not answer: configurations are not to be had", style="yellow"))
    elif answer.differences:
        parts.append(differences_table(answer))
    else:
        parts.append(Text("the configurations are the same", style="dim"))
    parts += [Text(""), best_table(answer), Text("")]
    labels = sorted({series_label(curve.definition) for job in answer.jobs for curve in job.curves})
    for label in labels[:CHARTS_MAX]:
        curves = [
            curve_from_buckets(short(job.job), curve.buckets)
            for job in answer.jobs
            for curve in job.curves
            if series_label(curve.definition) == label
        ]
        parts.append(chart(label, curves, width=width))
    return parts


def _is_wanted(series: Series, names: Sequence[str] | None, all_series: bool) -> bool:
    definition = series.definition
    if names:
        return any(fnmatch.fnmatchcase(definition.name, pattern) for pattern in names)
    return all_series or (not definition.name.startswith(SYSTEM_PREFIX) and not definition.context)


def _charts(data: Iterable[pb.SeriesData], names: Sequence[str] | None, *, width: int) -> list[RenderableType]:
    """Losses in one chart; named series, and otherwise the validation metrics, in one each."""
    curves = {
        series_label(each.definition): curve_from_buckets(series_label(each.definition), each.buckets) for each in data
    }
    if names:
        return [chart(label, [curve], width=width) for label, curve in list(curves.items())[:CHARTS_MAX]]
    losses = [curves[label] for label in DEFAULT_CURVES if label in curves]
    metrics = [label for label in curves if "/valid/" in label and not label.endswith("/loss")]
    charts = [chart("loss", losses, width=width)] if losses else []
    return charts + [chart(label, [curves[label]], width=width) for label in metrics[:1]]


def _live_charts(live: LiveSeries, *, width: int) -> RenderableType:
    charts = [chart(label, [live.curve(label)], width=width) for label in live.labels()[:CHARTS_MAX]]
    return Group(*charts, Text(live.line(), style="dim"))
