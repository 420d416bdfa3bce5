"""`sihlai metrics`: show, watch, compare."""

from __future__ import annotations

import contextlib
import enum
import fnmatch
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.metrics.v1.series_pb2 import Series, SeriesDefinition
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_service_pb2 import BatchGetJobsRequest

from services.chassis.errors import DeadlineExceeded, Unavailable
from services.cli.command.arguments import JobArgument, JobsArgument
from services.cli.command.log import on_break
from services.cli.command.metric_export import export_metrics
from services.cli.session import Session, command
from services.cli.view.curve import CHART_HEIGHT, SPARK_WIDTH, Chart, curve_from_series, sparkline, time_origin
from services.cli.view.live_series import LiveSeries
from services.cli.view.table import best_table, differences_table, series_label, series_table
from services.client.call import JOBS, METRICS, ask, whole
from services.client.name import job_name, short
from services.client.series import watched

BUCKETS = 120
"""Twice as many as a chart has columns of dots is enough to lose no spike."""
CHARTS_MAX = 4
CHART_HEIGHT_MIN = 8
VALUES_HEIGHT = 4
"""Rows beside live charts: two of values, a legend, the cursor's."""
SYSTEM_PREFIX = "system/"
DEFAULT_CURVES = ("train/loss", "valid/loss")
PLAIN_SECONDS = 2.0
"""How often `watch` says a line where there is no terminal to draw on."""
DRAWING_SECONDS = 0.25
"""How often `watch` draws at a terminal, at most."""

app = typer.Typer(no_args_is_help=True, help="Series of jobs: shown, watched live, compared, exported.")
app.command("export")(export_metrics)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[SERIES]...", help="Names such as train/loss, with * for any text.")
]


class AxisName(enum.StrEnum):
    """What curves can be drawn over."""

    STEP = "step"
    TIME = "time"
    RELATIVE_TIME = "relative-time"


AXES = {
    AxisName.STEP: pb.SERIES_AXIS_STEP,
    AxisName.TIME: pb.SERIES_AXIS_TIME,
    AxisName.RELATIVE_TIME: pb.SERIES_AXIS_RELATIVE_TIME,
}
AxisOption = Annotated[
    AxisName, typer.Option("--axis", help="Draw over steps, times, or the time since a job's first point.")
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
    axis: AxisOption = AxisName.STEP,
) -> None:
    """Show a job's series: last, lowest and highest values, and curves.

    Example: sihlai metrics show digits/first "*/loss"
    """
    name = job_name(job)
    series = [each for each in await all_of(session, name) if _is_wanted(each, names, all_series)]
    wanted = sorted({each.definition.name for each in series})
    data = pb.QuerySeriesResponse()
    if wanted:
        selector = pb.SeriesSelector(names=wanted)
        data = await session.client.run(
            ask,
            METRICS.QuerySeries,
            pb.QuerySeriesRequest(job=name, selector=selector, buckets_max=buckets, axis=AXES[axis]),
        )
    if session.output.as_json:
        session.output.json(pb.ListSeriesResponse(series=series))
        session.output.json(data)
        return
    drawable = data.series if session.output.has_blocks else ()
    shapes = {each.definition.series_id: sparkline(each.buckets.lasts, SPARK_WIDTH) for each in drawable}
    session.output.show(series_table(series, shapes))
    if curves:
        for drawn in _charts(data.series, names):
            session.output.show(drawn)


@app.command("watch")
@command
async def watch_job_metrics(session: Session, job: JobArgument, names: Names = None) -> None:
    """Draw a job's curves live until it has ended; over broken connections too.

    Example: sihlai metrics watch digits/first
    """
    output = session.output
    wanted = names or [*await _primary_series(session, [job_name(job)]), *DEFAULT_CURVES]
    request = pb.WatchMetricsRequest(job=job_name(job), selector=pb.SeriesSelector(names=wanted))
    live = LiveSeries()
    pause = DRAWING_SECONDS if output.live else PLAIN_SECONDS
    shown_at = 0.0 if output.live else time.monotonic()  # lines wait for what there is already
    # Drawn by this loop alone: a thread of its own would read the points while they change.
    with Live(console=output.console, auto_refresh=False) if output.live else contextlib.nullcontext() as screen:
        async for answer in session.client.iterate(watched, request, on_break=on_break(output)):
            live.add(answer)
            due = time.monotonic() - shown_at > pause or answer.WhichOneof("message") == "ended"
            if output.as_json:
                output.json(answer)
            elif due:
                shown_at = time.monotonic()
                if screen:
                    drawing = _live_charts(live, height=output.console.height, losses_together=not names)
                    screen.update(drawing, refresh=True)
                else:
                    output.line(live.line())
    if not output.as_json:
        state = job_pb2.JobState.Name(live.state).removeprefix("JOB_STATE_").lower()
        output.note(f"{short(job_name(job))} is {state}" + ("" if live.complete else "; some points may be missing"))


@app.command("compare")
@command
async def compare_jobs(
    session: Session,
    jobs: JobsArgument,
    series: Annotated[
        list[str] | None, typer.Option(help="Draw this series; * stands for any text; may be repeated.")
    ] = None,
    buckets: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many buckets a series.")] = BUCKETS,
    axis: AxisOption = AxisName.STEP,
) -> None:
    """Compare jobs: where their configurations differ, their best values, and their curves.

    Without --series these are the metrics that the jobs' best checkpoints are chosen by, and the losses.

    Example: sihlai metrics compare digits/first digits/second --series valid/loss
    """
    names = [job_name(job) for job in jobs]
    wanted = series or [*await _primary_series(session, names), *DEFAULT_CURVES]
    answer = await session.client.run(
        ask,
        METRICS.CompareJobs,
        pb.CompareJobsRequest(
            jobs=names, selector=pb.SeriesSelector(names=wanted), buckets_max=buckets, axis=AXES[axis]
        ),
    )
    if session.output.as_json:
        session.output.json(answer)
        return
    for part in comparison_parts(answer, wanted):
        session.output.show(part)


async def all_of(session: Session, name: str) -> list[Series]:
    """All series of a job, with their summaries."""
    answer = await session.client.run(whole, METRICS.ListSeries, pb.ListSeriesRequest(job=name))
    return list(answer.series)


def comparison_parts(answer: pb.CompareJobsResponse, wanted: Sequence[str]) -> list[RenderableType]:
    """A comparison as tables and charts, of what was wanted first first."""
    parts: list[RenderableType] = []
    if answer.configurations_missing:
        parts.append(Text("the scheduler does not answer: configurations are not to be had", style="yellow"))
    elif answer.differences:
        parts.append(differences_table(answer))
    else:
        parts.append(Text("the configurations are the same", style="dim"))
    compared = [series.definition for job in answer.jobs for series in job.series]
    compared += [curve.definition for job in answer.jobs for curve in job.curves]
    labels = [series_label(each) for each in sorted(compared, key=partial(_place, wanted))]
    labels = list(dict.fromkeys(labels))
    parts += [Text(""), best_table(answer, labels), Text("")]
    drawable = {series_label(curve.definition) for job in answer.jobs for curve in job.curves}
    for label in [label for label in labels if label in drawable][:CHARTS_MAX]:
        drawn = [(job, curve) for job in answer.jobs for curve in job.curves if series_label(curve.definition) == label]
        origin = time_origin(curve for _, curve in drawn)
        curves = [curve_from_series(short(job.job), curve, origin=origin) for job, curve in drawn]
        parts.append(Chart(title=label, curves=curves))
    return parts


async def _primary_series(session: Session, names: Sequence[str]) -> list[str]:
    """What the jobs' best checkpoints are chosen by; nothing where the scheduler does not answer."""
    try:
        answer = await session.client.run(ask, JOBS.BatchGetJobs, BatchGetJobsRequest(names=names))
    except (Unavailable, DeadlineExceeded):
        return []
    parts = (job.spec.trainer.selection_metric.rpartition("/") for job in answer.jobs)
    return list(dict.fromkeys(f"{head}{slash}valid/{metric}" for head, slash, metric in parts if metric))


def _place(wanted: Sequence[str], definition: SeriesDefinition) -> tuple[int, str]:
    """Where a series stands among others: by what was wanted, then by its label."""
    found = (
        place
        for place, pattern in enumerate(wanted)
        if definition.name == pattern or fnmatch.fnmatchcase(definition.name, pattern)
    )
    return next(found, len(wanted)), series_label(definition)


def _is_wanted(series: Series, names: Sequence[str] | None, all_series: bool) -> bool:
    definition = series.definition
    if names:
        return any(fnmatch.fnmatchcase(definition.name, pattern) for pattern in names)
    return all_series or (not definition.name.startswith(SYSTEM_PREFIX) and not definition.context)


def _charts(data: Iterable[pb.SeriesData], names: Sequence[str] | None) -> list[RenderableType]:
    """Losses in one chart; named series, and otherwise the validation metrics, in one each."""
    series = list(data)
    origin = time_origin(series)
    curves = {}
    for each in series:
        label = series_label(each.definition)
        curves[label] = curve_from_series(label, each, origin=origin)
    if names:
        return [Chart(title=label, curves=[curve]) for label, curve in list(curves.items())[:CHARTS_MAX]]
    losses = [curves[label] for label in DEFAULT_CURVES if label in curves]
    metrics = [label for label in curves if "/valid/" in label and not label.endswith("/loss")]
    charts: list[RenderableType] = [Chart(title="loss", curves=losses)] if losses else []
    return charts + [Chart(title=label, curves=[curves[label]]) for label in metrics[:1]]


def _live_charts(live: LiveSeries, *, height: int, losses_together: bool) -> RenderableType:
    """The newest values, then as many charts as the terminal has rows for."""
    labels = live.labels()
    losses = [label for label in DEFAULT_CURVES if label in labels] if losses_together else []
    drawn = [("loss", losses)] if losses else []
    drawn += [(label, [label]) for label in labels if label not in losses]
    rows = height - VALUES_HEIGHT
    count = max(1, min(len(drawn), CHARTS_MAX, rows // CHART_HEIGHT_MIN))
    chart_height = max(CHART_HEIGHT_MIN, min(CHART_HEIGHT, rows // count))
    charts = (
        Chart(title=title, curves=[live.curve(label) for label in found], height=chart_height)
        for title, found in drawn[:count]
    )
    return Group(Text(live.line(), style="bold"), *charts)
