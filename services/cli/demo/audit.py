"""What the demo checks about itself. Each check says what was wanted and what was found; none is skipped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.metrics.v1.metrics_service_pb2 import SeriesData
from sihlai.scheduler.v1 import job_pb2

from services.cli.demo.witness import LOSS, Witness
from services.cli.view.table import series_label

NAMED_MAX = 5
"""How many missing or doubled numbers a message names."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that was looked at. `problem` is empty where it holds."""

    what: str
    found: str
    problem: str = ""


class Audit:
    """The checks that were made, in order."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def check(self, what: str, *, found: str, problem: str = "") -> None:
        """Write a check down."""
        self.checks.append(Check(what=what, found=found, problem=problem))

    @property
    def problems(self) -> list[str]:
        """What does not hold, as sentences."""
        return [f"{check.what}: {check.problem}" for check in self.checks if check.problem]

    def table(self) -> Table:
        """The checks with ticks."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("", "checked", "found"):
            table.add_column(column, overflow="fold")
        for check in self.checks:
            mark = "[bold red]✗[/bold red]" if check.problem else "[green]✓[/green]"
            table.add_row(mark, check.what, check.problem or check.found)
        return table

    def lines(self, what: str, stored: Sequence[LogLine], witness: Witness) -> None:
        """Lines are numbered from 1 without a gap in each attempt, and the live tail saw the same, once, in order."""
        numbers: dict[tuple[int, int], list[int]] = {}
        for line in stored:
            numbers.setdefault((line.attempt, line.rank), []).append(line.number)
        problems = [
            f"attempt {attempt}: {problem}"
            for (attempt, _), found in sorted(numbers.items())
            if (problem := numbering_problem(found, range(1, len(found) + 1)))
        ]
        if not stored:
            problems.append("there are none")
        if not witness.logs_complete:
            problems.append("the tail did not say that it was complete")
        problems += same_problem(
            "the live tail", [_key(line) for line in witness.lines], [_key(line) for line in stored]
        )
        self.check(
            f"{what}: each line once, numbered without a gap, live as stored",
            found=f"{len(stored)} lines of {len(numbers)} attempt{'' if len(numbers) == 1 else 's'}",
            problem="; ".join(problems),
        )

    def points(self, what: str, stored: Iterable[SeriesData], witness: Witness, steps: range) -> None:
        """The loss of each step is there once, and the live watch saw the same points of every series."""
        by_label = {
            series_label(data.definition): list(zip(data.points.steps, data.points.values, strict=True))
            for data in stored
        }
        problems = []
        if problem := numbering_problem([step for step, _ in by_label.get(LOSS, [])], steps):
            problems.append(f"{LOSS}: {problem}")
        if not witness.series.complete:
            problems.append("the watch did not say that it was complete")
        for label in sorted(by_label.keys() | set(witness.series.labels())):
            seen, kept = (Counter(map(_point_key, p)) for p in (witness.series.points(label), by_label.get(label, [])))
            if seen != kept:
                lost, more = (kept - seen).total(), (seen - kept).total()
                problems.append(f"{label}: the watch missed {lost} points and saw {more} that are not stored")
        count = sum(len(points) for points in by_label.values())
        self.check(
            f"{what}: the loss of each step once, live as stored",
            found=f"{count} points in {len(by_label)} series, steps {steps[0]} to {steps[-1]}" if steps else "no steps",
            problem="; ".join(problems),
        )

    def states(self, what: str, witness: Witness, ending: job_pb2.JobState.ValueType) -> None:
        """The job was seen running and ended as it should."""
        names = " → ".join(_state_name(state) for state in witness.states)
        right = job_pb2.JOB_STATE_RUNNING in witness.states and witness.states[-1] == ending
        problem = f"wanted running, then {_state_name(ending)} at the end, found {names} {witness.job.reason_message}"
        self.check(f"{what}: states", found=names, problem="" if right else problem.strip())

    def no_dataset_left(self, data: Path) -> None:
        """No runner kept a copy of a dataset."""
        left = list(data.glob("runners/*/attempts/*/dataset"))
        self.check(
            "local datasets are deleted",
            found="none is left",
            problem=f"left behind: {', '.join(str(path) for path in left)}" if left else "",
        )


def numbering_problem(found: Sequence[int], wanted: range) -> str:
    """What is missing, doubled, or not wanted at all; empty where each number is there once."""
    counts = Counter(found)
    missing = [number for number in wanted if not counts[number]]
    doubled = sorted(number for number, count in counts.items() if count > 1)
    strange = sorted(number for number in counts if number not in wanted)
    return ", ".join(
        f"{len(numbers)} {word} ({', '.join(map(str, numbers[:NAMED_MAX]))}{', …' if len(numbers) > NAMED_MAX else ''})"
        for numbers, word in ((missing, "missing"), (doubled, "doubled"), (strange, "too many"))
        if numbers
    )


def same_problem(who: str, seen: Sequence[tuple[int, ...]], stored: Sequence[tuple[int, ...]]) -> list[str]:
    """What somebody missed or saw twice of what is stored, or that it came in another order."""
    if list(seen) == list(stored):
        return []
    missed, more = Counter(stored) - Counter(seen), Counter(seen) - Counter(stored)
    if not missed and not more:
        return [f"{who} saw another order"]
    return [f"{who} missed {missed.total()} and saw {more.total()} too many"]


def _key(line: LogLine) -> tuple[int, ...]:
    return (line.attempt, line.rank, line.number)


def _point_key(point: tuple[int, float]) -> tuple[int, str]:
    # As text, because NaN is not equal to itself.
    return (point[0], repr(point[1]))


def _state_name(state: job_pb2.JobState.ValueType) -> str:
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_").lower()
