"""A runner that cannot train blames itself, and a store that is away fails no job and loses no model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import job_pb2

from tests.exchange import exchange
from tests.runner.agent.system import System, end, left_behind, until

SOON = ("--check-again-seconds-first", "0.2", "--check-again-seconds-max", "0.5", "--unsaved-retry-seconds-max", "0.5")
QUEUED, COMPLETED, STOPPED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED
HANDED_BACK = job_pb2.ATTEMPT_OUTCOME_HANDED_BACK


@pytest.fixture(scope="module")
def work(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The work folder of an agent that runs, and gives up soon what it cannot do."""
    work = tmp_path_factory.mktemp("agent") / "work"
    agent = system.agent(work, *SOON, "--upload-minutes-max", "0.03")
    until(lambda: "runner_looked_at" in (work.parent / "work.log").read_text())
    yield work
    assert end(agent) == 0


@contextmanager
def in_the_way(path: Path) -> Iterator[None]:
    """A file where a folder should be: whoever needs the folder fails, as with a disk that broke."""
    away = path.with_name(f"{path.name}.away")
    away.write_text("a file where a folder should be")
    path.mkdir(exist_ok=True)
    exchange(path, away)
    try:
        yield
    finally:
        exchange(path, away)
        away.unlink()


@contextmanager
def unfit(system: System, problem: str) -> Iterator[None]:
    """A machine whose trainer cannot even start."""
    (system.folder / "unfit").write_text(problem)
    try:
        yield
    finally:
        (system.folder / "unfit").unlink()


def runner(system: System) -> runner_admin_service_pb2.Runner:
    (found,) = [each for each in system.runners() if each.name == "runners/r"]
    return found


def test_a_runner_that_cannot_train_hands_its_job_back_and_takes_it_again_when_it_can(
    system: System, work: Path
) -> None:
    with unfit(system, "ImportError: libcudnn.so.9 is missing"):
        name = system.submit(system.project())
        job = system.wait_for(name, lambda job: job.state == QUEUED and len(job.attempts) > 0)
        (attempt,) = job.attempts
        assert (attempt.outcome, attempt.reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
        assert "libcudnn.so.9 is missing" in attempt.message
        assert "libcudnn.so.9 is missing" in runner(system).capabilities.problem
        system.wait_for(name, lambda job: "runners/r cannot train: the trainer" in job.why_not_running)
    job = system.wait_ended(name)
    assert (job.state, len(job.attempts)) == (COMPLETED, 2)
    assert not runner(system).capabilities.problem
    until(lambda: not left_behind(work))


@pytest.mark.parametrize("does", ["die-unfit", "break-unfit"])
def test_a_trainer_that_fails_on_a_machine_that_does_not_work_fails_no_job(
    system: System, work: Path, does: str
) -> None:
    name = system.submit(system.project(), iterations=400, step_ms="10", does=does)
    system.wait_step(name, 3)
    with unfit(system, "RuntimeError: CUDA error: uncorrectable ECC error encountered"):
        job = system.wait_for(name, lambda job: job.state != job_pb2.JOB_STATE_RUNNING)
        assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
        assert "uncorrectable ECC error" in job.attempts[0].message
        assert "uncorrectable ECC error" in runner(system).capabilities.problem
    assert system.wait_ended(name).state == COMPLETED


def test_what_a_trainer_says_on_purpose_is_the_jobs_also_on_a_machine_that_does_not_work(
    system: System, work: Path
) -> None:
    name = system.submit(system.project(), iterations=400, step_ms="10", does="refuse-unfit")
    system.wait_step(name, 3)
    with unfit(system, "RuntimeError: CUDA error: uncorrectable ECC error encountered"):
        job = system.wait_ended(name)
    assert (job.state, job.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_TRAINER_ERROR)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trainer_that_is_killed_from_outside_fails_no_job(system: System, work: Path, number: signal.Signals) -> None:
    name = system.submit(system.project(), iterations=200, step_ms="10")
    system.wait_step(name, 3)
    (trainer,) = system.trainers()
    os.kill(trainer, number)
    job = system.wait_ended(name)
    assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
    assert f"killed by {number.name} from outside" in job.attempts[0].message
    assert (job.state, len(job.attempts)) == (COMPLETED, 2)


def test_a_runner_that_cannot_train_from_its_start_takes_no_job_at_all(system: System, tmp_path: Path) -> None:
    with unfit(system, "RuntimeError: the driver is too old"):
        agent = system.agent(tmp_path / "other", *SOON, runner_id="late")
        try:
            until(lambda: any("driver is too old" in each.capabilities.problem for each in system.runners()))
        finally:
            assert end(agent) == 0


def test_a_disk_that_fails_hands_the_job_back_and_leaves_no_attempt_behind(system: System, work: Path) -> None:
    with in_the_way(work / "attempts"):
        name = system.submit(system.project())
        job = system.wait_for(name, lambda job: len(job.attempts) > 0 and job.state == QUEUED)
        assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
    assert system.wait_ended(name).state == COMPLETED


@pytest.mark.parametrize("folders", [("spools",), ("spools", "ledger")])
def test_a_disk_that_takes_not_even_the_beginning_hands_the_job_back(
    system: System, work: Path, folders: tuple[str, ...]
) -> None:
    until(lambda: not left_behind(work))  # what an earlier job's spool holds is not taken away with the folder
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(in_the_way(work / folder))
        name = system.submit(system.project(), iterations=5)
        job = system.wait_for(name, lambda job: len(job.attempts) > 0 and job.state == QUEUED)
        assert (job.attempts[0].outcome, job.attempts[0].reason) == (HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
    assert system.wait_ended(name).state == COMPLETED
    until(lambda: not left_behind(work))


def test_an_end_that_the_disk_does_not_take_is_reported_all_the_same(system: System, work: Path) -> None:
    until(lambda: not left_behind(work))
    with in_the_way(work / "ledger"):
        assert system.wait_ended(system.submit(system.project(), iterations=5)).state == COMPLETED
    until(lambda: not left_behind(work))


def test_a_stopped_job_stays_stopped_with_the_store_away_and_gets_its_model_later(system: System, work: Path) -> None:
    name = system.submit(system.project(), iterations=100_000, step_ms="10")
    system.wait_step(name, 3)
    with in_the_way(system.folder / "checkpoints"):
        system.stop_job(name)
        system.wait_for(name, lambda job: "waits for the object store" in job.progress.problem or job.state == STOPPED)
        job = system.wait_ended(name)
        assert (job.state, job.reason) == (STOPPED, job_pb2.JOB_REASON_USER_STOP)
        assert "it is kept in" in job.attempts[0].message
        assert list(work.glob("unsaved/*/files/model.safetensors"))
        assert not job.HasField("last_checkpoint")
    job = system.wait_for(name, lambda job: job.HasField("last_checkpoint"))
    assert job.last_checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_STOP
    assert (job.state, job.last_checkpoint.iteration) == (STOPPED, job.progress.iteration)
    until(lambda: not list(work.glob("unsaved/*")))
    assert system.wait_ended(system.resume(name, iterations=job.last_checkpoint.iteration + 5)).state == COMPLETED


def test_a_job_that_trained_to_its_end_with_the_store_away_is_not_failed(system: System, work: Path) -> None:
    with in_the_way(system.folder / "checkpoints"):
        name = system.submit(system.project(), iterations=5)
        job = system.wait_for(name, lambda job: any(attempt.outcome == HANDED_BACK for attempt in job.attempts))
        assert job.attempts[0].reason == job_pb2.JOB_REASON_STORE_UNAVAILABLE
    job = system.wait_ended(name)
    assert (job.state, job.last_checkpoint.iteration) == (COMPLETED, 5)
    until(lambda: not list(work.glob("unsaved/*")))
