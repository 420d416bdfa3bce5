"""A runner whose spools are torn, rotten or gone in part when its next process opens them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.audit import Stored, lines_of, points_of, sequence_findings
from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.runner import Runner, rows_of
from tests.chaos.stand import SETTLE_SECONDS, Stand, stand
from tests.metrics.job_book import Job, submit

CLIENTS = 1
JOBS = 2
GATHER_SECONDS = (0.3, 1.0)
SEGMENTS = "*.segment"


@contextmanager
def open_stand(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=False) as made:
        yield made


def tear(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def blot(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    first = chance.choice((0, chance.randrange(len(data))))
    last = min(len(data), first + chance.randrange(1, 4_096))
    data[first:last] = chance.choice((bytes(last - first), chance.randbytes(last - first)))
    path.write_bytes(data)


def lengthen(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 2_000)))


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "torn": tear,
    "flipped": flip,
    "blotted": blot,
    "lengthened": lengthen,
    "removed": remove,
}


def play(stand: Stand, folder: Path) -> Played:
    """Spools grow while the service is away; then the runner is killed, its disk rots, and all comes back."""
    jobs = stand.write(clients=CLIENTS)
    runner_jobs = [submit(stand.scheduler.book) for _ in range(JOBS)]
    runner = Runner(folder / "runner", stand.servers, runner_jobs, stand.random.randrange(2**32))
    runner.start()
    runner.wait_writing()
    stand.server.kill()
    stand.wait(stand.random.uniform(*GATHER_SECONDS))
    runner.kill()
    figures: dict[str, float] = {}
    hurt = set()
    for job in runner_jobs:
        for kind in stand.random.sample(("points", "lines"), stand.random.choice((1, 2))):
            (spool,) = runner.spool_folder.glob(f"*{job.uid}*")
            hurt.add((job.uid, kind))
            for _ in range(stand.random.choice((1, 1, 3))):
                name = stand.random.choice(list(DAMAGES))
                _hurt(spool / kind, stand.random, DAMAGES[name])
                figures[name] = figures.get(name, 0) + 1
    stand.server.start()
    runner.start()
    runner.wait_writing()
    stand.wait(0.2)
    runner.finish(SETTLE_SECONDS)
    findings, stored = settle(stand, [*jobs, *runner_jobs])
    findings += runner.findings
    for job in runner_jobs:
        points, (lines, lines_complete) = points_of(stand.server, job), lines_of(stand.server, job)
        for kind, rows, complete in (("points", *points), ("lines", rows_of(lines), lines_complete)):
            sound = (job.uid, kind) not in hurt
            found, lost = _findings(runner, job, kind, stored, rows, complete, sound=sound)
            findings += found
            figures["rows lost"] = figures.get("rows lost", 0) + lost
    return Played(findings=findings, figures={**wire_figures(stand), **figures})


def _hurt(folder: Path, chance: random.Random, damage: Callable[[Path, random.Random], None]) -> None:
    """The newest file or any other one; the counts beside the segments rot too."""
    files = sorted(folder.glob(SEGMENTS))
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".segment"]
    picked = files[-1:] if chance.random() < 0.5 else files
    path = chance.choice(others) if others and chance.random() < 0.2 else chance.choice(picked or others)
    if path.stat().st_size:
        damage(path, chance)


def _findings(
    runner: Runner,
    job: Job,
    kind: str,
    stored: Mapping[str, Stored],
    rows: list[int],
    complete: bool,
    *,
    sound: bool,
) -> tuple[list[str], int]:
    """What came after the damage is whole; what the damage took is told of, and no answer calls it complete."""
    name = f"{job.uid}/1/0/{kind}"
    writer = stored.get(name) or Stored(messages=(), gaps=(), finish=None)
    findings = sequence_findings(name, writer)
    findings += runner.row_findings(job, kind, rows, first_run=0 if sound else runner.run)
    taken = sum(entry[kind] for entry in runner.taken(job).values())
    lost = max(0, taken - len(rows))
    told = bool(writer.gaps) or (writer.finish is not None and writer.finish[1] > 0)
    if lost and not told:
        findings.append(f"{name}: {lost} rows of {taken} are missing, and neither a gap nor a count tells of them")
    if complete != (not told):
        findings.append(f"{name}: gaps {writer.gaps}, end {writer.finish}, {lost} rows lost: complete is {complete}")
    return findings, lost


KIND = Kind(
    name="damage",
    says="spools of a killed runner that are torn, flipped, blotted, lengthened or removed in part",
    share=0.2,
    stand=open_stand,
    play=play,
)
