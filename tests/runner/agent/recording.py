"""A recorder on a real spool, and how tests wait."""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from sihlai.metrics.v1 import ingest_service_pb2 as ingest

from runner.agent.decision import AttemptKey
from runner.agent.recorder import Recorder, Spool, SpoolLimits
from runner.agent.spool import SpoolReader, WriterSpool

KEY = AttemptKey(job_uid="0197", epoch=3)
LIMITS = SpoolLimits(bytes_max=1_000_000, segment_bytes_max=4_096, batch_points_min=200, batch_seconds_max=0.01)
SECONDS_MAX = 20.0


class Recording:
    """A recorder on a real spool, and what is in it."""

    def __init__(self, folder: Path, limits: SpoolLimits = LIMITS) -> None:
        self.spool = Spool(folder, job="projects/p/jobs/j", key=KEY, attempt=2, limits=limits)
        self.appends = 0
        ticks = itertools.count(1_000_000)
        self.recorder = Recorder(
            self.spool, limits=limits, now_unix_us=lambda: next(ticks), on_append=self._count_append
        )

    def _count_append(self) -> None:
        self.appends += 1

    @property
    def point_batches(self) -> list[ingest.PointBatch]:
        return [ingest.PointBatch.FromString(body) for body in bodies_of(self.spool.points)]

    @property
    def line_batches(self) -> list[ingest.LineBatch]:
        return [ingest.LineBatch.FromString(body) for body in bodies_of(self.spool.lines)]

    @property
    def texts(self) -> list[str]:
        return [line for batch in self.line_batches for line in batch.lines]


def bodies_of(spool: WriterSpool) -> list[bytes]:
    reader = SpoolReader(spool, after=0)
    bodies = []
    while (record := reader.read()) is not None:
        bodies.append(record.body)
    reader.close()
    return bodies


async def until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
