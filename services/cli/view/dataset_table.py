"""Tables, drawings and one-line descriptions of datasets for people: tasks, paths, contents, findings, results.

What a dataset says of itself may hold anything: it is shown without mark-up and without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.conversion.v1.conversion_service_pb2 import (
    ConversionResult,
    ConversionStep,
    DatasetImage,
    InspectDatasetResponse,
    LabelState,
    PlanConversionResponse,
    ReachableTasks,
    TaskDescription,
    ValidationTotals,
)
from sihlai.conversion.v1.dataset_pb2 import AnnotationSetSummary, CategoryCount, Finding

from services.cli.view.listing import Column, Listing
from services.cli.view.table import size_text
from services.cli.view.text import safe, shown

SIZES_SHOWN = 8
CATEGORIES_SHOWN = 30
"""Without --all; the most frequent ones."""
BAR_WIDTH_MIN = 8
BAR_WIDTH_MAX = 50
BAR_BLOCKS = " ▏▎▍▌▋▊▉"
"""Eighths of a cell, none to seven."""
NAME_WIDTH_MAX = 32
SIZE_WIDTH = 13
STATE_WIDTH = 10
COLUMNS_WIDTH = 40
"""What the columns beside a name and its bar need."""
STATE_STYLES = {"labelled": "green", "negative": "blue", "unlabelled": "bright_black"}
SEVERITIES = {
    dataset_pb2.SEVERITY_WARNING: ("warning", "yellow"),
    dataset_pb2.SEVERITY_ERROR: ("error", "bold red"),
}


def tasks_table(tasks: Sequence[TaskDescription]) -> RenderableType:
    """One row a task with its metadata keys; what every task leads to stands below, once."""
    names = {each.task: each.name for each in tasks}
    ends = {each.task: {step.to for step in each.conversions} | {each.task} for each in tasks}
    everywhere = set.intersection(*ends.values()) if ends else set()
    table = _table("task, and its metadata", "annotation of one image", "leads to")
    for each in tasks:
        keys = f"\n[dim]{escape(', '.join(each.metadata_keys))}[/dim]" if each.metadata_keys else ""
        leads_to = [names.get(s.to, task_name(s.to)) for s in each.conversions if s.to not in everywhere]
        table.add_row(f"{escape(each.name)}{keys}", escape(each.annotation_format), escape("\n".join(leads_to)))
    common = ", ".join(name for task, name in names.items() if task in everywhere)
    return Group(table, Text(f"\nevery task also leads to: {common}")) if common else table


def plan_drawing(plan: PlanConversionResponse) -> RenderableType:
    """The path, then each step with its rule and what it loses."""
    start = plan.from_task
    origin = f" (annotation set {shown(plan.annotation_set)})" if plan.annotation_set else ""
    if not plan.steps:
        return Text(f"nothing is to be done: the annotations already are {task_name(start)}{origin}")
    return Group(path_text(start, plan.steps) + Text(origin, style="dim"), Text(), steps_table(plan.steps))


def path_text(start: task_pb2.Task.ValueType, steps: Sequence[ConversionStep]) -> Text:
    """`a → b → c`."""
    text = Text(task_name(start), style="bold")
    for step in steps:
        text.append(" → ", style="cyan")
        text.append(task_name(step.to))
    return text


def steps_table(steps: Sequence[ConversionStep]) -> Table:
    """One row a step: what is done, and what is lost."""
    table = _table("step", "loses", "what is done")
    for step in steps:
        table.add_row(
            Text(f"→ {task_name(step.to)}"),
            Text("; ".join(step.losses), style="yellow") if step.losses else Text("nothing", style="green"),
            Text(step.rule),
        )
    return table


def inspection_drawing(found: InspectDatasetResponse, *, width: int, all_categories: bool) -> RenderableType:
    """Everything about a dataset: what lies there, then each of its annotation sets."""
    table = _pairs()
    table.add_row("images", f"{found.images:,}, {size_text(found.image_bytes)}")
    table.add_row("fingerprint", found.fingerprint)
    parts: list[RenderableType] = [table]
    if found.sizes:
        parts += [Text(), _sizes_table(found, width)]
    for summary, reachable in zip(found.annotation_sets, found.reachable, strict=True):
        parts += [Text(), _set_drawing(summary, reachable, width, all_categories)]
    return Group(*parts)


def _set_drawing(
    summary: AnnotationSetSummary, reachable: ReachableTasks, width: int, all_categories: bool
) -> RenderableType:
    name = f"{shown(summary.name)}: " if summary.name else ""
    parts: list[RenderableType] = [Text(f"{name}{task_name(summary.task)}", style="bold"), _states(summary, width)]
    if summary.categories:
        parts += [Text(), _categories_table(summary.categories, width, all_categories)]
    others = ", ".join(task_name(task) for task in reachable.tasks if task != summary.task)
    parts += [Text(), Text(f"can become: {others}") if others else Text("can become nothing else")]
    return Group(*parts)


def _states(summary: AnnotationSetSummary, width: int) -> Table:
    """How many images are labelled, say that nothing is there, or say nothing."""
    counts = {
        "labelled": summary.labelled_images,
        "negative": summary.negative_images,
        "unlabelled": summary.unlabelled_images,
    }
    total = sum(counts.values())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    table.add_column(no_wrap=True)
    for state, count in counts.items():
        share = count / total if total else 0.0
        table.add_row(
            state,
            f"{count:,}",
            f"{share:.1%}",
            Text(bar(share, _bar_width(width, STATE_WIDTH)), style=STATE_STYLES[state]),
        )
    return table


def _categories_table(categories: Sequence[CategoryCount], width: int, all_categories: bool) -> RenderableType:
    """The balance: most frequent first, bars to the scale of the most frequent one."""
    ordered = sorted(categories, key=lambda each: -each.annotations)
    drawn = ordered if all_categories else ordered[:CATEGORIES_SHOWN]
    most = max(ordered[0].annotations, 1)
    total = max(sum(each.annotations for each in ordered), 1)
    longest = min(max(len(shown(each.category)) for each in drawn), NAME_WIDTH_MAX)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("category", overflow="fold", max_width=NAME_WIDTH_MAX)
    for column in ("images", "annotations", "share"):
        table.add_column(column, justify="right")
    table.add_column(no_wrap=True)
    for each in drawn:
        table.add_row(
            Text(shown(each.category)),
            f"{each.images:,}",
            f"{each.annotations:,}",
            f"{each.annotations / total:.1%}",
            Text(bar(each.annotations / most, _bar_width(width, longest)), style="cyan"),
            style="" if each.annotations else "dim",
        )
    left = len(ordered) - len(drawn)
    return Group(table, Text(f"and {left:,} more, less frequent: --all shows them", style="dim")) if left else table


def _sizes_table(found: InspectDatasetResponse, width: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("size")
    table.add_column("images", justify="right")
    table.add_column(no_wrap=True)
    drawn = found.sizes[:SIZES_SHOWN]
    for each in drawn:
        line = bar(each.images / max(found.images, 1), _bar_width(width, SIZE_WIDTH))
        size = f"{each.width} \N{MULTIPLICATION SIGN} {each.height}"
        table.add_row(size, f"{each.images:,}", Text(line, style="blue"))
    left = len(found.sizes) - len(drawn)
    return Group(table, Text(f"and {counted(left, 'size')} more", style="dim")) if left else table


def finding_line(finding: Finding) -> Text:
    """`file:line image[index] severity rule: message (action)`, as much of it as there is."""
    word, style = SEVERITIES.get(finding.severity, ("finding", ""))
    place = f"{shown(finding.file)}:{finding.line}" if finding.line else shown(finding.file)
    index = f"[{finding.index}]" if finding.index >= 0 else ""
    # An image's own file says already which one it is.
    image = "" if finding.file == f"images/{finding.image}" and not index else shown(finding.image) + index
    text = Text(" ".join(part for part in (place, image) if part))
    text.append(f" {word}".removeprefix("" if text else " "), style=style)
    text.append(f" {shown(finding.rule)}", style="bold")
    text.append(f": {shown(finding.message)}")
    action = dataset_pb2.FindingAction.Name(finding.action).removeprefix("FINDING_ACTION_").lower()
    if finding.action != dataset_pb2.FINDING_ACTION_UNSPECIFIED:
        text.append(f" ({action})", style="dim")
    return text


def totals_drawing(totals: ValidationTotals) -> RenderableType:
    """How many errors and warnings there are, and of which rule how many."""
    images = counted(totals.images, "image")
    if not totals.errors and not totals.warnings:
        return Text(f"{images}, nothing wrong", style="green")
    text = Text(f"{images}: ")
    text.append(counted(totals.errors, "error"), style="bold red" if totals.errors else "green")
    text.append(", ")
    text.append(counted(totals.warnings, "warning"), style="yellow" if totals.warnings else "")
    if totals.findings_omitted:
        text.append(f"; {counted(totals.findings_omitted, 'finding')} not shown")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for rule, count in sorted(totals.findings_by_rule.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"{count:,}", Text(shown(rule)))
    return Group(text, table)


def result_drawing(result: ConversionResult, *, no_path: str = "") -> RenderableType:
    """What work on a dataset gave: what went in and came out, what was dropped and why; `no_path` where no step was."""
    table = _pairs()
    if result.steps:
        start = result.steps[0].from_task
        lost = [loss for step in result.steps for loss in step.losses]
        table.add_row("path", path_text(start, result.steps))
        table.add_row("lost on it", Text("; ".join(lost)) if lost else Text("nothing", style="green"))
    elif no_path:
        table.add_row("path", no_path)
    table.add_row("images", f"{result.images_in:,}")
    table.add_row("labelled", f"{counted(result.labelled_in, 'image')} in, {result.labelled_out:,} out")
    table.add_row("annotations", f"{result.annotations_in:,} in, {result.annotations_out:,} out")
    table.add_row("dropped", _dropped_table(result) if result.dropped else Text("nothing", style="green"))
    if result.errors or result.warnings:
        table.add_row("found", f"{counted(result.errors, 'error')}, {counted(result.warnings, 'warning')}")
    if result.source_fingerprint:
        table.add_row("fingerprint", result.source_fingerprint)
    if result.contact_sheet:
        table.add_row("contact sheet", f"{result.dataset.uri.rstrip('/')}/{result.contact_sheet}")
    if result.reused:
        table.add_row("made", "before, from the same source with the same path and options")
    return table


def _dropped_table(result: ConversionResult) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(justify="right")
    for each in sorted(result.dropped, key=lambda each: (-each.annotations, each.rule)):
        table.add_row(Text(shown(each.rule)), counted(each.annotations, "annotation"), counted(each.images, "image"))
    return table


def task_name(task: int) -> str:
    """The task as metadata.yaml writes it; a number where a newer service knows one more."""
    if task not in task_pb2.Task.values():
        return f"task {task}"
    name = task_pb2.Task.Name(task_pb2.Task.ValueType(task)).removeprefix("TASK_").lower()
    return name.replace("_", " ").replace("view invariance", "view-invariance")


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of the width, to an eighth of a cell; what is not nothing is always seen."""
    eighths = min(round(share * width * 8), width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    return ("█" * (eighths // 8) + BAR_BLOCKS[eighths % 8]).rstrip()


def counted(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _bar_width(width: int, name_width: int) -> int:
    return max(BAR_WIDTH_MIN, min(BAR_WIDTH_MAX, width - COLUMNS_WIDTH - name_width))


def _pairs() -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


STATES = {
    LabelState.LABEL_STATE_LABELLED: "labelled",
    LabelState.LABEL_STATE_NEGATIVE: "nothing there",
    LabelState.LABEL_STATE_UNLABELLED: "unlabelled",
}


def images_table(images: Iterable[DatasetImage]) -> Listing:
    """One row an image."""
    table = Listing(
        Column(name="image"),
        Column(name="size", goes=2),
        Column(name="bytes", goes=3),
        Column(name="annotation"),
        Column(name="categories", goes=1, breaks=True),
        Column(name="findings", goes=4, breaks=True),
    )
    for image in images:
        table.add_row(
            safe(image.name),
            f"{image.width} x {image.height}",
            size_text(image.size_bytes),
            STATES.get(image.state, ""),
            safe(", ".join(image.categories)),
            safe(", ".join(dict.fromkeys(finding.rule for finding in image.findings))),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
