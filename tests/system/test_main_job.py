"""Submit, follow, stop, resume: the main job with every process real."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from sihlai.metrics.v1 import metrics_service_pb2
from sihlai.scheduler.v1 import checkpoint_service_pb2, job_pb2

from tests.system.client import (
    WAIT_SECONDS,
    Client,
    assert_lines_whole,
    assert_steps_whole,
    download,
    local_datasets,
)

ITERATIONS_MAX = 120
LONG = 100_000


def test_a_submitted_job_is_followed_and_watched_to_its_final_model(client: Client) -> None:
    project = client.create_project("followed")
    submitted = client.submit(project, iterations_max=ITERATIONS_MAX)
    assert submitted.state == job_pb2.JOB_STATE_QUEUED

    with ThreadPoolExecutor() as threads:
        watching = threads.submit(watched, client, submitted.name)
        lines = list(client.tail(submitted.name))
        messages = watching.result()
    assert_lines_whole(lines)
    assert lines[-1].ended.state == job_pb2.JOB_STATE_COMPLETED
    steps = [step for message in messages for columns in message.points.columns for step in columns.steps]
    assert steps == list(range(1, ITERATIONS_MAX + 1)), "each point once"
    assert messages[-1].ended.state == job_pb2.JOB_STATE_COMPLETED
    assert messages[-1].ended.points_complete

    job = client.wait_ended(submitted.name)
    assert job.reason == job_pb2.JOB_REASON_LIMIT_REACHED
    assert [attempt.number for attempt in job.attempts] == [1]
    assert job.dataset_fingerprint
    assert_steps_whole(client, job.name, 1, ITERATIONS_MAX)
    assert list(client.points(job.name, "digits/valid/accuracy").steps) == [30, 60, 90, 120]
    assert local_datasets(client.stack) == []

    final = f"{job.name}/checkpoints/final"
    request = checkpoint_service_pb2.GetCheckpointRequest(name=final)
    checkpoint = client.checkpoints.GetCheckpoint(request, timeout=60).checkpoint
    assert checkpoint.iteration == ITERATIONS_MAX
    model = next(file for file in checkpoint.files if file.name == "model.safetensors")
    assert hashlib.sha256(download(client, final)).hexdigest() == model.sha256

    begun = client.wait_ended(client.submit(project, initialization=final, iterations_max=1, validations=1).name)
    assert begun.spec.model.initialization.checkpoint.checkpoint == checkpoint.name
    assert begun.state == job_pb2.JOB_STATE_COMPLETED
    assert_steps_whole(client, begun.name, 1, 1)
    assert client.points(begun.name, "train/loss").values[0] < client.points(job.name, "train/loss").values[0] / 2


def watched(client: Client, name: str) -> list[metrics_service_pb2.WatchMetricsResponse]:
    """All that is told of a job's loss, to its end."""
    selector = metrics_service_pb2.SeriesSelector(names=["train/loss"])
    request = metrics_service_pb2.WatchMetricsRequest(job=name, selector=selector)
    return list(client.metrics.WatchMetrics(request, timeout=WAIT_SECONDS))


def test_a_stopped_job_makes_way_for_the_next_and_leaves_a_checkpoint_that_another_goes_on_from(client: Client) -> None:
    project = client.create_project("stopped")
    first = client.submit(project, iterations_max=LONG, validations=1)
    second = client.submit(project, iterations_max=10, validations=1)
    client.wait_for(first.name, lambda job: job.progress.iteration > 20)
    assert len(local_datasets(client.stack)) == 1
    waiting = client.job(second.name)
    assert waiting.state == job_pb2.JOB_STATE_QUEUED
    assert waiting.why_not_running
    client.stop(first.name)
    stopped = client.wait_ended(first.name)

    assert stopped.state == job_pb2.JOB_STATE_STOPPED
    assert stopped.reason == job_pb2.JOB_REASON_USER_STOP
    assert stopped.last_checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_STOP
    reached = stopped.last_checkpoint.iteration
    assert_lines_whole(list(client.tail(first.name)))
    assert_steps_whole(client, first.name, 1, reached)
    assert client.wait_ended(second.name).state == job_pb2.JOB_STATE_COMPLETED
    assert local_datasets(client.stack) == []

    resumed = client.resume(first.name, iterations_max=reached + 50)
    done = client.wait_ended(resumed.name)
    assert done.state == job_pb2.JOB_STATE_COMPLETED
    assert done.source_job == first.name
    assert_lines_whole(list(client.tail(resumed.name)))
    assert_steps_whole(client, resumed.name, reached + 1, reached + 50)
