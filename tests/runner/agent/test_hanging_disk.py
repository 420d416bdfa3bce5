"""An agent whose disk hangs: its heartbeats go on, its attempts end and are told of, and so does it, all in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.scheduler.v1 import job_pb2

from tests.runner.agent.hanging_disk import HangingDisk, frozen_disk
from tests.runner.agent.system import System, end, left_behind, until

LEASE_SECONDS = 5.0
SOON = ("--disk-still-seconds-max", "1", "--disk-again-seconds-max", "0.5")
SOON += ("--check-again-seconds-first", "0.2", "--check-again-seconds-max", "0.5")
SOON += ("--ledger-seconds-max", "1", "--spool-open-seconds-max", "1", "--hurried-end-seconds-max", "5")
HANDED_BACK = job_pb2.ATTEMPT_OUTCOME_HANDED_BACK
ENDS_IN_SECONDS = 25.0


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def disk(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingDisk]:
    """The agent's, under its work folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    disk = HangingDisk(work, folder / "sitecustomize.py")
    yield disk
    disk.go_on()
    assert not disk.loop_waited, disk.loop_waited


def test_a_job_trains_on_while_the_disk_of_its_runner_hangs(system: System, work: Path, disk: HangingDisk) -> None:
    agent = system.agent(work, *SOON)
    try:
        name = system.submit(system.project(), iterations=700, step_ms="10", does="validate")
        system.wait_step(name, 20)
        disk.hang()
        time.sleep(LEASE_SECONDS + 1)
        system.wait_step(name, 300)
        disk.go_on()
        job = system.wait_ended(name)
        assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_COMPLETED, 1)
        until(lambda: not left_behind(work))
    finally:
        disk.go_on()
        assert end(agent) == 0


@pytest.mark.parametrize("does", ["validate", "deaf"])
def test_an_agent_whose_disk_hangs_hands_its_job_back_and_ends_and_the_next_one_sweeps(
    system: System, work: Path, disk: HangingDisk, does: str
) -> None:
    first = system.agent(work, *SOON, "--drain-grace-seconds", "1", "--drain-spool-seconds", "1")
    name = system.submit(system.project(), iterations=400, step_ms="10", does=does)
    system.wait_step(name, 20)
    disk.hang()
    first.send_signal(signal.SIGTERM)
    assert first.wait(ENDS_IN_SECONDS) == 0
    (attempt,) = system.job(name).attempts
    assert attempt.outcome == HANDED_BACK
    if does == "validate":
        assert "could not be kept here either: the disk stands still" in attempt.message
    assert not system.trainers()
    (left,) = work.glob("attempts/*/dataset")
    disk.go_on()
    second = system.agent(work, *SOON)
    try:
        until(lambda: "runner_looked_at" in (work.parent / "work.log").read_text().split("agent_ended")[-1])
        assert not left.exists()
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_COMPLETED
        until(lambda: not left_behind(work))
    finally:
        end(second)


def test_a_second_signal_ends_an_agent_whose_disk_hangs_and_its_end_is_told(
    system: System, work: Path, disk: HangingDisk
) -> None:
    agent = system.agent(work)
    name = system.submit(system.project(), iterations=100_000, step_ms="10", does="validate")
    system.wait_step(name, 20)
    disk.hang()
    agent.send_signal(signal.SIGTERM)
    system.wait_for(name, lambda job: job.progress.phase == "uploading")
    agent.send_signal(signal.SIGINT)
    assert agent.wait(ENDS_IN_SECONDS) == 0
    (attempt,) = system.job(name).attempts
    assert attempt.outcome == HANDED_BACK
    assert not system.trainers()
    system.stop_job(name)


def test_what_hangs_while_the_dataset_is_deleted_keeps_nobody_from_hearing_of_the_end(
    system: System, work: Path, disk: HangingDisk
) -> None:
    agent = system.agent(work, *SOON)
    try:
        name = system.submit(system.project(), iterations=200, step_ms="10")
        system.wait_step(name, 3)
        disk.hang("os.rmdir", "os.remove")
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_COMPLETED
        assert list(work.glob("attempts/*"))
        disk.go_on()
        until(lambda: not left_behind(work))
    finally:
        disk.go_on()
        assert end(agent) == 0


def test_a_job_whose_runner_cannot_begin_it_is_handed_back_and_the_runner_is_heard_meanwhile(
    system: System, work: Path, disk: HangingDisk
) -> None:
    agent = system.agent(work, *SOON)
    try:
        until(lambda: "runner_looked_at" in (work.parent / "work.log").read_text())
        disk.hang()
        name = system.submit(system.project(), iterations=20)
        job = system.wait_for(name, lambda job: any(attempt.outcome for attempt in job.attempts))
        assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
        disk.go_on()
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_COMPLETED
    finally:
        disk.go_on()
        assert end(agent) == 0


def test_an_agent_that_is_told_to_end_while_its_disk_lets_it_begin_nothing_ends(
    system: System, work: Path, disk: HangingDisk
) -> None:
    agent = system.agent(work, *SOON)
    until(lambda: "runner_looked_at" in (work.parent / "work.log").read_text())
    disk.hang()
    name = system.submit(system.project(), iterations=20)
    system.wait_for(name, lambda job: bool(job.attempts))
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(ENDS_IN_SECONDS + 10) == 0
    assert system.job(name).attempts[0].outcome == HANDED_BACK
    system.stop_job(name)


def test_a_trainer_that_cannot_enter_its_folder_keeps_no_heartbeat_waiting(
    system: System, work: Path, disk: HangingDisk
) -> None:
    agent = system.agent(work, *SOON)
    try:
        disk.hang("fork_exec")
        name = system.submit(system.project(), iterations=20)
        system.wait_for(name, lambda job: bool(job.attempts))
        time.sleep(LEASE_SECONDS + 2)
        disk.go_on()
        job = system.wait_ended(name)
        assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_COMPLETED, 1)
    finally:
        disk.go_on()
        assert end(agent) == 0


def test_the_end_on_a_frozen_disk_is_told_and_nothing_outlives_the_frost(system: System, tmp_path: Path) -> None:
    """Neither trainer nor agent can die while a thread of theirs waits in the kernel: both do once it need not."""
    with frozen_disk(tmp_path / "image", tmp_path / "disk") as disk:
        work = disk.folder / "work"
        small = ("--disk-free-bytes-min", "1000000", "--spool-disk-free-bytes-min", "1000000")
        small += ("--drain-grace-seconds", "1", "--drain-spool-seconds", "1", "--kill-seconds-max", "3")
        agent = system.agent(work, *SOON, *small)
        name = system.submit(system.project(), iterations=100_000, step_ms="10", does="validate")
        system.wait_step(name, 20)
        disk.freeze()
        agent.send_signal(signal.SIGTERM)
        job = system.wait_for(name, lambda job: bool(job.attempts[0].outcome))
        assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
        assert "SIGKILL does not end it" in job.attempts[0].message
        disk.thaw()
        assert agent.wait(ENDS_IN_SECONDS) == 0
        until(lambda: not system.trainers())
    system.stop_job(name)
