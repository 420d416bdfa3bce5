"""SIGKILL midway: nothing that was acknowledged is lost, nothing is doubled, and a healthy job stays healthy."""

from __future__ import annotations

import threading

import psutil
from sihlai.logs.v1 import log_service_pb2
from sihlai.scheduler.v1 import job_pb2

from tests.system.client import (
    WAIT_SECONDS,
    Client,
    assert_lines_whole,
    assert_steps_whole,
    local_datasets,
    until,
)

ITERATIONS_MAX = 300
LONG = 100_000
STEPS_BETWEEN = 20


def test_metrics_and_scheduler_killed_midway_lose_nothing_and_the_job_goes_on(client: Client) -> None:
    project = client.create_project("killed")
    job = client.submit(project, iterations_max=LONG, validations=1)
    messages: list[log_service_pb2.TailLogsResponse] = []
    follower = threading.Thread(target=lambda: messages.extend(client.tail(job.name)))
    follower.start()
    wait_for_steps(client, job.name)
    for service in ("metrics", "scheduler", "metrics"):
        client.stack.kill(service)
        client.stack.restart(service)
        wait_for_steps(client, job.name)

    client.stop(job.name)
    done = client.wait_ended(job.name)
    assert done.state == job_pb2.JOB_STATE_STOPPED, done
    assert [attempt.outcome for attempt in done.attempts] == [job_pb2.ATTEMPT_OUTCOME_STOPPED]
    follower.join(timeout=WAIT_SECONDS)
    assert not follower.is_alive()
    assert_lines_whole(messages)
    assert_steps_whole(client, job.name, 1, done.last_checkpoint.iteration)


def wait_for_steps(client: Client, name: str) -> None:
    """Until the job has done some more."""

    def iteration() -> int:
        return client.job(name).progress.iteration

    reached = until(iteration)
    client.wait_for(name, lambda job: job.progress.iteration > reached + STEPS_BETWEEN)


def test_scheduler_and_metrics_and_nats_killed_at_once_forget_no_submitted_job(client: Client) -> None:
    project = client.create_project("remembered")
    jobs = [client.submit(project, iterations_max=20, validations=1) for _ in range(2)]
    for service in ("scheduler", "metrics", "nats"):
        client.stack.kill(service)
    for service in ("nats", "scheduler", "metrics"):
        client.stack.restart(service)
    for job in jobs:
        assert client.wait_ended(job.name).state == job_pb2.JOB_STATE_COMPLETED
        assert_steps_whole(client, job.name, 1, 20)


def test_a_killed_runner_leaves_no_orphan_and_its_job_goes_on_from_the_last_checkpoint(client: Client) -> None:
    project = client.create_project("orphaned")
    job = client.submit(project, iterations_max=ITERATIONS_MAX, validations=6)
    client.wait_for(job.name, lambda job: job.last_checkpoint.iteration > 0)
    runner = next(name for name in client.stack.names if name.startswith("runner-"))
    trainers = psutil.Process(client.stack.process_id(runner)).children(recursive=True)
    assert trainers
    client.stack.kill(runner)
    assert until(lambda: None if any(alive(trainer) for trainer in trainers) else True)

    client.stack.restart(runner)
    done = client.wait_ended(job.name)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done
    assert [attempt.outcome for attempt in done.attempts] == [
        job_pb2.ATTEMPT_OUTCOME_LOST,
        job_pb2.ATTEMPT_OUTCOME_COMPLETED,
    ]
    assert done.attempts[1].from_step > 1
    assert_lines_whole(list(client.tail(job.name)))
    assert_steps_whole(client, job.name, 1, ITERATIONS_MAX)
    assert local_datasets(client.stack) == []


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
