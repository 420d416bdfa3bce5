"""Real conversion, scheduler and metrics, and real agents, each a process; the trainer alone is a small one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import yaml
from PIL import Image
from sihlai.conversion.v1 import task_pb2
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.logs.v1 import log_line_pb2, log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from sihlai.runner.v1 import runner_admin_service_pb2, runner_admin_service_pb2_grpc
from sihlai.scheduler.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    job_spec_pb2,
    project_service_pb2,
    project_service_pb2_grpc,
)

from runner.agent.trainer.process import ATTEMPT_VARIABLE
from tests import tokens
from tests.runner.agent.scripted_trainer import TRAINER, TRAINER_HEAD

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.02
SYSTEM_VARIABLE = "AGENT_TEST_SYSTEM"
ENDED = (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_FAILED)

AGENT = """
import os, sys
from runner.__main__ import main
commands = {"trainer_command": (sys.executable, sys.argv[1]), "check_command": (sys.executable, sys.argv[1], "--check")}
sys.exit(main(sys.argv[2:], os.environ, **commands))
"""


@dataclass
class Service:
    """One service's process; it comes back at the same address."""

    name: str
    folder: Path
    arguments: list[str]
    address: str = "127.0.0.1:0"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        address_file = self.folder / f"{self.name}.address"
        address_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"services.{self.name}", "--listen-address", self.address]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--address-file", str(address_file), *self.arguments], stderr=log, stdout=log
            )
        until(lambda: address_file.exists() or self.process is None or self.process.poll() is not None)
        assert address_file.exists(), (self.folder / f"{self.name}.log").read_text()[-2_000:]
        self.address = address_file.read_text().strip()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What it is at comes no further meanwhile, however long that takes on a busy machine."""
        assert self.process is not None
        service = psutil.Process(self.process.pid)
        processes = [service, *service.children(recursive=True)]
        try:
            for process in processes:
                process.suspend()
            yield
        finally:
            for process in processes:
                process.resume()


@dataclass
class System:
    """The three services in one folder. `scheduler`: what its command line has besides."""

    folder: Path
    scheduler: list[str] = field(default_factory=list)
    services: dict[str, Service] = field(default_factory=dict)
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)
    token: str = ""

    def start(self) -> None:
        folder = self.folder
        (folder / "trainer.py").write_text(TRAINER_HEAD + TRAINER)
        roots = ["--allowed-roots", str(folder)]
        store = ["--store-uri", (folder / "converted").as_uri()]
        public = ["--token-public-keys", str(folder / "token.pub.pem")]
        self.token = tokens.token(folder / "token.pem")
        self._start("conversion", [*store, *roots, *public])
        keys = ["--token-key-file", str(folder / "token.pem"), "--credentials-key-file", str(folder / "seal.key")]
        places = ["--database-url", f"sqlite:///{folder}/scheduler.sqlite"]
        places += ["--checkpoint-root", (folder / "checkpoints").as_uri(), "--resend-seconds", "0.2"]
        places += ["--retry-seconds-first", "0.2", "--retry-seconds-max", "1"]
        # How often a runner fails before its test comes on is a matter of how busy the machine is.
        places += ["--lost-attempts-max", "1000", "--faults-max", "1000", "--hand-backs-max", "1000"]
        places += ["--put-aside-minutes-first", "0.02", "--put-aside-minutes-max", "0.05"]
        conversion = ["--conversion-address", self.services["conversion"].address]
        own = ["--token-file", str(tokens.token_file(folder / "token.pem", "services/scheduler"))]
        self._start("scheduler", [*places, *keys, *conversion, *roots, *own, "--lease-seconds", "5", *self.scheduler])
        scheduler = ["--scheduler-address", self.services["scheduler"].address]
        own = ["--token-file", str(tokens.token_file(folder / "token.pem", "services/metrics"))]
        self._start("metrics", ["--clickhouse", f"chdb://{folder}/chdb", *scheduler, *public, *own])

    def stop(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()
        for service in self.services.values():
            service.kill()
        for channel in self._channels.values():
            channel.close()

    def agent(self, work_folder: Path, *arguments: str, runner_id: str = "r") -> subprocess.Popen[bytes]:
        """Start an agent whose trainer is TRAINER."""
        (self.folder / "agent.py").write_text(AGENT)
        command = [sys.executable, str(self.folder / "agent.py"), str(self.folder / "trainer.py")]
        for name in ("scheduler", "conversion", "metrics"):
            command += [f"--{name}-address", self.services[name].address]
        command += ["--runner-id", runner_id, "--work-folder", str(work_folder), "--device", "cpu"]
        command += ["--token-file", str(tokens.token_file(self.folder / "token.pem", f"runners/{runner_id}"))]
        command += [
            "--system-metrics-seconds",
            "0.5",
            "--progress-seconds-min",
            "0.1",
            "--reconnect-seconds-max",
            "0.5",
        ]
        work_folder.parent.mkdir(parents=True, exist_ok=True)
        with (work_folder.parent / f"{work_folder.name}.log").open("ab") as log:
            environ = {**os.environ, SYSTEM_VARIABLE: str(self.folder)}
            agent = subprocess.Popen([*command, *arguments], stderr=log, stdout=log, env=environ)
        self.agents.append(agent)
        return agent

    def trainers(self) -> list[int]:
        """Living trainers, and what they started, of this system's agents."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environ = process.environ()
                ours = environ.get(SYSTEM_VARIABLE) == str(self.folder) and ATTEMPT_VARIABLE in environ
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def dataset(self, name: str, images: int = 12) -> Path:
        folder = self.folder / "datasets" / name
        (folder / "images").mkdir(parents=True)
        annotations = {}
        for index in range(images):
            Image.new("L", (8, 8), index).save(folder / "images" / f"{index:04}.png")
            annotations[f"{index:04}.png"] = str(index % 2)
        metadata = {"task": "multiclass classification", "categories": ["0", "1"], "annotations": "annotations.yaml"}
        (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
        (folder / "annotations.yaml").write_text(yaml.safe_dump(annotations))
        return folder

    def converts(self) -> bool:
        """Whether conversion works on a dataset: it holds the lock of what is being made."""
        return any(_is_locked(lock) for lock in (self.folder / "converted").glob("**/.draft-*/lock"))

    def project(self, dataset: Path | None = None) -> str:
        name = f"p{uuid.uuid4().hex[:12]}"
        source = DatasetSource(uri=(dataset or self.dataset(name)).as_uri())
        request = project_service_pb2.CreateProjectRequest(
            project=project_service_pb2.Project(training_dataset=source), project_id=name, request_id=str(uuid.uuid4())
        )
        stub = project_service_pb2_grpc.ProjectServiceStub(self.channel("scheduler"))
        return stub.CreateProject(request, timeout=20, wait_for_ready=True).project.name

    def submit(
        self, project: str, *, iterations: int = 40, data: job_spec_pb2.Data | None = None, **labels: str
    ) -> str:
        spec = job_spec_pb2.JobSpec(labels={key.replace("_", "-"): value for key, value in labels.items()}, data=data)
        spec.model.heads.add(id="digits", task=task_pb2.TASK_MULTICLASS_CLASSIFICATION)
        spec.model.backbone.name = "tiny"
        spec.trainer.iterations_max = iterations
        request = job_service_pb2.SubmitJobRequest(parent=project, spec=spec, request_id=str(uuid.uuid4()))
        return self.jobs.SubmitJob(request, timeout=20, wait_for_ready=True).job.name

    def stop_job(self, name: str, *, grace_seconds: float = 20, immediate: bool = False) -> None:
        mode = job_pb2.STOP_MODE_IMMEDIATE if immediate else job_pb2.STOP_MODE_CHECKPOINT
        request = job_service_pb2.StopJobRequest(name=name, mode=mode, request_id=str(uuid.uuid4()))
        request.grace.FromMilliseconds(round(grace_seconds * 1000))
        self.jobs.StopJob(request, timeout=20, wait_for_ready=True)

    def runners(self) -> list[runner_admin_service_pb2.Runner]:
        stub = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(self.channel("scheduler"))
        request = runner_admin_service_pb2.ListRunnersRequest(page_size=1_000)
        return list(stub.ListRunners(request, timeout=20, wait_for_ready=True).runners)

    def resume(self, name: str, *, iterations: int = 0) -> str:
        request = job_service_pb2.ResumeJobRequest(name=name, request_id=str(uuid.uuid4()))
        if iterations:
            request.trainer.iterations_max = iterations
        return self.jobs.ResumeJob(request, timeout=20, wait_for_ready=True).job.name

    @property
    def jobs(self) -> job_service_pb2_grpc.JobServiceStub:
        return job_service_pb2_grpc.JobServiceStub(self.channel("scheduler"))

    def job(self, name: str) -> job_pb2.Job:
        return self.jobs.GetJob(job_service_pb2.GetJobRequest(name=name), timeout=20, wait_for_ready=True).job

    def wait_for(self, name: str, condition: Callable[[job_pb2.Job], bool]) -> job_pb2.Job:
        """The job as it was when the condition held."""
        seen: list[job_pb2.Job] = []

        def holds() -> bool:
            seen.append(self.job(name))
            return condition(seen[-1])

        until(holds)
        return seen[-1]

    def wait_ended(self, name: str) -> job_pb2.Job:
        return self.wait_for(name, lambda job: job.state in ENDED)

    def wait_step(self, name: str, step: int) -> job_pb2.Job:
        return self.wait_for(name, lambda job: job.progress.iteration >= step)

    def lines(self, name: str, *, complete: bool = True) -> list[log_line_pb2.LogLine]:
        """All lines of an ended job; waits until metrics says that no more come, and whether they are complete."""
        stub = log_service_pb2_grpc.LogServiceStub(self.channel("metrics"))
        request = log_service_pb2.TailLogsRequest(job=name, follow=True)
        lines: list[log_line_pb2.LogLine] = []
        for message in stub.TailLogs(request, timeout=WAIT_SECONDS, wait_for_ready=True):
            lines.extend(message.batch.lines)
            if message.WhichOneof("message") == "ended":
                assert message.ended.logs_complete == complete
        return lines

    def points(self, name: str, series: str) -> list[tuple[int, float]]:
        stub = metrics_service_pb2_grpc.MetricsServiceStub(self.channel("metrics"))
        request = metrics_service_pb2.QuerySeriesRequest(job=name)
        request.selector.names.append(series)
        answer = stub.QuerySeries(request, timeout=20, wait_for_ready=True)
        assert len(answer.series) <= 1
        return [point for found in answer.series for point in zip(found.points.steps, found.points.values, strict=True)]

    def assert_once(self, job: str, steps: range) -> None:
        """Every step's point and line is stored, in order, and none twice."""
        lines = self.lines(job)  # when they are complete, the points may still be a moment behind
        assert [line.line for line in lines if line.line.startswith("step")] == [f"step {step}" for step in steps]
        until(lambda: len(self.points(job, "train/loss")) >= len(steps))
        assert [step for step, _ in self.points(job, "train/loss")] == list(steps)

    def _start(self, name: str, arguments: list[str]) -> None:
        self.services[name] = Service(name=name, folder=self.folder, arguments=arguments)
        self.services[name].start()

    def channel(self, service: str) -> grpc.Channel:
        if service not in self._channels:
            options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 300)]
            opened = grpc.insecure_channel(self.services[service].address, options=options)
            self._channels[service] = tokens.carrying(opened, self.token)
        return self._channels[service]


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def end(agent: subprocess.Popen[bytes]) -> int:
    """Drain the agent; its exit code."""
    if agent.poll() is None:
        agent.send_signal(signal.SIGTERM)
    try:
        return agent.wait(WAIT_SECONDS)
    finally:
        agent.kill()


def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(POLL_SECONDS)


def left_behind(work_folder: Path) -> list[str]:
    """What an agent that is done has not cleaned away."""
    kept = ("attempts/*", "spools/*", "ledger/*")
    return [str(path.relative_to(work_folder)) for pattern in kept for path in work_folder.glob(pattern)]
