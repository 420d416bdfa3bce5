"""The client for event loops. `blocking` is the same for scripts, notebooks and threads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_service_pb2 import SubmitJobResponse
from sihlai.scheduler.v1.project_service_pb2 import Project as ProjectProto

from services.client import checkpoint as on_checkpoint
from services.client import dataset as on_dataset
from services.client import job as on_job
from services.client import project as on_project
from services.client import series as on_series
from services.client.call import Operation, Reading
from services.client.driver import AwaitingDriver
from services.client.endpoints import Endpoints
from services.client.facts import Comparison, JobFacts
from services.client.frame import Frame
from services.client.series import Buckets, Curves

P = ParamSpec("P")
Place = TypeVar("Place")
Given = TypeVar("Given")
Made = TypeVar("Made")


class Handle(Generic[Place]):
    """Something of an installation: what operations take first."""

    def __init__(self, driver: AwaitingDriver, place: Place) -> None:
        self._driver = driver
        self._place = place


def _does(
    operation: Callable[Concatenate[Place, P], Operation[Made]],
) -> Callable[Concatenate[Handle[Place], P], Coroutine[Any, Any, Made]]:
    """A method that runs the operation on its handle's place."""

    @functools.wraps(operation)
    async def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return await self._driver.run(operation(self._place, *args, **kwargs))

    return method


def _gives(
    operation: Callable[Concatenate[Place, P], Operation[Given]], make: Callable[[AwaitingDriver, Given], Made]
) -> Callable[Concatenate[Handle[Place], P], Coroutine[Any, Any, Made]]:
    """As `_does`, with the result as a handle."""

    @functools.wraps(operation)
    async def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return make(self._driver, await self._driver.run(operation(self._place, *args, **kwargs)))

    return method


def _reads(
    reading: Callable[Concatenate[Place, P], Reading[Given]], make: Callable[[AwaitingDriver, Given], Made]
) -> Callable[Concatenate[Handle[Place], P], AsyncIterator[Made]]:
    """A method that iterates over what the reading emits."""

    @functools.wraps(reading)
    async def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Made]:
        async with contextlib.aclosing(self._driver.iterate(reading(self._place, *args, **kwargs))) as items:
            async for item in items:
                yield make(self._driver, item)

    return method


def _opens(
    operation: Callable[P, Operation[Given]], make: Callable[[AwaitingDriver, Given], Made]
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Made]]:
    """A method of the client itself."""

    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return make(self.driver, await self.driver.run(operation(*args, **kwargs)))

    return method


def _as_it_is(driver: AwaitingDriver, given: Given) -> Given:
    return given


def _job(driver: AwaitingDriver, found: job_pb2.Job) -> AsyncJob:
    return AsyncJob(driver, found)


def _jobs(driver: AwaitingDriver, found: list[job_pb2.Job]) -> AsyncJobs:
    return AsyncJobs(driver, found)


def _new_job(driver: AwaitingDriver, answer: SubmitJobResponse) -> AsyncJob:
    return AsyncJob(driver, answer.job, warnings=answer.warnings)


class AsyncCheckpoint(Handle[str]):
    """A checkpoint by its name or alias; nothing is asked before a method is called."""

    get = _does(on_checkpoint.got)
    download = _does(on_checkpoint.downloaded)


class AsyncCheckpoints(Handle[str]):
    """A job's checkpoints: `best`, `last`, `final`, or one by its id."""

    list = _does(on_checkpoint.listed)

    def __getitem__(self, checkpoint_id: str) -> AsyncCheckpoint:
        return AsyncCheckpoint(self._driver, f"{self._place}/checkpoints/{checkpoint_id}")

    @property
    def best(self) -> AsyncCheckpoint:
        """The one with the best value of the selection metric."""
        return self["best"]

    @property
    def last(self) -> AsyncCheckpoint:
        """The newest one."""
        return self["last"]

    @property
    def final(self) -> AsyncCheckpoint:
        """The model of a completed job."""
        return self["final"]


class AsyncSeries(Handle[str]):
    """Series of a job that match patterns. Awaited they are exact: every point, NaN kept."""

    def __init__(self, driver: AwaitingDriver, job_name: str, names: tuple[str, ...]) -> None:
        super().__init__(driver, job_name)
        self._names = names

    def __await__(self) -> Generator[Any, None, Curves]:
        return self._driver.run(on_series.exact(self._place, self._names)).__await__()

    async def buckets(self, n: int = 200) -> Buckets:
        """At most `n` buckets of each, for drawing."""
        return await self._driver.run(on_series.in_buckets(self._place, self._names, n))


class AsyncJob(JobFacts, Handle[str]):
    """A job. Its facts are as they were when it was read: `refresh` reads it again, `watch` and `wait` follow it."""

    def __init__(self, driver: AwaitingDriver, proto: job_pb2.Job, warnings: Iterable[str] = ()) -> None:
        super().__init__(driver, proto.name)
        self.proto = proto
        self.warnings = tuple(warnings)
        """What was probably not meant when it was submitted."""

    refresh = _gives(on_job.got, _job)
    wait = _gives(on_job.waited, _job)
    watch = _reads(on_job.watched, _job)
    log = _reads(on_job.log_lines, _as_it_is)
    stop = _gives(on_job.stopped, _job)
    resume = _gives(on_job.resumed, _job)
    delete = _does(on_job.deleted)

    def series(self, *names: str) -> AsyncSeries:
        """The series of these names, with `*` for any text; all without a name."""
        return AsyncSeries(self._driver, self._place, names)

    async def compare(self, *others: AsyncJob, names: Iterable[str] = ()) -> Comparison:
        """This job and others side by side: where their configurations differ, and the series of these names."""
        jobs = [each.name for each in (self, *others)]
        return Comparison(await self._driver.run(on_series.compared(jobs, list(names))))

    @property
    def checkpoints(self) -> AsyncCheckpoints:
        """Its checkpoints."""
        return AsyncCheckpoints(self._driver, self._place)


class AsyncJobs(tuple[AsyncJob, ...]):
    """Several jobs."""

    _driver: AwaitingDriver

    def __new__(cls, driver: AwaitingDriver, found: Iterable[job_pb2.Job]) -> AsyncJobs:  # noqa: D102
        made = super().__new__(cls, (AsyncJob(driver, proto) for proto in found))
        made._driver = driver
        return made

    async def frame(self, config: Iterable[str] = (), best: Iterable[str] = ()) -> Frame:
        """One row a job; `config` are paths such as `trainer.batch_size`, `best` series such as `valid/loss`."""
        return await self._driver.run(on_series.jobs_frame([each.proto for each in self], config, best))

    async def compare(self, *names: str) -> Comparison:
        """Where their configurations differ, and these series side by side."""
        return Comparison(await self._driver.run(on_series.compared([each.name for each in self], names)))


class AsyncProject(Handle[str]):
    """A project; `proto` has its facts."""

    def __init__(self, driver: AwaitingDriver, proto: ProjectProto) -> None:
        super().__init__(driver, proto.name)
        self.proto = proto

    submit = _gives(on_job.submitted, _new_job)
    jobs = _gives(on_job.listed, _jobs)
    delete = _does(on_project.deleted)

    @property
    def name(self) -> str:
        """`projects/digits`."""
        return self.proto.name


class AsyncDataset(Handle[DatasetSource]):
    """A dataset where it lies."""

    inspect = _does(on_dataset.inspected)
    validate = _does(on_dataset.validated)
    plan = _does(on_dataset.planned)
    convert = _does(on_dataset.converted)


class AsyncClient:
    """An installation. A context manager closes its connections. It belongs to one event loop."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.driver = AwaitingDriver(endpoints)

    submit = _opens(on_job.submitted, _new_job)
    job = _opens(on_job.got, _job)
    jobs = _opens(on_job.listed, _jobs)
    project = _opens(on_project.got, AsyncProject)
    create_project = _opens(on_project.created, AsyncProject)

    async def projects(self) -> list[AsyncProject]:
        """All projects by name."""
        return [AsyncProject(self.driver, found) for found in await self.driver.run(on_project.listed())]

    def dataset(self, place: str | Path | DatasetSource, **settings: Any) -> AsyncDataset:
        """A dataset: a folder, `file:///…` or `s3://bucket/prefix`, with `endpoint_url`, `region`, `credentials`."""
        return AsyncDataset(self.driver, on_dataset.source_of(place, **settings))

    async def run(self, operation: Operation[Made]) -> Made:
        """The result of any operation of `services.client`, such as `ask(JOBS.GetJob, request)`."""
        return await self.driver.run(operation)

    def iterate(self, reading: Reading[Given]) -> AsyncGenerator[Given, None]:
        """What any reading of `services.client` emits, such as `read(CONVERSION.ValidateDataset, request)`."""
        return self.driver.iterate(reading)

    async def close(self) -> None:
        """Close the connections."""
        await self.driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
