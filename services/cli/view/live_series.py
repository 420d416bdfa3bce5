"""The points of a job as a live stream brings them: collected, corrected where an attempt began again, drawn.

A row of an attempt counts if its step lies below the first step of every later attempt that has logged. System metrics
go by time: they are exempt, and an attempt that has sent nothing else hides nothing.
"""

from __future__ import annotations

import math

from sihlai.metrics.v1.metrics_service_pb2 import LivePoints, WatchMetricsResponse
from sihlai.metrics.v1.series_pb2 import SeriesDefinition
from sihlai.scheduler.v1 import job_pb2

from services.cli.view.curve import Curve
from services.cli.view.table import number, series_label

SYSTEM_PREFIX = "system/"


class LiveSeries:
    """What WatchMetrics has sent so far."""

    def __init__(self) -> None:
        self._definitions: dict[int, SeriesDefinition] = {}
        self._ids: dict[str, int] = {}
        """By label."""
        self._points: dict[int, list[tuple[int, int, float]]] = {}
        """By series: attempt, step, value, as they came."""
        self._from_steps: dict[int, int] = {}
        self.caught_up = False
        self.state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_UNSPECIFIED
        """The job's final state, once the stream has ended."""
        self.complete = False

    def add(self, answer: WatchMetricsResponse) -> None:
        """Take an answer in."""
        kind = answer.WhichOneof("message")
        if kind == "points":
            self._add_points(answer.points)
        elif kind == "caught_up":
            self.caught_up = True
        elif kind == "ended":
            self.state = answer.ended.state
            self.complete = answer.ended.points_complete

    def labels(self) -> list[str]:
        """The series, by label."""
        return sorted(self._ids)

    def points(self, label: str) -> list[tuple[int, float]]:
        """The points of a series that count, by step; doubled ones twice."""
        if label not in self._ids:
            return []
        series_id = self._ids[label]
        definition = self._definitions[series_id]
        counted = [(s, v) for a, s, v in self._points.get(series_id, []) if self._counts(definition, a, s)]
        return sorted(counted, key=lambda pair: pair[0])

    def curve(self, label: str) -> Curve:
        """What can be drawn of a series: NaN and infinities cannot."""
        points = [(step, value) for step, value in self.points(label) if math.isfinite(value)]
        return Curve(label=label, steps=[float(step) for step, _ in points], values=[value for _, value in points])

    def last(self, label: str) -> tuple[int, float] | None:
        """The point of a series' highest step."""
        points = self._points.get(self._ids.get(label, 0), [])
        if not points:
            return None
        # Of the newest attempt: its steps count, whatever an earlier one reached.
        _, step, value = max(points, key=lambda point: (point[0], point[1]))
        return step, value

    def line(self) -> str:
        """The newest values of all series in a line."""
        newest = {label: self.last(label) for label in self.labels()}
        values = [f"{label} {number(point[1])}" for label, point in newest.items() if point]
        step = max((point[0] for point in newest.values() if point), default=0)
        return f"step {step}: {', '.join(values)}" if values else "no points yet"

    def _add_points(self, points: LivePoints) -> None:
        for definition in points.new_series:
            self._definitions[definition.series_id] = definition
            self._ids[series_label(definition)] = definition.series_id
        if any(not self._goes_by_time(columns.series_id) for columns in points.columns):
            self._from_steps[points.attempt] = points.from_step
        for columns in points.columns:
            rows = self._points.setdefault(columns.series_id, [])
            rows += [(points.attempt, s, v) for s, v in zip(columns.steps, columns.values, strict=True)]

    def _goes_by_time(self, series_id: int) -> bool:
        return self._definitions[series_id].name.startswith(SYSTEM_PREFIX)

    def _counts(self, definition: SeriesDefinition, attempt: int, step: int) -> bool:
        if definition.name.startswith(SYSTEM_PREFIX):
            return True
        return all(step < first for later, first in self._from_steps.items() if later > attempt)
