"""What all parts of the benchmark share: one service on this machine, and the jobs that the first part fills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.metrics.client import Metrics
from tests.metrics.job_book import Job, JobBook, Scheduler, submit


@dataclass(kw_only=True)
class Stage:
    """`jobs` have 200,000 points each once `ingest` has run."""

    folder: Path
    book: JobBook
    server: Metrics
    jobs_count: int
    followers: int
    jobs: list[Job] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """The engine's folder; for others only while the server is stopped."""
        return self.server.folder / "data"

    @contextmanager
    def stopped(self) -> Iterator[Path]:
        """The engine's folder, while the server is stopped."""
        status = self.server.stop()
        assert status == 0, self.server.log_text()[-3000:]
        yield self.data
        self.server.start()


@contextmanager
def open_stage(folder: Path, *, jobs_count: int, followers: int) -> Iterator[Stage]:
    scheduler = Scheduler()
    scheduler.start()
    # All followers are one user.
    flags = ("--principal-streams-max", str(2 * followers), "--principal-processor-share", "1000")
    server = Metrics(folder / "served", scheduler.address, flags)
    server.start()
    stage = Stage(folder=folder, book=scheduler.book, server=server, jobs_count=jobs_count, followers=followers)
    stage.jobs += [submit(scheduler.book) for _ in range(jobs_count)]
    try:
        yield stage
    finally:
        if not server.process_ended():
            server.stop()
        scheduler.stop()
