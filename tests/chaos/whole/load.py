"""Users: they submit, stop and resume, ask again with the same request id when no answer came, and look on."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

import grpc
from sihlai.conversion.v1 import task_pb2
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    job_spec_pb2,
    project_service_pb2,
    project_service_pb2_grpc,
)
from sihlai.scheduler.v1.job_pb2 import Job

from tests.chaos.whole.history import ENDED, REQUEST_LABEL, History
from tests.chaos.whole.stand import Stand
from tests.tokens import carrying

CALL_SECONDS = 5.0
PAUSE_SECONDS = 0.2
LOOK_SECONDS = 0.25
ACTIVE = (job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_STOPPING)
PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,  # what gRPC makes of a connection that broke in an odd place
)
Answer = TypeVar("Answer")


class Users:
    """Two threads: one that acts, one that looks on."""

    def __init__(self, stand: Stand, history: History, randomness: random.Random, unfinished_max: int) -> None:
        """`unfinished_max`: jobs of which none are submitted more before some have ended."""
        self._stand = stand
        self._unfinished_max = unfinished_max
        self._history = history
        self._random = randomness
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 300)]
        self.channel = carrying(grpc.insecure_channel(stand.scheduler_address, options=options), stand.token)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self._projects: list[str] = []
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__) for work in (self._act, self._look)
        ]

    def start(self) -> None:
        stub = project_service_pb2_grpc.ProjectServiceStub(self.channel)
        for number, uri in enumerate(self._stand.datasets):
            project = project_service_pb2.Project(training_dataset=DatasetSource(uri=uri))
            request = project_service_pb2.CreateProjectRequest(
                project=project, project_id=f"team-{number}", request_id=str(uuid.uuid4())
            )
            self._projects.append(self._answered(stub.CreateProject, request).project.name)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more wishes; what is running runs to its end."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def all_jobs(self) -> list[Job]:
        found: list[Job] = []
        token = ""
        while True:
            request = job_service_pb2.ListJobsRequest(parent="projects/-", page_size=500, page_token=token)
            page = self._answered(self.jobs.ListJobs, request)
            found += page.jobs
            token = page.next_page_token
            if not token:
                return found

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 — a user that breaks is a finding like any other
            self._history.findings.append(f"a user's call failed for good: {type(error).__name__}: {error}")

    def _act(self) -> None:
        while not self._done.wait(self._random.uniform(0.05, 0.3)):
            jobs = self.all_jobs()
            unfinished = [job for job in jobs if job.state not in ENDED]
            if len(unfinished) < self._unfinished_max:
                self._submit()
            elif self._random.random() < 0.2:
                self._stop(self._random.choice(unfinished))
            stopped = [job for job in jobs if job.state == job_pb2.JOB_STATE_STOPPED and _has_steps_left(job)]
            if stopped and self._random.random() < 0.05:
                self._resume(self._random.choice(stopped))

    def _look(self) -> None:
        states = job_service_pb2.JobFilter(states=ACTIVE)
        while not self._done.wait(LOOK_SECONDS):
            request = job_service_pb2.ListJobsRequest(parent="projects/-", page_size=500, filter=states)
            try:
                self._history.observe(self.jobs.ListJobs(request, timeout=CALL_SECONDS).jobs)
            except grpc.RpcError as error:
                if error.code() not in PASSING:
                    raise

    def _submit(self) -> None:
        label = f"r{uuid.uuid4().hex[:12]}"
        spec = job_spec_pb2.JobSpec(labels={REQUEST_LABEL: label, "does": "validate", "step-ms": "40"})
        spec.model.heads.add(id="digits", task=task_pb2.TASK_MULTICLASS_CLASSIFICATION)
        spec.model.backbone.name = "tiny"
        spec.trainer.iterations_max = self._random.randint(20, 200)
        request = job_service_pb2.SubmitJobRequest(
            parent=self._random.choice(self._projects), spec=spec, request_id=str(uuid.uuid4())
        )
        self._history.tried.add(label)
        self._history.submitted[label] = self._twice(self.jobs.SubmitJob, request).job.uid

    def _stop(self, job: Job) -> None:
        mode = job_pb2.STOP_MODE_IMMEDIATE if self._random.random() < 0.2 else job_pb2.STOP_MODE_CHECKPOINT
        request = job_service_pb2.StopJobRequest(name=job.name, mode=mode, request_id=str(uuid.uuid4()))
        request.grace.FromMilliseconds(10_000)
        answer = self._answered(self.jobs.StopJob, request).job
        if answer.state not in ENDED or answer.state == job_pb2.JOB_STATE_STOPPED:
            self._history.stopped[answer.uid] = len(answer.attempts)

    def _resume(self, job: Job) -> None:
        """Made with the labels of the job that it goes on from: its own request is told by no label."""
        request = job_service_pb2.ResumeJobRequest(name=job.name, request_id=str(uuid.uuid4()))
        first = self._answered(self.jobs.ResumeJob, request).job
        again = self._answered(self.jobs.ResumeJob, request).job
        if first.uid != again.uid:
            self._history.findings.append(f"one wish to resume {job.name} made {first.name} and {again.name}")

    def _twice(self, call: Callable[..., Answer], request: object) -> Answer:
        """The answer; asked once more now and then, as who lost the first answer would."""
        answer = self._answered(call, request)
        if self._random.random() < 0.3:
            again = self._answered(call, request)
            if again.job.uid != answer.job.uid:  # type: ignore[attr-defined]  # both have a job
                self._history.findings.append(f"a repeated request made another job: {request}")
        return answer

    def _answered(self, call: Callable[..., Answer], request: object) -> Answer:
        """The answer, however often it has to be asked for."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return call(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in PASSING or time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_SECONDS)


def _has_steps_left(job: Job) -> bool:
    """Whether there is something to go on from, and something left to do."""
    return bool(job.last_checkpoint.name) and job.last_checkpoint.iteration < job.spec.trainer.iterations_max
