"""A recorder on a real spool, and how tests wait."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sihlai.metrics.v1 import ingest_service_pb2 as ingest

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk, SpoolLimits
from runner.agent.telemetry.spool.reader import SpoolReader
from runner.agent.telemetry.spool.segment import Record
from runner.agent.telemetry.spool.writer_spool import WriterSpool

KEY = AttemptKey(job_uid="0197", epoch=3)
LIMITS = SpoolLimits(
    bytes_max=10_000_000,
    disk_free_bytes_min=0,
    segment_bytes_max=4_096,
    last_lines_bytes=4_096,
    waiting_bytes_max=1_000_000,
    stall_seconds_max=5.0,
    batch_points_min=200,
    batch_seconds_max=0.01,
)
SECONDS_MAX = 60.0


class Recording:
    """A recorder on a real spool, and what is in it."""

    def __init__(self, folder: Path, limits: SpoolLimits = LIMITS) -> None:
        self.disk = SpoolDisk(limits)
        self.spool = Spool(folder, job="projects/p/jobs/j", key=KEY, attempt=2, disk=self.disk)
        self.appends = 0
        ticks = itertools.count(1_000_000)
        self.recorder = Recorder(self.spool, now_unix_us=lambda: next(ticks), on_append=self._count_append)

    def _count_append(self) -> None:
        self.appends += 1

    def settle(self) -> None:
        """Wait until the disk has what it was given."""
        self.disk.writing.submit(lambda: None).result(SECONDS_MAX)

    @property
    def point_batches(self) -> list[ingest.PointBatch]:
        self.settle()
        return [ingest.PointBatch.FromString(record.body) for record in records_of(self.spool.points)]

    @property
    def line_batches(self) -> list[ingest.LineBatch]:
        self.settle()
        return [ingest.LineBatch.FromString(record.body) for record in records_of(self.spool.lines)]

    @property
    def texts(self) -> list[str]:
        return [line for batch in self.line_batches for line in batch.lines]


class Standstill:
    """A disk that stands still from now on, until it is let go."""

    def __init__(self, disk: SpoolDisk) -> None:
        self._go = threading.Event()
        began = threading.Event()

        def stand_still() -> None:
            began.set()
            self._go.wait(SECONDS_MAX)

        disk.writing.post(stand_still, size_bytes=1)
        began.wait(SECONDS_MAX)

    def end(self) -> None:
        self._go.set()


def records_of(spool: WriterSpool, *, after: int = 0) -> list[Record]:
    """All that a reader finds."""
    reader = SpoolReader(spool, after=after)
    records = []
    while found := reader.read(records_max=100, bytes_max=2**20):
        records += found
    reader.close()
    return records


def limits(**changes: float) -> SpoolLimits:
    return replace(LIMITS, **changes)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
