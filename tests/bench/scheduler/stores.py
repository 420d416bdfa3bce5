"""What the stores alone do, without gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from sqlalchemy import Engine

from services.chassis.ids import new_id
from services.scheduler.__main__ import tune_interpreter
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.lease import AsideLimits, Report
from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs
from services.scheduler.domain.project import SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import Submission
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.placing import Placing, WaitingCall
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.queue import QueueLimits
from services.scheduler.store.runners import RunnerStore
from services.scheduler.wire.event import fact_to_event
from tests.bench.result import Result
from tests.bench.scheduler.stage import CALLERS, Place, rate
from tests.bench.turns import Turns, in_turns
from tests.scheduler.recording import Executed, record

OURS, BARE = "ours", "bare"
SUBMITS = 6_400
ROUNDS = 9
CLAIMS = 2_000
IDLE_CALLS = 500
TASKS = frozenset({"MULTICLASS_CLASSIFICATION"})
SPEC = b"x" * 300
RETRY = RetryLimits(
    lost_attempts_max=3,
    faults_max=5,
    hand_backs_max=20,
    retry_seconds_first=10.0,
    retry_seconds_max=600.0,
    avoid_seconds=600.0,
)
ASIDE = AsideLimits(failures_max=3, soon_seconds=600.0, seconds_first=300.0, seconds_max=7_200.0)


class Stores:
    """The stores over a new database."""

    def __init__(self, url: str, *, overtakes_max: int = 20) -> None:
        self.database = Database(
            url,
            encode_fact=fact_to_event,
            new_id=new_id,
            dispatcher=Dispatcher(overtakes_max=overtakes_max),
        )
        placing = Placing(lease_seconds=25.0)
        self.projects = ProjectStore(self.database)
        self.jobs = JobStore(self.database, queue_limits=QueueLimits())
        self.runners = RunnerStore(self.database, placing, lease_seconds=25.0, retry=RETRY, aside=ASIDE)
        self.database.on_reload.append(placing.reload)
        self.database.before_commit.append(placing.place)

    async def create_project(self, project_id: str) -> None:
        nobody = Request(request_id="", digest=b"")
        source = SourceChange(uri="file:///data")
        await self.projects.create(
            nobody, lambda _: b"", project_id=project_id, display_name="", training=source, validation=None
        )

    async def submit(self, request: Request, submission: Submission) -> None:
        await self.jobs.submit(request, lambda view: view.job.uid.encode(), submission)

    async def submit_to(self, project_id: str, needs: Needs | None = None) -> None:
        await self.submit(new_request(), submission(project_id, needs))

    async def idle(self, runner_id: str, *, waits: bool = False, capabilities: Capabilities | None = None) -> Any:
        report = report_of(runner_id, capabilities or Capabilities(tasks=TASKS))
        return await self.runners.synchronize(report, WaitingCall() if waits else None)


def new_request() -> Request:
    return Request(request_id=uuid.uuid4().hex, digest=b"digest")


def submission(project_id: str, needs: Needs | None = None) -> Submission:
    return Submission(
        project_id=project_id,
        job_id="",
        creator="bench",
        spec=SPEC,
        needs=needs or Needs(tasks=TASKS),
        iterations_max=100,
    )


def report_of(runner_id: str, capabilities: Capabilities) -> Report:
    """Of an idle runner, newer than all before."""
    return Report(
        runner_id=runner_id,
        session=runner_id,
        sequence=time.monotonic_ns(),
        capabilities=capabilities,
        wait_seconds=8.0,
    )


Calls: TypeAlias = Callable[[Stores], Awaitable[Callable[[], Awaitable[object]]]]
"""Prepares the stores; gives the call that is measured."""


async def submits(place: Place) -> AsyncIterator[Result]:
    """To eight projects, in turn."""

    async def prepared(stores: Stores) -> Callable[[], Awaitable[object]]:
        for number in range(8):
            await stores.create_project(f"p{number}")
        asked = iter([(new_request(), submission(f"p{number % 8}")) for number in range(SUBMITS)])
        return lambda: stores.submit(*next(asked))

    found = await _beside_bare(place, prepared, SUBMITS)
    name = f"{place.kind}: submits in the store, groups of {CALLERS}, of a bare loop of the same statements"
    value, ratio = SUBMITS / found.least(OURS), found.ratio(BARE, OURS)
    yield Result(name=name, value=value, unit="1/s", bar="ratio >= 0.5", ratio=ratio)


async def claims(place: Place) -> AsyncIterator[Result]:
    """Idle runners that come one after the other, each to a project of its own."""

    async def prepared(stores: Stores) -> Callable[[], Awaitable[object]]:
        for start in range(0, CLAIMS, 250):
            await asyncio.gather(*(stores.create_project(f"p{n}") for n in range(start, start + 250)))
            await asyncio.gather(*(stores.submit_to(f"p{n}") for n in range(start, start + 250)))
        numbers = iter(range(CLAIMS))

        async def claim() -> None:
            standing = await stores.idle(f"r{next(numbers)}")
            assert standing.attempt is not None, "there is a job for each"

        return claim

    found = await _beside_bare(place, prepared, CLAIMS)
    name = f"{place.kind}: claims in the store, of a bare loop of the same statements"
    yield Result(name=name, value=CLAIMS / found.least(OURS), unit="1/s", bar=">= 1000", ratio=found.ratio(BARE, OURS))


async def _beside_bare(place: Place, prepared: Calls, number: int) -> Turns:
    """So many calls, in turns with a bare loop of the very statements that they are in another run: what records them
    takes longer than the store.
    """
    tune_interpreter()
    stores = Stores(place.new_database(f"recorded_{uuid.uuid4().hex}"))
    groups = record(stores.database.writing)
    before = 0

    def begin() -> None:
        nonlocal before
        before = len(groups) - 1

    await _seconds(stores, prepared, number, begin)

    def ours() -> float:
        return asyncio.run(_seconds(Stores(place.new_database(f"ours_{uuid.uuid4().hex}")), prepared, number))

    works = {OURS: ours, BARE: lambda: _replay(place, groups, before)}
    return await asyncio.to_thread(in_turns, works, ROUNDS)


async def _seconds(stores: Stores, prepared: Calls, number: int, begin: Callable[[], None] = lambda: None) -> float:
    stores.database.start()
    try:
        call = await prepared(stores)
        begin()
        return number / await rate(call, number=number)
    finally:
        stores.database.close()


def _replay(place: Place, groups: list[list[Executed]], before: int) -> float:
    """The seconds that the groups' statements take but for the first ones, a group a transaction, on a new database."""
    stores = Stores(place.new_database(f"bare_{uuid.uuid4().hex}"))
    engine = stores.database.writing
    try:
        _play(engine, groups[:before])
        began = time.perf_counter()
        _play(engine, groups[before:])
        return time.perf_counter() - began
    finally:
        engine.dispose()


def _play(engine: Engine, groups: list[list[Executed]]) -> None:
    with engine.connect() as connection:
        for group in groups:
            root = connection.begin()
            driver: Any = connection.connection.driver_connection
            runs = [(waits, list(run)) for waits, run in itertools.groupby(group, key=lambda each: each.waits)]
            for index, (waits, run) in enumerate(runs):
                with contextlib.nullcontext() if waits else driver.pipeline():
                    cursors = [_execute(driver.cursor(), each) for each in run]
                    if index + 1 == len(runs):
                        root.commit()
                for cursor in () if waits else cursors:
                    if cursor.description is not None:
                        cursor.fetchall()


def _execute(cursor: Any, executed: Executed) -> Any:
    """Run it, and where it is waited for take its rows."""
    if executed.statement.startswith(("BEGIN", "PRAGMA")):
        return cursor
    run = cursor.executemany if executed.many else cursor.execute
    run(executed.statement, executed.parameters)
    if executed.waits and cursor.description is not None:
        cursor.fetchall()
    return cursor


async def idle_calls(place: Place) -> AsyncIterator[Result]:
    """What an idle call costs the writer among 300 runners, 20 kept slots and 64 kinds that nobody can serve."""
    stores = Stores(place.new_database("store_idle"), overtakes_max=0)
    stores.database.start()
    large = Capabilities(tasks=TASKS, gpus=(Gpu(model="large", memory_bytes=80 * GIB),))
    try:
        await stores.create_project("busy")
        await stores.submit_to("busy", Needs(gpus=1, tasks=TASKS))
        assert (await stores.idle("large", capabilities=large)).attempt is not None
        for number in range(20):
            await stores.create_project(f"kept{number}")
            await stores.submit_to(f"kept{number}", Needs(gpus=1, tasks=TASKS))
            await stores.submit_to(f"kept{number}")
        for number in range(64):
            await stores.create_project(f"never{number}")
            await stores.submit_to(f"never{number}", Needs(tasks=frozenset({f"A{number:02}"})))
        standings = [await stores.idle(f"r{number}", waits=True) for number in range(300)]
        assert all(standing.attempt is None for standing in standings)
        name = f"{place.kind}: an idle call among 300 runners, 20 kept slots, 64 kinds"
        numbers = iter(range(10**9))

        async def first_call() -> None:
            await stores.idle(f"r{next(numbers) % 300}", waits=True)

        async def again() -> None:
            standing = standings[next(numbers) % 300]
            report = report_of(standing.runner.runner_id, standing.runner.capabilities)
            await stores.runners.wait_again(standing, report, WaitingCall())

        yield Result(name=f"{name}, of the writer", value=await _writer_ms(stores, first_call), unit="ms", bar="<= 2")
        yield Result(name=f"{name}, repeated", value=await _writer_ms(stores, again), unit="ms", bar="<= 2")
    finally:
        stores.database.close()


async def _writer_ms(stores: Stores, call: Any) -> float:
    """Processor time of the writer's thread for a call that comes alone."""
    began = await stores.database.write(lambda _transaction: time.thread_time())
    for _ in range(IDLE_CALLS):
        await call()
    ended = await stores.database.write(lambda _transaction: time.thread_time())
    return (ended - began) / IDLE_CALLS * 1_000
