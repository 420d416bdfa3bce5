"""A whole training in this process, with the processor's clock beside each step."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from runner.report import Outcome, Points, Report, ReportWriter, read_reports
from runner.train import run
from runner.trainer.commands import Commands
from runner.trainer.config import TrainerConfig
from runner.trainer.reporter import Reporter
from services.scheduler.specification import complete, violations


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was reported, and the processor's seconds when each step was."""

    reports: Sequence[Report]
    clock: Mapping[int, float]
    """Of all threads."""
    own: Mapping[int, float]
    """The seconds that each step took the thread that trains."""
    bare: Mapping[int, float]
    """Those of the bare step after it, where there are any."""

    def all(self, series: str) -> Sequence[float]:
        return [each.values[series] for each in self.reports if isinstance(each, Points) and series in each.values]

    def last(self, series: str) -> float:
        return self.all(series)[-1]

    def seconds(self, after: int) -> float:
        """Of the processor, from a step (0: the start of the loop) to the last one."""
        return max(self.clock.values()) - self.clock[max(after, 1)]

    def to_bare(self, after: int) -> float:
        """How fast the steps were beside the bare ones that were taken between them: 1 is as fast."""
        steps = [step for step in self.bare if step > after]
        own = sum(self.own[step] for step in steps)
        return sum(self.bare[step] for step in steps) / own

    def waited(self, after: int) -> float:
        """The share of the steps' time in which the batch was not there yet."""
        steps = [
            each.values
            for each in self.reports
            if isinstance(each, Points) and each.step > after and "system/step_seconds" in each.values
        ]
        return sum(v["system/data_wait_seconds"] for v in steps) / sum(v["system/step_seconds"] for v in steps)


class _Clocked(Reporter):
    """Looks at the processor's clock whenever a step is told, and takes a bare step then."""

    def __init__(self, writer: ReportWriter, bare_step: Callable[[], None] | None) -> None:
        super().__init__(writer)
        self._bare_step = bare_step
        self._began = time.thread_time()
        self.clock: dict[int, float] = {}
        self.own: dict[int, float] = {}
        self.bare: dict[int, float] = {}

    def points(self, step: int, values: dict[str, float], context: Mapping[str, str] | None = None) -> None:
        super().points(step, values, context)
        if "train/learning_rate" not in values:
            return
        self.clock[step] = time.process_time()
        now = time.thread_time()
        self.own[step] = now - self._began
        if self._bare_step is not None:
            self._bare_step()
            self._began = time.thread_time()
            self.bare[step] = self._began - now
        else:
            self._began = now


def specification(
    *,
    heads: Sequence[Mapping[str, Any]],
    backbone: str,
    size: tuple[int, int],
    trainer: Mapping[str, Any],
    augmentations: Mapping[str, float] | None = None,
) -> JobSpec:
    """A complete one. `size`: height and width."""
    given = {
        "model": {"backbone": {"name": backbone}, "heads": list(heads)},
        "data": {"height": size[0], "width": size[1], "augmentations": augmentations or {}},
        "trainer": dict(trainer),
    }
    spec = complete(json_format.ParseDict(given, JobSpec()))
    assert not violations(spec), violations(spec)
    return spec


def train(
    spec: JobSpec,
    training: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    folder: Path,
    *,
    bare_step: Callable[[], None] | None = None,
) -> Run:
    """Train to the end on the CPU. `bare_step` is taken, and timed, after each step: both meet the same machine."""
    attempt = Path(tempfile.mkdtemp(dir=folder))
    content = {
        "job": "projects/bench/jobs/one",
        "job_uid": "one",
        "attempt": 1,
        "epoch": 1,
        "spec": json_format.MessageToDict(spec),
        "training": training,
        "validation": validation,
        "checkpoint_folder": str(attempt / "checkpoints"),
        "device": "cpu",
    }
    (attempt / "attempt.json").write_text(json.dumps(content))
    reading, writing = os.pipe()
    reports: list[Report] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            reports.extend(read_reports(pipe))

    listener = threading.Thread(target=read)
    listener.start()
    reporter = _Clocked(ReportWriter(writing), bare_step)
    try:
        ended = run(TrainerConfig(attempt_file=attempt / "attempt.json", report_fd=writing), reporter, Commands())
    finally:
        os.close(writing)
        listener.join()
    assert ended.outcome is Outcome.COMPLETED, ended.message
    return Run(reports=reports, clock=reporter.clock, own=reporter.own, bare=reporter.bare)
