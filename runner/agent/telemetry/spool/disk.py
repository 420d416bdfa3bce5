"""The disk of all spools of a runner: what it gives them, and the threads that wait for it.

A disk may be slow, full or stand still; the event loop never waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.agent.telemetry.spool.space import Space
from runner.agent.telemetry.worker_thread import WorkerThread


@dataclass(frozen=True, kw_only=True)
class SpoolLimits:
    """Sizes and waits of the spools; the configuration has a setting for each."""

    bytes_max: int
    disk_free_bytes_min: int
    segment_bytes_max: int
    last_lines_bytes: int
    waiting_bytes_max: int
    stall_seconds_max: float
    batch_points_min: int
    batch_seconds_max: float


class SpoolDisk:
    """One for each runner. All changes are made in the thread `writing`, one after the other."""

    def __init__(self, limits: SpoolLimits) -> None:
        self.limits = limits
        self.space = Space(bytes_max=limits.bytes_max, disk_free_bytes_min=limits.disk_free_bytes_min)
        self.writing = WorkerThread("spool-writing")
        self.reading = WorkerThread("spool-reading")
        self.syncing = WorkerThread("spool-syncing")
