"""Disks that are full for a while: the engine's, and the one of a runner's spools."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.audit import Stored, lines_of, points_of, sequence_findings
from tests.chaos.disk import Disk, disk, why_no_disk
from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.runner import Runner, rows_of
from tests.chaos.stand import SETTLE_SECONDS, Stand, stand
from tests.metrics.job_book import Job, submit

CLIENTS = 3
ENGINE_BYTES = 384 * 2**20
SPOOL_BYTES = 8 * 2**20
FULL_SECONDS = (0.3, 1.2)
PAUSE_SECONDS = (0.1, 0.4)
TIMES = 3
SPOOLS = "spools"
FLAGS = (
    # So small that merges run, and meet a disk that somebody else fills at once.
    *("--disk-free-bytes-min", str(8 * 2**20)),
    *("--merge-free-bytes-min", str(16 * 2**20)),
    *("--disk-look-seconds", "0.2"),
)


@contextmanager
def open_stand(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with (
        disk(folder / "metrics-0" / "data", ENGINE_BYTES),
        disk(folder / SPOOLS, SPOOL_BYTES),
        stand(folder, randomness, front=False, flags=FLAGS) as made,
    ):
        yield made


def play(stand: Stand, folder: Path) -> Played:
    """Either disk, or both, again and again."""
    engine, spools = Disk(stand.server.folder / "data"), Disk(stand.folder / SPOOLS)
    jobs = stand.write(clients=1 if stand.brief else CLIENTS)
    runner_jobs = [submit(stand.scheduler.book)]
    place = spools.folder / folder.name
    runner = Runner(folder / "runner", stand.servers, runner_jobs, stand.random.randrange(2**32), spools=place)
    runner.start()
    runner.wait_writing()
    figures = {"engine full": 0.0, "spools full": 0.0}
    for _ in range(TIMES - stand.brief):
        full = stand.random.choice(([engine], [spools], [engine, spools]))
        for each in full:
            each.fill()
            figures["engine full" if each is engine else "spools full"] += 1
        stand.wait(stand.random.uniform(*FULL_SECONDS))
        for each in full:
            each.empty()
        stand.wait(stand.random.uniform(*PAUSE_SECONDS))
    runner.finish(SETTLE_SECONDS)
    findings, stored = settle(stand, [*jobs, *runner_jobs])
    findings += runner.findings
    for job in runner_jobs:
        written = runner.written(job)
        points, lines = points_of(stand.server, job), lines_of(stand.server, job)
        findings += _dropped_findings(job, "points", stored, points, written)
        findings += _dropped_findings(job, "lines", stored, (rows_of(lines[0]), lines[1]), written)
        figures["rows of runners"] = figures.get("rows of runners", 0) + 2 * written
    dropped = [each.finish[1] for each in stored.values() if each.finish is not None]
    return Played(findings=findings, figures={**wire_figures(stand), **figures, "rows dropped": sum(dropped)})


def _dropped_findings(
    job: Job, kind: str, stored: Mapping[str, Stored], found: tuple[list[int], bool], written: int
) -> list[str]:
    """What is missing was counted; what is there is in order and there once."""
    name = f"{job.uid}/1/0/{kind}"
    writer = stored.get(name)
    if writer is None or writer.finish is None:
        return [f"{name}: no end is recorded"]
    rows, complete = found
    dropped, missing = writer.finish[1], written - len(rows)
    findings = sequence_findings(name, writer)
    if rows != sorted(set(rows)):
        findings.append(f"{name}: rows are not in order, or twice")
    # Of lines the agent's own may be dropped too.
    if missing > dropped or (kind == "points" and missing < dropped):
        findings.append(f"{name}: {missing} of {written} rows are missing, but {dropped} are counted as dropped")
    if complete != (dropped == 0):
        findings.append(f"{name}: {dropped} rows were dropped, but complete is {complete}")
    return findings


KIND = Kind(
    name="full-disk",
    says="a full disk under the embedded engine and under a runner's spools",
    share=0.2,
    stand=open_stand,
    play=play,
    missing=why_no_disk,
)
