"""The client that blocks: for scripts, notebooks and threads. `awaiting` is the same for event loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
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
from services.client.driver import BlockingDriver
from services.client.endpoints import Endpoints
from services.client.facts import Comparison, JobFacts
from services.client.frame import Frame
from services.client.series import Buckets, Curve, Curves

P = ParamSpec("P")
Place = TypeVar("Place")
Given = TypeVar("Given")
Made = TypeVar("Made")


class Handle(Generic[Place]):
    """Something of an installation: what operations take first."""

    def __init__(self, driver: BlockingDriver, place: Place) -> None:
        self._driver = driver
        self._place = place


def _does(operation: Callable[Concatenate[Place, P], Operation[Made]]) -> Callable[Concatenate[Handle[Place], P], Made]:
    """A method that runs the operation on its handle's place."""

    @functools.wraps(operation)
    def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return self._driver.run(operation(self._place, *args, **kwargs))

    return method


def _gives(
    operation: Callable[Concatenate[Place, P], Operation[Given]], make: Callable[[BlockingDriver, Given], Made]
) -> Callable[Concatenate[Handle[Place], P], Made]:
    """As `_does`, with the result as a handle."""

    @functools.wraps(operation)
    def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return make(self._driver, self._driver.run(operation(self._place, *args, **kwargs)))

    return method


def _reads(
    reading: Callable[Concatenate[Place, P], Reading[Given]], make: Callable[[BlockingDriver, Given], Made]
) -> Callable[Concatenate[Handle[Place], P], Iterator[Made]]:
    """A method that iterates over what the reading emits."""

    @functools.wraps(reading)
    def method(self: Handle[Place], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Made]:
        return (make(self._driver, item) for item in self._driver.iterate(reading(self._place, *args, **kwargs)))

    return method


def _opens(
    operation: Callable[P, Operation[Given]], make: Callable[[BlockingDriver, Given], Made]
) -> Callable[Concatenate[Client, P], Made]:
    """A method of the client itself."""

    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return make(self.driver, self.driver.run(operation(*args, **kwargs)))

    return method


def _as_it_is(driver: BlockingDriver, given: Given) -> Given:
    return given


def _job(driver: BlockingDriver, found: job_pb2.Job) -> Job:
    return Job(driver, found)


def _jobs(driver: BlockingDriver, found: list[job_pb2.Job]) -> Jobs:
    return Jobs(driver, found)


def _new_job(driver: BlockingDriver, answer: SubmitJobResponse) -> Job:
    return Job(driver, answer.job, warnings=answer.warnings)


class Checkpoint(Handle[str]):
    """A checkpoint by its name or alias; nothing is asked before a method is called."""

    get = _does(on_checkpoint.got)
    download = _does(on_checkpoint.downloaded)


class Checkpoints(Handle[str]):
    """A job's checkpoints: `best`, `last`, `final`, or one by its id."""

    list = _does(on_checkpoint.listed)

    def __getitem__(self, checkpoint_id: str) -> Checkpoint:
        return Checkpoint(self._driver, f"{self._place}/checkpoints/{checkpoint_id}")

    def __iter__(self) -> Iterator[job_pb2.Checkpoint]:
        return iter(self.list())

    @property
    def best(self) -> Checkpoint:
        """The one with the best value of the selection metric."""
        return self["best"]

    @property
    def last(self) -> Checkpoint:
        """The newest one."""
        return self["last"]

    @property
    def final(self) -> Checkpoint:
        """The model of a completed job."""
        return self["final"]


class Series(Handle[str]):
    """Series of a job that match patterns, exact when they are looked at: every point, NaN kept. They are read once."""

    def __init__(self, driver: BlockingDriver, job_name: str, names: tuple[str, ...]) -> None:
        super().__init__(driver, job_name)
        self._names = names

    @functools.cached_property
    def curves(self) -> Curves:
        """All of them, point by point."""
        return self._driver.run(on_series.exact(self._place, self._names))

    def buckets(self, n: int = 200) -> Buckets:
        """At most `n` buckets of each, for drawing."""
        return self._driver.run(on_series.in_buckets(self._place, self._names, n))

    def frame(self) -> Frame:
        """One row a point: job, series, context, step, time, value."""
        return self.curves.frame()

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    def __getitem__(self, label: str) -> Curve:
        return self.curves[label]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.curves.__arrow_c_stream__(requested_schema)


class Job(JobFacts, Handle[str]):
    """A job. Its facts are as they were when it was read: `refresh` reads it again, `watch` and `wait` follow it."""

    def __init__(self, driver: BlockingDriver, proto: job_pb2.Job, warnings: Iterable[str] = ()) -> None:
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

    def series(self, *names: str) -> Series:
        """The series of these names, with `*` for any text; all without a name."""
        return Series(self._driver, self._place, names)

    def compare(self, *others: Job, names: Iterable[str] = ()) -> Comparison:
        """This job and others side by side: where their configurations differ, and the series of these names."""
        jobs = [each.name for each in (self, *others)]
        return Comparison(self._driver.run(on_series.compared(jobs, list(names))))

    @property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self._driver, self._place)


class Jobs(tuple[Job, ...]):
    """Several jobs."""

    _driver: BlockingDriver

    def __new__(cls, driver: BlockingDriver, found: Iterable[job_pb2.Job]) -> Jobs:  # noqa: D102
        made = super().__new__(cls, (Job(driver, proto) for proto in found))
        made._driver = driver
        return made

    def frame(self, config: Iterable[str] = (), best: Iterable[str] = ()) -> Frame:
        """One row a job; `config` are paths such as `trainer.batch_size`, `best` series such as `valid/loss`."""
        return self._driver.run(on_series.jobs_frame([each.proto for each in self], config, best))

    def compare(self, *names: str) -> Comparison:
        """Where their configurations differ, and these series side by side."""
        return Comparison(self._driver.run(on_series.compared([each.name for each in self], names)))


class Project(Handle[str]):
    """A project; `proto` has its facts."""

    def __init__(self, driver: BlockingDriver, proto: ProjectProto) -> None:
        super().__init__(driver, proto.name)
        self.proto = proto

    submit = _gives(on_job.submitted, _new_job)
    jobs = _gives(on_job.listed, _jobs)
    delete = _does(on_project.deleted)

    @property
    def name(self) -> str:
        """`projects/digits`."""
        return self.proto.name


class Dataset(Handle[DatasetSource]):
    """A dataset where it lies."""

    inspect = _does(on_dataset.inspected)
    validate = _does(on_dataset.validated)
    plan = _does(on_dataset.planned)
    convert = _does(on_dataset.converted)


class Client:
    """An installation. A context manager closes its connections; it may be shared by threads."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.driver = BlockingDriver(endpoints)

    submit = _opens(on_job.submitted, _new_job)
    job = _opens(on_job.got, _job)
    jobs = _opens(on_job.listed, _jobs)
    project = _opens(on_project.got, Project)
    create_project = _opens(on_project.created, Project)

    def projects(self) -> list[Project]:
        """All projects by name."""
        return [Project(self.driver, found) for found in self.driver.run(on_project.listed())]

    def dataset(self, place: str | Path | DatasetSource, **settings: Any) -> Dataset:
        """A dataset: a folder, `file:///…` or `s3://bucket/prefix`, with `endpoint_url`, `region`, `credentials`."""
        return Dataset(self.driver, on_dataset.source_of(place, **settings))

    def run(self, operation: Operation[Made]) -> Made:
        """The result of any operation of `services.client`, such as `ask(JOBS.GetJob, request)`."""
        return self.driver.run(operation)

    def iterate(self, reading: Reading[Given]) -> Iterator[Given]:
        """What any reading of `services.client` emits, such as `read(CONVERSION.ValidateDataset, request)`."""
        return self.driver.iterate(reading)

    def close(self) -> None:
        """Close the connections."""
        self.driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
