"""A client of a whole system, and what tests look for in its answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf import json_format
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from sihlai.metrics.v1.series_pb2 import PointColumns
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec, Trainer

from services.cli.machine.supervisor import Stack
from tests.tokens import carrying

ENDED = (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_FAILED)
WAIT_SECONDS = 240.0
POLL_SECONDS = 0.05

Answer = TypeVar("Answer")


@dataclass
class Client:
    """The stubs of a stack, and what tests ask of them. gRPC channels come back by themselves after an outage."""

    stack: Stack
    digits: Path
    channels: dict[str, grpc.Channel] = field(default_factory=dict)

    def channel(self, service: str) -> grpc.Channel:
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 500)]
        if service not in self.channels:
            opened = grpc.insecure_channel(self.stack.address(service), options=options)
            self.channels[service] = carrying(opened, self.stack.folder.token.read_text().strip())
        return self.channels[service]

    @property
    def jobs(self) -> job_service_pb2_grpc.JobServiceStub:
        return job_service_pb2_grpc.JobServiceStub(self.channel("scheduler"))

    @property
    def checkpoints(self) -> checkpoint_service_pb2_grpc.CheckpointServiceStub:
        return checkpoint_service_pb2_grpc.CheckpointServiceStub(self.channel("scheduler"))

    @property
    def metrics(self) -> metrics_service_pb2_grpc.MetricsServiceStub:
        return metrics_service_pb2_grpc.MetricsServiceStub(self.channel("metrics"))

    @property
    def logs(self) -> log_service_pb2_grpc.LogServiceStub:
        return log_service_pb2_grpc.LogServiceStub(self.channel("metrics"))

    def create_project(self, project_id: str) -> str:
        source = DatasetSource(uri=self.digits.as_uri())
        request = project_service_pb2.CreateProjectRequest(
            project=project_service_pb2.Project(training_dataset=source),
            project_id=project_id,
            request_id=str(uuid.uuid4()),
        )
        stub = project_service_pb2_grpc.ProjectServiceStub(self.channel("scheduler"))
        return stub.CreateProject(request, timeout=60).project.name

    def submit(self, project: str, *, initialization: str = "", **trainer: object) -> job_pb2.Job:
        spec = digits_spec(trainer)
        if initialization:
            spec.model.initialization.checkpoint.checkpoint = initialization
        request = job_service_pb2.SubmitJobRequest(parent=project, spec=spec, request_id=str(uuid.uuid4()))
        return self.jobs.SubmitJob(request, timeout=60).job

    def stop(self, name: str) -> job_pb2.Job:
        request = job_service_pb2.StopJobRequest(name=name, reason="a test", request_id=str(uuid.uuid4()))
        return self.jobs.StopJob(request, timeout=60).job

    def resume(self, name: str, *, iterations_max: int) -> job_pb2.Job:
        request = job_service_pb2.ResumeJobRequest(
            name=name, trainer=Trainer(iterations_max=iterations_max), request_id=str(uuid.uuid4())
        )
        return self.jobs.ResumeJob(request, timeout=60).job

    def job(self, name: str) -> job_pb2.Job:
        return self.jobs.GetJob(job_service_pb2.GetJobRequest(name=name), timeout=60).job

    def list_jobs(self, project: str) -> list[job_pb2.Job]:
        return list(self.jobs.ListJobs(job_service_pb2.ListJobsRequest(parent=project), timeout=60).jobs)

    def wait_for(self, name: str, condition: Callable[[job_pb2.Job], bool]) -> job_pb2.Job:
        def answer() -> job_pb2.Job | None:
            job = self.job(name)
            assert job.state not in ENDED or condition(job), f"ended too early: {job}"
            return job if condition(job) else None

        return until(answer)

    def wait_ended(self, name: str) -> job_pb2.Job:
        return self.wait_for(name, lambda job: job.state in ENDED)

    def tail(self, name: str, cursor: str = "", *, follow: bool = True) -> Iterator[log_service_pb2.TailLogsResponse]:
        """All messages until the stream ends in order; connects again with the cursor where it breaks."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            request = log_service_pb2.TailLogsRequest(job=name, cursor=cursor, follow=follow)
            if not cursor:
                request.ClearField("cursor")
            try:
                for message in self.logs.TailLogs(request, timeout=WAIT_SECONDS):
                    cursor = message.cursor
                    yield message
                return
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
        pytest.fail(f"the tail of {name} did not end in {WAIT_SECONDS} s")

    def points(self, name: str, series: str) -> PointColumns:
        request = metrics_service_pb2.QuerySeriesRequest(
            job=name, selector=metrics_service_pb2.SeriesSelector(names=[series])
        )
        answer = self.metrics.QuerySeries(request, timeout=60)
        return answer.series[0].points if answer.series else PointColumns()


def digits_spec(trainer: Mapping[str, object]) -> JobSpec:
    specification = {
        "model": {"backbone": {"name": "tiny"}, "heads": [{"id": "digits", "task": "TASK_MULTICLASS_CLASSIFICATION"}]},
        "data": {"height": 16, "width": 16},
        "trainer": {"iterations_max": 120, "validations": 4, **trainer},
    }
    return json_format.ParseDict(specification, JobSpec())


def until(answer: Callable[[], Answer | None], *, seconds: float = WAIT_SECONDS) -> Answer:
    """The first answer that is not None; a service that is away for a moment is asked again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if (found := answer()) is not None:
                return found
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(POLL_SECONDS)
    pytest.fail(f"no answer within {seconds} s")


def assert_lines_whole(messages: list[log_service_pb2.TailLogsResponse]) -> None:
    """Each attempt's lines are numbered from 1 without a gap, in order; the end is said and complete."""
    numbers: dict[tuple[int, int], list[int]] = {}
    for message in messages:
        for line in message.batch.lines:
            numbers.setdefault((line.attempt, line.rank), []).append(line.number)
    assert numbers
    for key, found in numbers.items():
        assert found == list(range(1, len(found) + 1)), key
    assert messages[-1].WhichOneof("message") == "ended"
    assert messages[-1].ended.logs_complete
    assert sum(message.WhichOneof("message") == "caught_up" for message in messages) >= 1


def assert_steps_whole(client: Client, name: str, first: int, last: int) -> None:
    """Each step's loss is there, once. A spool may still be drained after its job has ended."""

    def stored_to_the_end() -> list[int] | None:
        steps = list(client.points(name, "train/loss").steps)
        return steps if steps and steps[-1] >= last else None

    assert until(stored_to_the_end) == list(range(first, last + 1))


def local_datasets(stack: Stack) -> list[Path]:
    return list(Path(stack.config.data).glob("runners/**/attempts/*/dataset"))


def download(client: Client, name: str, file: str = "") -> bytes:
    request = checkpoint_service_pb2.DownloadCheckpointRequest(name=name, file=file)
    return b"".join(message.chunk for message in client.checkpoints.DownloadCheckpoint(request, timeout=30))
