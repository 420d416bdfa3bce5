"""A runner process that can be killed at any moment, and what its journal says its spools have taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.chassis.leash import on_leash
from tests.chaos.audit import Stored, lines_of, points_of, sequence_findings
from tests.chaos.runner_process import ROWS_A_RUN_MAX
from tests.metrics.client import Metrics, until
from tests.metrics.job_book import Job


@dataclass(eq=False)
class Runner:
    """One work folder, in which one process after the other writes and ships the same attempts."""

    folder: Path
    servers: Sequence[Metrics]
    jobs: Sequence[Job]
    seed: int
    spools: Path | None = None
    """Where its spools lie; in the folder where nothing is said."""
    run: int = -1
    process: subprocess.Popen[bytes] | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def spool_folder(self) -> Path:
        return self.spools or self.folder / "spools"

    def start(self) -> None:
        """A process that goes on where the one before was."""
        self.run += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spool_folder.mkdir(parents=True, exist_ok=True)
        tokens = {job.uid: self.servers[0].token(job.uid, seconds=3_600) for job in self.jobs}
        attempts = [{"job": j.name, "job_uid": j.uid, "attempt": 1, "token": tokens[j.uid]} for j in self.jobs]
        plan = {
            "folder": str(self.spool_folder),
            "journal": str(self.folder / "journal"),
            "stop_file": str(self.folder / "stop"),
            "token": self.servers[0].runner_access,
            "metrics_address": "ipv4:" + ",".join(server.address for server in self.servers),
            "attempts": attempts,
            "run": self.run,
            "seed": self.seed,
        }
        path = self.folder / f"plan-{self.run}.json"
        path.write_text(json.dumps(plan))
        with (self.folder / "runner.log").open("ab") as log:
            command = on_leash([sys.executable, "-m", "tests.chaos.runner_process", str(path)])
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_writing(self) -> None:
        """Wait until every spool has taken something of this run."""
        until(lambda: self._ended or all(self.run in self.taken(job) for job in self.jobs), "the runner to write", 60)

    @property
    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL; it must not have ended by itself."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.findings.append(
                f"the runner ended by itself with {self.process.returncode}: {self.log_text()[-2000:]}"
            )
        self.process.kill()
        self.process.wait()

    def finish(self, seconds: float) -> None:
        """Let it write no more, and wait until all its spools are stored."""
        (self.folder / "stop").touch()
        assert self.process is not None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.findings.append(f"the spools are not stored {seconds:.0f} s after the last fault")
            self.process.kill()
            self.process.wait()
        else:
            if status != 0:
                self.findings.append(f"the runner ended with {status}: {self.log_text()[-2000:]}")

    def log_text(self) -> str:
        return (self.folder / "runner.log").read_text()

    def taken(self, job: Job) -> dict[int, dict[str, int]]:
        """By run, how many points and lines the job's spool took from it, at least."""
        found: dict[int, dict[str, int]] = {}
        journal = self.folder / "journal"
        for line in journal.read_text().splitlines() if journal.exists() else ():
            entry = json.loads(line)
            if entry["job_uid"] == job.uid and "written" not in entry:
                found[entry["run"]] = entry
        return found

    def written(self, job: Job) -> int:
        """How many rows of each kind its one process wrote to the job in all, whatever became of them."""
        for line in (self.folder / "journal").read_text().splitlines():
            entry = json.loads(line)
            if entry["job_uid"] == job.uid and "written" in entry:
                return int(entry["written"])
        return 0

    def audit(self, stored: dict[str, Stored], server: Metrics) -> list[str]:
        """Findings of a runner whose disk was sound: what its spools took is stored, once, in order, and complete."""
        findings = list(self.findings)
        for job in self.jobs:
            for kind in ("points", "lines"):
                name = f"{job.uid}/1/0/{kind}"
                found = stored.get(name) or Stored(messages=(), gaps=(), finish=None)
                findings += sequence_findings(name, found)
                if found.gaps or (found.finish is not None and found.finish[1]):
                    findings.append(f"{name}: gaps {found.gaps} and an end of {found.finish}, but its disk was sound")
            points, points_complete = points_of(server, job)
            lines, lines_complete = lines_of(server, job)
            findings += self.row_findings(job, "points", points)
            findings += self.row_findings(job, "lines", rows_of(lines))
            if not (points_complete and lines_complete):
                findings.append(f"{job.uid}: complete are points {points_complete}, lines {lines_complete}")
        return findings

    def row_findings(self, job: Job, kind: str, rows: Sequence[int], *, first_run: int = 0) -> list[str]:
        """Of each run the first rows, without a hole, and not fewer than the spool took; of earlier runs the order."""
        findings = []
        if list(rows) != sorted(set(rows)):
            findings.append(f"{job.uid} {kind}: rows are not in order, or twice")
        by_run: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_run[row // ROWS_A_RUN_MAX].append(row % ROWS_A_RUN_MAX)
        for run, taken in self.taken(job).items():
            found = by_run[run]
            if run >= first_run and (len(found) < taken[kind] or found != list(range(len(found)))):
                findings.append(
                    f"{job.uid} {kind}: the spool took {taken[kind]} rows of run {run}, but {len(found)} of the first "
                    f"{max(found, default=-1) + 1} are stored"
                )
        return findings


def rows_of(lines: Sequence[str]) -> list[int]:
    """The numbers of the lines that the runner process numbers; the agent's own lines have none."""
    return [int(line.removeprefix("row ")) for line in lines if line.startswith("row ")]
