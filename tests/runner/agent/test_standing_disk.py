"""The agent's own disk stands still, or answers slowly: its event loop never waits for it, and nor does its end."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.disk import Disk
from runner.agent.ends import Ends
from runner.agent.ledger import Ledger, key_of
from tests.runner.agent.system import System, end, until

WATCHED = """
import os, sys, threading, traceback

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "os.truncate"}

def look(event, arguments):
    if event not in EVENTS or not getattr(sys, "argv", [""])[0].endswith("agent.py"):
        return
    of_loop = threading.get_ident() == threading.main_thread().ident
    if of_loop and str(arguments[0]).startswith(tuple(FOLDERS)) and os.path.exists(ARMED):
        with open(REPORT, "a") as report:
            report.write(f"{event} {arguments[0]}\\n{''.join(traceback.format_stack()[-4:-1])}")

sys.addaudithook(look)
"""
STANDS = """
import os, sys, time

def stand(descriptor):
    time.sleep(3600)

if sys.orig_argv[1].endswith("agent.py"):
    os.fsync = stand
"""


@pytest.fixture
def customize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python runs this file at its start, in the agent too."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "sitecustomize.py"


def test_no_file_is_opened_made_or_removed_in_the_agents_event_loop(
    system: System, tmp_path: Path, customize: Path
) -> None:
    work, armed, report = tmp_path / "work", tmp_path / "armed", tmp_path / "report"
    folders = [str(work), *(str(system.folder / name) for name in ("checkpoints", "converted", "datasets"))]
    customize.write_text(f"FOLDERS, ARMED, REPORT = {folders}, {str(armed)!r}, {str(report)!r}\n{WATCHED}")
    agent = system.agent(work)
    try:
        until(lambda: "runner_looked_at" in (tmp_path / "work.log").read_text())
        armed.touch()
        name = system.submit(system.project(), iterations=20, step_ms="10", does="validate")
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_COMPLETED
        assert system.wait_ended(system.resume(name, iterations=30)).state == job_pb2.JOB_STATE_COMPLETED
    finally:
        assert end(agent) == 0
    assert not report.exists(), report.read_text()


def test_an_agent_whose_disk_stands_still_ends_when_it_is_told_to(
    system: System, tmp_path: Path, customize: Path
) -> None:
    customize.write_text(STANDS)
    agent = system.agent(tmp_path / "work", "--check-seconds-max", "0.2", runner_id="standing")
    try:
        until(lambda: "stands still" in (tmp_path / "work.log").read_text())
    finally:
        assert end(agent) == 0


def test_an_end_that_waits_for_the_disk_is_reported_and_forgotten_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: go.wait(20) and fsync(descriptor))
    closed = wire.ClosedAttempt(job_uid="a", epoch=1, outcome=job_pb2.ATTEMPT_OUTCOME_STOPPED)
    ledger = Ledger(tmp_path)

    async def test() -> None:
        disk = Disk(still_seconds_max=20, again_seconds_max=0.1)
        ends = Ends(ledger, disk=disk, now_unix_us=lambda: 1, disk_seconds_max=0.1)
        await asyncio.wait_for(ends.add(closed), 10)
        assert ends.reports == [closed]
        ends.acknowledge(key_of(closed))
        assert not ends.reports
        with pytest.raises(TimeoutError):
            await ends.written(0.1)
        go.set()
        await ends.written(20)

    asyncio.run(test())
    assert ledger.closed() == []
