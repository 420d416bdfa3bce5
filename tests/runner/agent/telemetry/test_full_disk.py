"""A disk that takes no more, really: a small file system of its own, filled to the last byte."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.scheduler.v1 import job_pb2

from runner.agent.ledger import Ledger
from runner.agent.recovery import LEDGER, SPOOLS, recover
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk
from tests.chaos.disk import Disk, disk, why_no_disk
from tests.runner.agent.recording import LIMITS, Recording, limits, records_of
from tests.runner.agent.system import System, end, left_behind, until

WRITER = """
import asyncio, pathlib, sys
from tests.runner.agent.recording import Recording, limits
from tests.chaos.disk import Disk

async def write(folder):
    recording = Recording(folder / "spools" / "0197-3", limits(bytes_max=10**8, segment_bytes_max=2**20))
    for number in range(400):
        if number == 200:
            await recording.recorder.written(20)
            Disk(folder).fill()
        recording.recorder.line(f"row {number} " + "x" * 500, source="trainer")
        recording.recorder.flush()
    await recording.recorder.written(20)
    print("written", flush=True)
    await asyncio.sleep(600)

asyncio.run(write(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    if why := why_no_disk():
        pytest.skip(why)
    with disk(tmp_path / "disk", 2**20) as made:
        yield made


def lines_of(spool: Spool) -> list[str]:
    return [line for record in records_of(spool.lines) for line in ingest.LineBatch.FromString(record.body).lines]


def test_on_a_full_disk_the_training_goes_on_and_its_last_words_are_kept(small_disk: Disk) -> None:
    recording = Recording(small_disk.folder / "s", limits(bytes_max=10**8, segment_bytes_max=2**20))
    recorder = recording.recorder

    async def write(first: int, last: int) -> None:
        for number in range(first, last):
            recorder.line(f"row {number} " + "x" * 500, source="trainer")
            recorder.points({"train/loss": 1.0}, step=number)
            recorder.flush()
        await recorder.written(20)

    async def crash() -> None:
        await write(0, 100)
        small_disk.fill()
        await write(100, 1_000)
        recorder.line("Traceback (most recent call last):", level=log_line_pb2.LOG_LEVEL_ERROR, source="trainer")
        recorder.line("RuntimeError: the cause", level=log_line_pb2.LOG_LEVEL_ERROR, source="trainer")
        await write(1_000, 1_200)
        recorder.line("the attempt ended: failed", level=log_line_pb2.LOG_LEVEL_ERROR)
        recorder.close()
        await recorder.written(20)

    asyncio.run(crash())
    assert recording.spool.closed
    found = Spool.found(small_disk.folder / "s", SpoolDisk(LIMITS))
    texts = lines_of(found)
    assert texts[-1] == "the attempt ended: failed"
    assert texts[-2].startswith("row 1199 ")
    cause = texts.index("RuntimeError: the cause")
    assert texts[cause - 1] == "Traceback (most recent call last):"
    kept = [int(text.split()[1]) for text in texts if text.startswith("row ")]
    assert kept == sorted(set(kept))
    assert kept[:100] == list(range(100))
    assert found.points.rows_dropped == 1_200 - found.points.rows > 0
    (told,) = [text for text in texts if "lines were dropped before this line" in text]
    assert int(told.split()[0]) == found.lines.rows_dropped == 1_200 - len(kept)
    assert told.endswith("because lines cannot be written: the disk is full")
    assert f"{found.points.rows_dropped} points were dropped before this line" in "".join(texts)


def test_what_was_dropped_on_a_full_disk_is_known_to_the_agent_after_one_that_was_killed(small_disk: Disk) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(small_disk.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert "written\n" in iter(writer.stdout.readline, "")
    finally:
        writer.kill()
        writer.communicate()
    ledger = Ledger(small_disk.folder.parent / "ledger")

    async def take_up() -> Spool:
        (spool,) = recover(small_disk.folder, ledger, SpoolDisk(LIMITS), lambda: 1).spools
        return spool

    spool = asyncio.run(take_up())
    texts = lines_of(spool)
    assert spool.closed
    assert "the attempt ended with it" in texts[-1]  # in the space that the killed one had set aside
    kept = [int(text.split()[1]) for text in texts if text.startswith("row ")]
    assert kept[:200] == list(range(200))
    assert spool.lines.rows_dropped == 400 - len(kept) > 0
    spool.delete()


def test_a_full_disk_never_ends_a_healthy_job(system: System, tmp_path: Path) -> None:
    if why := why_no_disk():
        pytest.skip(why)
    work = tmp_path / "work"
    with disk(work / SPOOLS, 2**20) as spools, disk(work / LEDGER, 2**16) as ledger:
        ledger.fill()
        agent = system.agent(work, "--spool-disk-free-bytes-min", "0", "--spool-last-lines-bytes", "2048")
        try:
            name = system.submit(system.project(), iterations=400, step_ms="5")
            system.wait_step(name, 20)
            spools.fill()
            job = system.wait_ended(name)
            assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_COMPLETED, 1)
            until(lambda: left_behind(work) == ["spools/filler", "ledger/filler"])
            lines = [line.line for line in system.lines(name, complete=False)]
            steps = [int(text.split()[1]) for text in lines if text.startswith("step ")]
            assert steps == sorted(set(steps))
            assert steps[:20] == list(range(1, 21))
            assert steps[-1] == 400
            assert lines[-1].startswith("the attempt ended: completed")
            # Each time that metrics has stored something there is a little room again.
            told = [int(text.split()[0]) for text in lines if "lines were dropped before this line" in text]
            assert sum(told) >= 400 - len(steps) > 0
            log = work.parent / "work.log"
            for event in ("group_not_on_disk", "end_not_on_disk"):
                until(lambda event=event: event in log.read_text())  # type: ignore[misc]  # a loop's lambda
        finally:
            end(agent)
