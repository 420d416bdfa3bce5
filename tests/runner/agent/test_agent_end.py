"""Agents that end, are killed, are taken over, or whose services go away: each test has its own."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from sihlai.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from sihlai.scheduler.v1 import job_pb2

from tests import tokens
from tests.chaos.disk import disk, why_no_disk
from tests.exchange import exchange
from tests.runner.agent.system import WAIT_SECONDS, System, end, left_behind, until


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_a_killed_agent_leaves_no_orphan_and_the_next_one_sweeps_and_goes_on(system: System, work: Path) -> None:
    first = system.agent(work)
    name = system.submit(system.project(), iterations=150, step_ms="10", does="validate")
    system.wait_for(name, lambda job: job.last_checkpoint.iteration >= 20)
    assert list(work.glob("attempts/*/dataset"))
    first.kill()
    first.wait()
    until(lambda: not system.trainers())
    second = system.agent(work)
    try:
        job = system.wait_ended(name)
        assert job.state == job_pb2.JOB_STATE_COMPLETED
        assert [attempt.outcome for attempt in job.attempts] == [
            job_pb2.ATTEMPT_OUTCOME_LOST,
            job_pb2.ATTEMPT_OUTCOME_COMPLETED,
        ]
        lines = system.lines(name)
        for number in (1, 2):
            of_attempt = [line.number for line in lines if line.attempt == number]
            assert of_attempt == list(range(1, len(of_attempt) + 1))
        assert "the attempt ended with it" in [line.line for line in lines if line.attempt == 1][-1]
        until(lambda: len(system.points(name, "train/loss")) >= 150)
        assert [step for step, _ in system.points(name, "train/loss")] == list(range(1, 151))
        until(lambda: not left_behind(work))
    finally:
        end(second)


def test_a_drained_agent_hands_its_job_back_and_another_finishes_it(system: System, work: Path, tmp_path: Path) -> None:
    first = system.agent(work)
    name = system.submit(system.project(), iterations=150, step_ms="10")
    system.wait_step(name, 10)
    first.send_signal(signal.SIGTERM)
    assert first.wait(WAIT_SECONDS) == 0
    assert not left_behind(work)
    job = system.job(name)
    assert job.state == job_pb2.JOB_STATE_QUEUED
    assert job.last_checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_HAND_BACK
    second = system.agent(tmp_path / "other", "--once", runner_id="other")
    assert second.wait(60) == 0
    assert system.job(name).state == job_pb2.JOB_STATE_COMPLETED
    system.assert_once(name, range(1, 151))


def test_a_signal_to_agent_and_trainer_at_once_hands_the_job_back(system: System, work: Path) -> None:
    """As systemd sends it; this trainer dies of it, which the real one does only while it starts."""
    agent = system.agent(work)
    name = system.submit(system.project(), iterations=100_000, step_ms="10")
    system.wait_step(name, 3)
    for process_id in (*system.trainers(), agent.pid):
        os.kill(process_id, signal.SIGTERM)
    assert agent.wait(WAIT_SECONDS) == 0
    job = system.job(name)
    assert (job.state, job.attempts[0].outcome) == (job_pb2.JOB_STATE_QUEUED, job_pb2.ATTEMPT_OUTCOME_HANDED_BACK)
    system.stop_job(name)


def test_a_second_signal_ends_the_agent_at_once(system: System, work: Path) -> None:
    agent = system.agent(work)
    name = system.submit(system.project(), iterations=100_000, does="deaf")
    system.wait_step(name, 3)
    agent.send_signal(signal.SIGTERM)
    system.wait_for(name, lambda job: job.state != job_pb2.JOB_STATE_QUEUED)
    agent.send_signal(signal.SIGINT)
    assert agent.wait(60) == 0
    assert not system.trainers()
    assert not list(work.glob("attempts/*"))
    system.stop_job(name)


def test_an_agent_that_was_taken_over_ends_with_an_error_and_without_its_trainer(
    system: System, work: Path, tmp_path: Path
) -> None:
    first = system.agent(work)
    name = system.submit(system.project(), iterations=100_000, step_ms="10")
    system.wait_step(name, 3)
    second = system.agent(tmp_path / "other")
    try:
        assert first.wait(WAIT_SECONDS) == 1
        log = (work.parent / "work.log").read_text()
        assert "a newer session has taken over runners/r, so this one must end: give each runner a name" in log
        system.stop_job(name)
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_STOPPED
    finally:
        end(second)
    assert not system.trainers()


def test_an_agent_that_quarrels_with_another_host_says_so(system: System, work: Path) -> None:
    def call_from_elsewhere() -> None:
        request = runner_service_pb2.SynchronizeRequest(
            runner="runners/twin",
            session="its",
            sequence=time.monotonic_ns(),
            protocol_version=1,
            capabilities={"host": "elsewhere"},
            idle={},
        )
        carrying = tokens.carrying(channel, tokens.runner_token(system.folder / "token.pem"))
        runner_service_pb2_grpc.RunnerServiceStub(carrying).Synchronize(request, timeout=20)

    with grpc.insecure_channel(system.services["scheduler"].address) as channel:
        first = system.agent(work, runner_id="twin")
        until(lambda: any(runner.name == "runners/twin" for runner in system.runners()))
        call_from_elsewhere()
        assert first.wait(WAIT_SECONDS) == 1
        second = system.agent(work, runner_id="twin")
        assert second.wait(WAIT_SECONDS) == 1
    log = (work.parent / "work.log").read_text()
    assert "calls as runners/twin too, and has taken it over from" in log
    assert "give each a name of its own, or end the other" in log


def test_killed_services_lose_and_double_nothing_and_the_job_goes_on(system: System, work: Path) -> None:
    agent = system.agent(work)
    log = work.parent / "work.log"
    try:
        name = system.submit(system.project(), iterations=300, step_ms="10")
        system.wait_step(name, 30)
        system.services["scheduler"].kill()
        until(lambda: "scheduler_away" in log.read_text())
        system.services["metrics"].kill()
        until(lambda: "ingest_stream_ended" in log.read_text())
        system.services["scheduler"].start()
        system.services["metrics"].start()
        job = system.wait_ended(name)
        assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_COMPLETED, 1)
        system.assert_once(name, range(1, 301))
        until(lambda: not left_behind(work))
    finally:
        end(agent)


def test_an_agent_that_is_cut_off_for_too_long_hands_its_job_back(system: System, work: Path) -> None:
    agent = system.agent(work, "--disconnected-hours-max", "0.0001")
    log = work.parent / "work.log"
    try:
        name = system.submit(system.project(), iterations=200, step_ms="10")
        system.wait_step(name, 5)
        system.services["scheduler"].kill()
        until(lambda: '"outcome": "handed back"' in log.read_text())
        assert not system.trainers()
        until(lambda: bool(list(work.glob("ledger/*.closed"))))
        system.services["scheduler"].start()
        job = system.wait_ended(name)
        assert job.state == job_pb2.JOB_STATE_COMPLETED
        assert job.attempts[0].outcome == job_pb2.ATTEMPT_OUTCOME_HANDED_BACK
        system.assert_once(name, range(1, 201))
        until(lambda: not left_behind(work))
    finally:
        end(agent)


def test_conversion_that_is_away_is_waited_for(system: System, work: Path) -> None:
    name = system.submit(system.project())
    system.services["conversion"].kill()
    agent = system.agent(work)
    try:
        system.wait_for(name, lambda job: job.state == job_pb2.JOB_STATE_STARTING)
        until(lambda: "conversion_away" in (work.parent / "work.log").read_text())
        system.services["conversion"].start()
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_COMPLETED
    finally:
        end(agent)


def test_a_checkpoint_whose_upload_the_scheduler_gave_up_is_kept_and_uploaded_later(tmp_path: Path) -> None:
    impatient = ["--uploading-minutes-max", "0.02", "--stop-margin-seconds", "1"]
    system = System(folder=tmp_path / "system", scheduler=impatient)
    system.folder.mkdir()
    store, work = system.folder / "checkpoints", tmp_path / "work"
    try:
        system.start()
        agent = system.agent(work, "--unsaved-retry-seconds-max", "0.5")
        name = system.submit(system.project(), iterations=100_000, step_ms="10")
        system.wait_step(name, 3)
        away = tmp_path / "away"
        away.write_text("a file where the store's folder should be")
        exchange(store, away)
        system.stop_job(name, grace_seconds=1)
        assert system.wait_ended(name).state == job_pb2.JOB_STATE_STOPPED
        until(lambda: "attempt_superseded" in (tmp_path / "work.log").read_text() and not left_behind(work))
        assert not system.job(name).HasField("last_checkpoint")
        exchange(store, away)
        job = system.wait_for(name, lambda job: job.HasField("last_checkpoint"))
        assert (job.state, job.last_checkpoint.cause) == (
            job_pb2.JOB_STATE_STOPPED,
            job_pb2.CHECKPOINT_CAUSE_STOP,
        )
        assert "superseded while it was uploaded; it is kept in" in system.lines(name)[-1].line
        until(lambda: not list(work.glob("unsaved/*")))
        assert end(agent) == 0
    finally:
        system.stop()


def test_an_agent_takes_no_job_while_what_it_keeps_fills_its_disk(system: System, tmp_path: Path) -> None:
    if why := why_no_disk():
        pytest.skip(why)
    with disk(tmp_path / "disk", 2**26) as small:
        wants = ("--disk-free-bytes-min", str(2**25), "--spool-disk-free-bytes-min", "0")
        agent = system.agent(small.folder / "work", *wants, "--check-again-seconds-first", "0.2")
        try:
            name = system.submit(system.project(), iterations=100_000, step_ms="10")
            system.wait_step(name, 3)
            kept = small.folder / "kept"
            kept.write_bytes(bytes(3 * 2**24))
            system.stop_job(name)
            assert system.wait_ended(name).state == job_pb2.JOB_STATE_STOPPED
            wanted = "bytes free, 33554432 are wanted"
            until(lambda: any(wanted in each.capabilities.problem for each in system.runners()))
            waiting = system.submit(system.project(), iterations=5)
            system.wait_for(waiting, lambda job: "runners/r cannot train: the disk" in job.why_not_running)
            kept.unlink()
            job = system.wait_ended(waiting)
            assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_COMPLETED, 1)
        finally:
            end(agent)
