"""The client's two faces, from one definition: for scripts, notebooks and threads it blocks, for event loops it awaits.

What a class of both faces is stands in one with an underscore; `Job` and `AsyncJob` are it, each with its driver, and
with what only one of the two can be.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_service_pb2 import SubmitJobResponse
from sihlai.scheduler.v1.project_service_pb2 import Project as ProjectProto

from services.chassis.endpoints import Endpoints
from services.client import checkpoint as on_checkpoint
from services.client import comparison as on_comparison
from services.client import dataset as on_dataset
from services.client import job as on_job
from services.client import project as on_project
from services.client import series as on_series
from services.client.call import Item, OperationOf, P, Reading, ReadingOf, Result
from services.client.driver import AwaitingDriver, BlockingDriver
from services.client.job import JobFacts
from services.client.method import Does, Driver, Gives, Handle, Kind, Reads, anywhere
from services.client.series import Curve, Curves

JOB = Kind[job_pb2.Job, "Job", "AsyncJob"](lambda *found: Job(*found), lambda *found: AsyncJob(*found))
NEW_JOB = Kind[SubmitJobResponse, "Job", "AsyncJob"](
    lambda driver, answer: Job(driver, answer.job, answer.warnings),
    lambda driver, answer: AsyncJob(driver, answer.job, answer.warnings),
)
JOBS = Kind[list[job_pb2.Job], "Jobs", "AsyncJobs"](lambda *found: Jobs(*found), lambda *found: AsyncJobs(*found))
PROJECT = Kind[ProjectProto, "Project[BlockingDriver]", "Project[AwaitingDriver]"](
    lambda *found: Project(*found), lambda *found: Project(*found)
)
PROJECTS = Kind[list[ProjectProto], list["Project[BlockingDriver]"], list["Project[AwaitingDriver]"]](
    lambda driver, found: [Project(driver, each) for each in found],
    lambda driver, found: [Project(driver, each) for each in found],
)
LINE = Kind[LogLine, LogLine, LogLine](lambda driver, line: line, lambda driver, line: line)


class Checkpoint(Handle[Driver, str]):
    """A checkpoint by its name or alias; nothing is asked before a method is called."""

    get = Does(on_checkpoint.got)
    download = Does(on_checkpoint.downloaded)


class Checkpoints(Handle[Driver, str]):
    """A job's checkpoints: `best`, `last`, `final`, or one by its id."""

    list = Does(on_checkpoint.listed)

    def __getitem__(self, checkpoint_id: str) -> Checkpoint[Driver]:
        return Checkpoint(self.driver, f"{self.place}/checkpoints/{checkpoint_id}")

    def __iter__(self: Checkpoints[BlockingDriver]) -> Iterator[job_pb2.Checkpoint]:
        return iter(self.list())

    @property
    def best(self) -> Checkpoint[Driver]:
        """The one with the best value of the selection metric."""
        return self["best"]

    @property
    def last(self) -> Checkpoint[Driver]:
        """The newest one."""
        return self["last"]

    @property
    def final(self) -> Checkpoint[Driver]:
        """The model of a completed job."""
        return self["final"]


class _Series(Handle[Driver, on_series.Selection]):
    buckets = Does(on_series.in_buckets)


class Series(_Series[BlockingDriver], Curves):
    """Series of a job that match patterns, exact when they are looked at: every point, NaN kept. They are read once."""

    @functools.cached_property
    def curves(self) -> Curves:
        """All of them, point by point."""
        return self.driver.run(on_series.exact(self.driver, self.place))

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)


class AsyncSeries(_Series[AwaitingDriver]):
    """Series of a job that match patterns. Awaited they are exact: every point, NaN kept."""

    def __await__(self) -> Generator[Any, None, Curves]:
        return on_series.exact(self.driver, self.place).__await__()


class _Job(JobFacts, Handle[Driver, str]):
    def __init__(self, driver: Driver, proto: job_pb2.Job, warnings: Iterable[str] = ()) -> None:
        super().__init__(driver, proto.name)
        self.proto = proto
        self.warnings = tuple(warnings)
        """What was probably not meant when it was submitted."""

    refresh = Gives(on_job.got, JOB)
    wait = Gives(on_job.waited, JOB)
    watch = Reads(on_job.watched, JOB)
    log = Reads(on_job.log_lines, LINE)
    stop = Gives(on_job.stopped, JOB)
    resume = Gives(on_job.resumed, JOB)
    delete = Does(on_job.deleted)
    compare = Does(on_comparison.of_job)

    @property
    def checkpoints(self) -> Checkpoints[Driver]:
        """Its checkpoints."""
        return Checkpoints(self.driver, self.place)


class Job(_Job[BlockingDriver]):
    """A job. Its facts are as they were when it was read: `refresh` reads it again, `watch` and `wait` follow it."""

    def series(self, *names: str) -> Series:
        """The series of these names, with `*` for any text; all without a name."""
        return Series(self.driver, on_series.Selection(self.place, names))


class AsyncJob(_Job[AwaitingDriver]):
    """A job. Its facts are as they were when it was read: `refresh` reads it again, `watch` and `wait` follow it."""

    def series(self, *names: str) -> AsyncSeries:
        """The series of these names, with `*` for any text; all without a name."""
        return AsyncSeries(self.driver, on_series.Selection(self.place, names))


class _Jobs(Handle[Driver, list[job_pb2.Job]]):
    frame = Does(on_series.jobs_frame)
    compare = Does(on_comparison.of_jobs)


class Jobs(_Jobs[BlockingDriver], tuple[Job, ...]):
    """Several jobs."""

    def __new__(cls, driver: BlockingDriver, found: list[job_pb2.Job]) -> Jobs:  # noqa: D102
        return tuple.__new__(cls, (Job(driver, proto) for proto in found))


class AsyncJobs(_Jobs[AwaitingDriver], tuple[AsyncJob, ...]):
    """Several jobs."""

    def __new__(cls, driver: AwaitingDriver, found: list[job_pb2.Job]) -> AsyncJobs:  # noqa: D102
        return tuple.__new__(cls, (AsyncJob(driver, proto) for proto in found))


class Project(Handle[Driver, str]):
    """A project; `proto` has its facts."""

    def __init__(self, driver: Driver, proto: ProjectProto) -> None:
        super().__init__(driver, proto.name)
        self.proto = proto

    submit = Gives(on_job.submitted, NEW_JOB)
    jobs = Gives(on_job.listed, JOBS)
    delete = Does(on_project.deleted)

    @property
    def name(self) -> str:
        """`projects/digits`."""
        return self.proto.name


class Dataset(Handle[Driver, DatasetSource]):
    """A dataset where it lies."""

    inspect = Does(on_dataset.inspected)
    validate = Does(on_dataset.validated)
    plan = Does(on_dataset.planned)
    convert = Does(on_dataset.converted)
    images = Does(on_dataset.images_of)


class _Client(Handle[Driver, None]):
    submit = Gives(anywhere(on_job.submitted), NEW_JOB)
    job = Gives(anywhere(on_job.got), JOB)
    jobs = Gives(anywhere(on_job.listed), JOBS)
    project = Gives(anywhere(on_project.got), PROJECT)
    projects = Gives(anywhere(on_project.listed), PROJECTS)
    create_project = Gives(anywhere(on_project.created), PROJECT)

    def dataset(self, place: str | Path | DatasetSource, **settings: Any) -> Dataset[Driver]:
        """A dataset: a folder, `file:///…` or `s3://bucket/prefix`, with `endpoint_url`, `region`, `credentials`."""
        return Dataset(self.driver, on_dataset.source_of(place, **settings))


class Client(_Client[BlockingDriver]):
    """An installation, for scripts, notebooks and threads, which may share it. A context manager closes it."""

    def __init__(self, endpoints: Endpoints) -> None:
        super().__init__(BlockingDriver(endpoints), None)

    def run(self, operation: OperationOf[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        """The result of any operation of `services.client`: `run(ask, JOBS.GetJob, request)`."""
        return self.driver.run(operation(self.driver, *args, **kwargs))

    def iterate(self, reading: ReadingOf[P, Item], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        """What any reading of `services.client` gives: `iterate(read, CONVERSION.ValidateDataset, request)`."""
        return self.driver.iterate(reading(self.driver, *args, **kwargs))

    def close(self) -> None:
        """Close the connections."""
        self.driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncClient(_Client[AwaitingDriver]):
    """An installation, for the event loop that it is first used in. An asynchronous context manager closes it."""

    def __init__(self, endpoints: Endpoints) -> None:
        super().__init__(AwaitingDriver(endpoints), None)

    async def run(self, operation: OperationOf[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        """The result of any operation of `services.client`: `run(ask, JOBS.GetJob, request)`."""
        return await operation(self.driver, *args, **kwargs)

    def iterate(self, reading: ReadingOf[P, Item], /, *args: P.args, **kwargs: P.kwargs) -> Reading[Item]:
        """What any reading of `services.client` gives: `iterate(read, CONVERSION.ValidateDataset, request)`."""
        return reading(self.driver, *args, **kwargs)

    async def close(self) -> None:
        """Close the connections."""
        await self.driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
