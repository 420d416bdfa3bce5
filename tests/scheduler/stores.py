"""Every store over one database with a clock that stands still, and what tests put into them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import structlog
from sqlalchemy import text

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
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.database import Database
from services.scheduler.store.forgetting import KeepingLimits
from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.leader import LeaderLimits
from services.scheduler.store.orphans import OrphanRows
from services.scheduler.store.outbox import OutboxStore
from services.scheduler.store.placing import Placing, WaitingCall
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.queue import QueueLimits
from services.scheduler.store.restart import WaitLimits
from services.scheduler.store.runners import RunnerStore, Standing
from services.scheduler.store.upkeep import Upkeep, UpkeepLimits
from services.scheduler.wire.event import fact_to_event
from tests.scheduler.clock import SECOND_US, Clock

# As the services write them: a traceback with local variables takes seconds, and a transaction would wait for it.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

CLASSIFIER = Capabilities(tasks=frozenset({"MULTICLASS_CLASSIFICATION"}))
CLASSIFICATION = Needs(tasks=frozenset({"MULTICLASS_CLASSIFICATION"}))


@contextlib.contextmanager
def one_commit_without_an_answer(database):
    """The next transaction is on disk, and its writer is told that it is not."""
    dialect = database.writing.dialect
    commit = dialect.do_commit

    def commit_and_fail(connection) -> None:
        dialect.do_commit = commit
        commit(connection)
        raise dialect.loaded_dbapi.OperationalError("disk I/O error")

    dialect.do_commit = commit_and_fail
    try:
        yield
    finally:
        dialect.do_commit = commit


@contextlib.contextmanager
def failing_commits(database):
    """No transaction gets to disk."""
    dialect = database.writing.dialect
    commit = dialect.do_commit

    def fail(_connection) -> None:
        raise dialect.loaded_dbapi.OperationalError("disk is full")

    dialect.do_commit = fail
    try:
        yield
    finally:
        dialect.do_commit = commit


WRITER_SECONDS_MAX = 60.0


@contextlib.asynccontextmanager
async def one_transaction(stores: Stores) -> AsyncIterator[None]:
    """What is asked inside waits for the writer, which then takes it all at once."""
    has_it, goes_on = threading.Event(), threading.Event()

    def hold(_transaction: object) -> bool:
        has_it.set()
        return goes_on.wait(WRITER_SECONDS_MAX)

    first = asyncio.ensure_future(stores.database.write(hold, control=True))
    assert await asyncio.to_thread(has_it.wait, WRITER_SECONDS_MAX), "the writer has it alone"
    try:
        yield
        await asyncio.sleep(0)
    finally:
        goes_on.set()
        assert await first


class Stores:
    """Every store over one database, with short names for what tests do all the time."""

    LEASE_SECONDS = 25.0
    RETRY = RetryLimits(
        lost_attempts_max=3,
        faults_max=3,
        hand_backs_max=5,
        retry_seconds_first=10.0,
        retry_seconds_max=30.0,
        avoid_seconds=300.0,
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
        limits: DatabaseLimits | None = None,
        leader_limits: LeaderLimits | None = None,
    ) -> None:
        self.clock = clock or Clock()
        numbers = ids or itertools.count(1)
        self.new_id = lambda: f"{next(numbers):032x}"
        self.dispatcher = Dispatcher(overtakes_max=overtakes_max)
        self.database = Database(
            url,
            encode_fact=fact_to_event,
            new_id=self.new_id,
            dispatcher=self.dispatcher,
            clock=self.clock,
            limits=limits,
            leader_limits=leader_limits,
        )
        self.placing = Placing(lease_seconds=self.LEASE_SECONDS)
        self.projects = ProjectStore(self.database)
        self.jobs = JobStore(self.database, queue_limits=QueueLimits())
        self.runners = RunnerStore(
            self.database, self.placing, lease_seconds=self.LEASE_SECONDS, retry=self.RETRY, aside=self.ASIDE
        )
        self.checkpoints = CheckpointRows(self.database)
        self.outbox = OutboxStore(self.database)
        self.orphans = OrphanRows(self.database)
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
                keeping=KeepingLimits(
                    request_id_hours=1.0, removed_job_hours=1.0, outbox_days_max=1.0, lost_runner_days=30.0
                ),
                waits=WaitLimits(
                    retry_seconds_max=30.0, avoid_seconds=300.0, put_aside_seconds_max=600.0, adopt_seconds_max=3_600.0
                ),
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
        for orphan in await self.orphans.due(100):
            await self.orphans.adopt(orphan.key, found.get(orphan.key.job_uid, []))

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
        while doomed := await self.projects.doomed():
            await self.projects.purge([job.uid for job in doomed])
        await self.projects.purge([])

    async def facts(self) -> list[str]:
        """The last words of the subjects of all events, in order."""
        return [event.subject.rpartition(".")[2] for event in await self.outbox.oldest(10_000)]

    async def uids(self) -> list[str]:
        """Those of all jobs, of deleted projects too, in order."""
        query = text("SELECT uid FROM jobs ORDER BY uid")
        return await self.database.read(lambda connection: list(connection.execute(query).scalars()))

    async def when(self, condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + seconds
        while not await condition():
            assert time.monotonic() < deadline, "it never came to hold"
            await asyncio.sleep(0.02)

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
