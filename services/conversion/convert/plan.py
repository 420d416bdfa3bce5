"""Paths through the graph of conversions. Pure: edges in, a path or the reason why there is none out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, Violation
from services.conversion.convert import EDGES
from services.conversion.convert.edge import Edge, StepOptions
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps from one task to another, none where they are the same, each with its options or None."""

    start: Task
    end: Task
    steps: tuple[Edge, ...]
    options: tuple[StepOptions | None, ...] = ()


def plan(
    start: Task,
    end: Task,
    *,
    via: Sequence[Task] = (),
    options: Sequence[StepOptions] = (),
    edges: Sequence[Edge] = EDGES,
) -> Plan:
    """The path with the fewest steps, through `via` in its order.

    Raises FailedPrecondition (TASK_NOT_REACHABLE) with what can be reached, InvalidArgument where options are given
    for a step that the path does not take.
    """
    steps: list[Edge] = []
    here = start
    for stop in (*via, end):
        path = _shortest(here, stop, edges)
        if path is None:
            raise _not_reachable(start, here, stop, end, edges)
        steps += path
        here = stop
    _check_options(steps, options)
    chosen = tuple(
        next((each for each in options if step.options is not None and isinstance(each, step.options)), None)
        for step in steps
    )
    return Plan(start=start, end=end, steps=tuple(steps), options=chosen)


def reachable(start: Task, edges: Sequence[Edge] = EDGES) -> tuple[Task, ...]:
    """Every task that `start` can be converted into, itself first, then the nearest."""
    return tuple(_paths(start, edges))


def edges_from(start: Task, edges: Iterable[Edge] = EDGES) -> tuple[Edge, ...]:
    """The direct conversions from a task."""
    return tuple(edge for edge in edges if edge.start is start)


def _paths(start: Task, edges: Sequence[Edge]) -> dict[Task, tuple[Edge, ...]]:
    """Breadth first: the shortest path to each task, in the order of their lengths."""
    paths: dict[Task, tuple[Edge, ...]] = {start: ()}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for edge in edges_from(here, edges):
            if edge.end not in paths:
                paths[edge.end] = (*paths[here], edge)
                waiting.append(edge.end)
    return paths


def _shortest(start: Task, end: Task, edges: Sequence[Edge]) -> tuple[Edge, ...] | None:
    return _paths(start, edges).get(end)


def _not_reachable(start: Task, here: Task, stop: Task, end: Task, edges: Sequence[Edge]) -> FailedPrecondition:
    names = ", ".join(reachable(here, edges))
    way = "" if here is start and stop is end else f" on the way from {start} to {end}"
    message = f"no conversion leads from {here} to {stop}{way}; from {here} these can be reached: {names}"
    metadata = {"from": str(here), "to": str(stop), "reachable": names}
    return FailedPrecondition(Reason.TASK_NOT_REACHABLE, message, metadata)


def _check_options(steps: Sequence[Edge], options: Sequence[StepOptions]) -> None:
    taken = {step.options for step in steps if step.options is not None}
    path = " → ".join([*(str(step.start) for step in steps), str(steps[-1].end)]) if steps else "no step at all"
    violations = [
        Violation(
            field=f"options.steps[{index}]",
            description=f"is for {_step_name(type(each))}, but the path takes {path}",
        )
        for index, each in enumerate(options)
        if type(each) not in taken
    ]
    if violations:
        raise InvalidArgument(violations)


def _step_name(options: type[StepOptions]) -> str:
    return next(edge.name for edge in EDGES if edge.options is options)
