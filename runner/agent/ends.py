"""Ends of attempts that the scheduler has not acknowledged: on the disk, and reported with every call until it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import AttemptKey
from runner.agent.disk import Disk
from runner.agent.fault import fault_of
from runner.agent.ledger import Ledger, key_of
from runner.agent.telemetry.worker_thread import WorkerThread
from runner.agent.trainer.ending import Ending, ending_of_fault, failure
from services.chassis.log import get_logger

log = get_logger(__name__)


class Ends:
    """The ends that are left to report."""

    def __init__(self, ledger: Ledger, *, disk: Disk, now_unix_us: Callable[[], int], disk_seconds_max: float) -> None:
        """`disk_seconds_max`: so long the disk may take for an end."""
        self._ledger = ledger
        self._disk = disk
        self._thread = WorkerThread("ledger")
        """For all changes, in their order: an end may be reported again once it was forgotten."""
        self._disk_seconds_max = disk_seconds_max
        self._now_unix_us = now_unix_us
        self._closed: dict[AttemptKey, wire.ClosedAttempt] = {}

    def __len__(self) -> int:
        return len(self._closed)

    @property
    def keys(self) -> frozenset[AttemptKey]:
        """The attempts."""
        return frozenset(self._closed)

    @property
    def reports(self) -> list[wire.ClosedAttempt]:
        """What the scheduler is told."""
        return list(self._closed.values())

    def take_up(self, written: Iterable[wire.ClosedAttempt]) -> None:
        """Report what is on the disk already."""
        self._closed |= {key_of(closed): closed for closed in written}

    def acknowledge(self, key: AttemptKey) -> None:
        """The scheduler has it."""
        self._thread.post(partial(self._ledger.forget_closed, key))
        self._closed.pop(key, None)

    async def written(self, seconds_max: float) -> None:
        """Wait until the disk has what changed. Raises TimeoutError."""
        await self._thread.run(lambda: None, seconds_max=seconds_max)

    async def add(self, closed: wire.ClosedAttempt) -> None:
        """Report an end, with the checkpoints that an earlier report of it brought and nobody has acknowledged.

        It is on the disk first; where that fails or stands still it is reported as long as this agent lives.
        """
        key = key_of(closed)
        if before := self._closed.get(key):
            closed.checkpoints.MergeFrom(before.checkpoints)
        writing = self._thread.run(partial(self._ledger.write_closed, closed))
        try:
            await self._disk.answer(writing, seconds_max=self._disk_seconds_max)
        except OSError as error:
            _tell_not_on_disk(key, error)
        self._closed[key] = closed

    def add_unbegun(self, key: AttemptKey, ending: Ending, *, number: int = 0) -> None:
        """Report the end of an attempt that never was one; `number` where it was assigned. Waits for no disk: an agent
        that dies before it was told has lost nothing.
        """
        closed = self._closed[key] = self.unbegun(key, ending, number=number)

        def write() -> None:
            try:
                self._ledger.write_closed(closed)
            except OSError as error:
                _tell_not_on_disk(key, error)

        self._thread.post(write)

    def unbegun(self, key: AttemptKey, ending: Ending, *, number: int = 0) -> wire.ClosedAttempt:
        """The end of an attempt that did nothing."""
        closed = wire.ClosedAttempt(
            job_uid=key.job_uid,
            attempt=number,
            epoch=key.epoch,
            outcome=ending.outcome,
            reason=ending.reason,
            message=ending.message,
        )
        closed.end_time.FromMicroseconds(self._now_unix_us())
        return closed


def _tell_not_on_disk(key: AttemptKey, error: OSError) -> None:
    log.error("end_not_on_disk", attempt=str(key), problem=str(error))


def ending_of_crash(error: Exception) -> Ending:
    """How an attempt ends that could not be ended in order: by this machine's fault, or by our own mistake."""
    if isinstance(error, OSError):
        return ending_of_fault(f"the runner's disk or system does not work: {fault_of(error)}")
    return failure(job_pb2.JOB_REASON_INTERNAL, f"the runner made a mistake: {type(error).__name__}: {error}")
