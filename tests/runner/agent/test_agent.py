"""One agent that serves one job after the other, with real services beside it and a small trainer under it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.scheduler.v1 import job_pb2

from tests.runner.agent.system import System, end, left_behind, until


@pytest.fixture(scope="module")
def work(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The work folder of an agent that runs."""
    work = tmp_path_factory.mktemp("agent") / "work"
    agent = system.agent(work)
    yield work
    assert end(agent) == 0


def test_a_job_runs_to_its_end_and_leaves_nothing_behind(system: System, work: Path) -> None:
    job = system.wait_ended(system.submit(system.project(), iterations=300))
    assert (job.state, job.reason) == (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_REASON_LIMIT_REACHED)
    assert (job.last_checkpoint.iteration, job.progress.iteration) == (300, 300)
    assert [file.name for file in job.last_checkpoint.files] == ["model.safetensors", "state.pt"]
    assert job.dataset_fingerprint
    system.assert_once(job.name, range(1, 301))
    lines = system.lines(job.name)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    said = [line.line for line in lines if line.source != "trainer"]
    assert any("downloaded 12 training images" in text for text in said)
    assert said[-1].startswith("the attempt ended: completed")
    assert len(system.points(job.name, "system/memory_bytes")) >= 1
    until(lambda: not left_behind(work))
    assert not system.trainers()


def test_a_stop_brings_a_checkpoint_and_the_resumed_job_goes_on_from_it(system: System, work: Path) -> None:
    name = system.submit(system.project(), iterations=150, step_ms="10")
    system.wait_step(name, 20)
    system.stop_job(name)
    stopped = system.wait_ended(name)
    assert (stopped.state, stopped.reason) == (job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_REASON_USER_STOP)
    reached = stopped.last_checkpoint.iteration
    assert 20 <= reached < 150
    assert stopped.last_checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_STOP
    resumed = system.wait_ended(system.resume(name))
    assert resumed.state == job_pb2.JOB_STATE_COMPLETED
    system.assert_once(name, range(1, reached + 1))
    system.assert_once(resumed.name, range(reached + 1, 151))
    assert f"resumed at {reached}" in [line.line for line in system.lines(resumed.name)]
    until(lambda: not left_behind(work))


def test_a_stop_before_the_first_step_ends_without_a_checkpoint(system: System, work: Path) -> None:
    name = system.submit(system.project(system.dataset("large", images=1_500)), iterations=100_000)
    system.wait_for(name, lambda job: job.state == job_pb2.JOB_STATE_STARTING)
    system.stop_job(name)
    job = system.wait_ended(name)
    assert (job.state, job.HasField("last_checkpoint")) == (job_pb2.JOB_STATE_STOPPED, False)
    until(lambda: not left_behind(work))


def test_a_trainer_that_does_not_stop_is_ended_after_the_grace(system: System, work: Path) -> None:
    name = system.submit(system.project(), iterations=100_000, does="deaf")
    system.wait_step(name, 3)
    system.stop_job(name, grace_seconds=0.5)
    job = system.wait_ended(name)
    assert job.state == job_pb2.JOB_STATE_STOPPED
    assert "did not write its checkpoint within 0.5 s" in job.attempts[-1].message
    assert not system.trainers()
    until(lambda: not left_behind(work))


def test_an_immediate_stop_ends_the_trainer_and_all_that_it_started(system: System, work: Path) -> None:
    name = system.submit(system.project(), iterations=100_000, does="fork")
    system.wait_step(name, 3)
    assert len(system.trainers()) == 2
    system.stop_job(name, immediate=True)
    assert system.wait_ended(name).state == job_pb2.JOB_STATE_STOPPED
    assert not system.trainers()
    until(lambda: not left_behind(work))


@pytest.mark.parametrize(
    ("does", "says"), [("crash", "RuntimeError: the trainer is broken"), ("die", "the trainer crashed with SIGSEGV")]
)
def test_a_trainer_that_fails_fails_the_job_with_the_tail_of_its_log(
    system: System, work: Path, does: str, says: str
) -> None:
    job = system.wait_ended(system.submit(system.project(), does=does))
    assert (job.state, job.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_TRAINER_ERROR)
    assert says in job.reason_message
    assert "step 3" in job.reason_message
    until(lambda: not left_behind(work))


def test_a_dataset_that_cannot_be_read_fails_the_job_in_the_words_of_conversion(system: System, work: Path) -> None:
    dataset = system.dataset("of-an-elephant")
    (dataset / "annotations.yaml").write_text("0000.png: elephant")
    job = system.wait_ended(system.submit(system.project(dataset)))
    assert (job.state, job.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_DATASET_ERROR)
    assert "elephant" in job.reason_message
    until(lambda: not left_behind(work))
