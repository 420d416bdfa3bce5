"""Fuzzes targets side by side, each in a process on a leash, and watches over them: who dies or hangs is a finding."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.chassis.leash import on_leash
from tests.fuzz.case import case_from_bytes, save_case
from tests.fuzz.worker import FINDINGS_MAX, HEAD

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 30.0
"""An input at which a process stands for so long is a finding. The readers take milliseconds."""
POLL_SECONDS = 0.1
START_SECONDS_MAX = 60.0


@dataclass(kw_only=True)
class Outcome:
    """What became of one target. `problems` name what was found, with the folder of the input."""

    target: str
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Campaign:
    """One target's process. After a death it is started again, with another seed, for the time that is left."""

    def __init__(self, target: str, *, seconds: float, seed: int, folder: Path) -> None:
        self.outcome = Outcome(target=target)
        self._folder = folder / target
        self._end = time.monotonic() + seconds
        self._seed = seed
        self._starts = 0
        self._process: subprocess.Popen[str] | None = None
        self._executions = 0
        self._moved = 0.0
        self._hung = False
        self._start()

    @property
    def executions(self) -> int:
        """Of all its processes so far."""
        return int(self.outcome.figures.get("executions", 0)) + self._executions

    def running(self) -> bool:
        """Look after the process; False once there is nothing more to do."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            self._watch(self._process)
            return True
        return self._after(self._process)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        executions, case = self._current()
        if executions != self._executions:
            self._executions, self._moved = executions, time.monotonic()
        patience = HANG_SECONDS if executions else START_SECONDS_MAX
        if time.monotonic() - self._moved > patience and not self._hung:
            process.kill()
            self._hung = True
            self._found(f"it hangs for {patience} s", case)

    def _after(self, process: subprocess.Popen[str]) -> bool:
        """Take what an ended process found. Whether another one goes on."""
        lines = process.communicate()[0].splitlines()
        self._process = None
        if process.returncode == 0:
            self._add(json.loads(lines.pop()))
            self.outcome.problems += lines
            return False
        self.outcome.problems += lines
        if not self._hung:
            log = (self._folder / "log").read_text()[-2_000:]
            self._found(f"it died with {process.returncode}\n{log}", self._current()[1])
        left = time.monotonic() < self._end and len(self.outcome.problems) < FINDINGS_MAX and self._executions > 0
        self._add({"executions": float(self._executions)})
        if left:
            self._start()
        return left

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "current").unlink(missing_ok=True)
        self._executions, self._moved, self._hung = 0, time.monotonic(), False
        left = max(0.0, self._end - time.monotonic())
        words = [self.outcome.target, str(left), f"{self._seed}.{self._starts}", str(self._folder)]
        self._starts += 1
        command = on_leash([sys.executable, "-m", "tests.fuzz.worker", *words])
        with (self._folder / "log").open("a") as log:  # libraries write there what they think of an input
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)

    def _current(self) -> tuple[int, bytes]:
        """How many inputs were tried, and the one at work."""
        try:
            data = (self._folder / "current").read_bytes()
            executions, length = HEAD.unpack_from(data)
        except (OSError, struct.error):
            return 0, b""
        return executions, data[HEAD.size : HEAD.size + length]

    def _found(self, problem: str, case: bytes) -> None:
        place = save_case(case_from_bytes(case), self._folder, problem) if case else "before the first input"
        self.outcome.problems.append(f"{problem.splitlines()[0]}: {place}")

    def _add(self, figures: dict[str, float]) -> None:
        self._executions = 0
        known = self.outcome.figures
        for name, value in figures.items():
            known[name] = (
                max(known.get(name, 0), value) if name in ("peak_mb", "ways", "corpus") else known.get(name, 0) + value
            )


def run(
    targets: Sequence[str],
    *,
    seconds: float,
    seed: int,
    folder: Path,
    workers: int,
    tell: Callable[[list[Campaign], int], None] = lambda running, executions: None,
) -> list[Outcome]:
    """Fuzz so many targets at once, all of them together for about `seconds`; each gets the same share."""
    share = seconds * min(workers, len(targets)) / len(targets)
    waiting, running, outcomes, ended_executions = list(targets), list[Campaign](), list[Outcome](), 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(Campaign(waiting.pop(0), seconds=share, seed=seed, folder=folder))
            for campaign in [each for each in running if not each.running()]:
                running.remove(campaign)
                outcomes.append(campaign.outcome)
                ended_executions += campaign.executions
            tell(running, ended_executions + sum(each.executions for each in running))
            time.sleep(POLL_SECONDS)
    finally:
        for campaign in running:
            campaign.kill()
    return outcomes
