"""When a followed job's rows have ended.

They have ended when the job has and every writer of every attempt is finished, or when the wait for that is over: a
runner that died will never finish its writers. Each attempt is waited for from its own end, and only for a moment where
it was stopped or handed back before its first step and opened no writer. A broken connection never looks like an end,
and with the scheduler away nothing ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.metrics.clickhouse.store import Store
from services.metrics.job import JobFacts
from services.metrics.writer_key import WriterKind, WriterRecord

REMEMBERED_MAX = 10_000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Nothing more will come. `complete`: everything that was written is stored."""

    complete: bool


@dataclass(frozen=True, kw_only=True)
class EndingLimits:
    """How long writers are waited for after their attempt's end, and where the attempt may never have begun."""

    wait_seconds: float
    unopened_wait_seconds: float


class Patience:
    """Since when the attempts of a job have ended.

    The scheduler's clock tells only of ends that were before this began; an end that is heard of counts from then, by
    the clock of this process that does not jump.
    """

    def __init__(self, job: JobFacts, *, clock: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ended: dict[int, float] = {}
        self._job_ended: float | None = None
        now, began = clock(), monotonic()

        def end(ended_at: datetime | None) -> float:
            # The scheduler's clock may go ahead of ours: nothing ends later than now.
            return began - max(0.0, (now - ended_at).total_seconds() if ended_at else 0.0)

        for attempt in job.attempts:
            if attempt.ended or job.ended:
                self._ended[attempt.number] = end(attempt.ended_at or job.ended_at)
        if job.ended:
            self._job_ended = end(job.ended_at)

    def hear(self, job: JobFacts) -> None:
        """The job as it is now."""
        now = self._monotonic()
        for attempt in job.attempts:
            if attempt.ended or job.ended:
                self._ended.setdefault(attempt.number, now)
            else:
                self._ended.pop(attempt.number, None)
        if not job.ended:
            self._job_ended = None
        elif self._job_ended is None:
            self._job_ended = now

    def is_over(self, attempt: int, wait_seconds: float) -> bool:
        """Whether so much time has passed since the attempt's end."""
        ended = self._ended.get(attempt, self._job_ended)
        return ended is not None and self._monotonic() - ended >= wait_seconds


class Endings:
    """Looks whether jobs' rows have ended."""

    def __init__(
        self,
        store: Store,
        *,
        limits: EndingLimits,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._monotonic = monotonic
        self._given_up: OrderedDict[tuple[str, WriterKind, int], None] = OrderedDict()
        """Attempts that were waited for until the wait was over: nobody waits for them again."""

    def patience(self, job: JobFacts) -> Patience:
        """Since when the job's attempts have ended, from now on."""
        return Patience(job, clock=self._clock, monotonic=self._monotonic)

    async def verdict(self, job: JobFacts, kind: WriterKind, patience: Patience) -> Verdict | None:
        """None while more may come. The job has ended."""
        records = await self._store.writer_records(job.uid, kind)
        for attempt, wait_seconds in self._unfinished(job, records):
            key = (job.uid, kind, attempt)
            if key not in self._given_up and not patience.is_over(attempt, wait_seconds):
                return None
            self._give_up(key)
        opened = {record.attempt for record in records}
        unknown = any(attempt.number not in opened and attempt.began for attempt in job.attempts)
        return Verdict(complete=not unknown and all(record.complete for record in records))

    def _unfinished(self, job: JobFacts, records: Sequence[WriterRecord]) -> Iterator[tuple[int, float]]:
        """Attempts from which more may come, and how long it is waited for."""
        for record in records:
            if not record.finished:
                yield record.attempt, self._limits.wait_seconds
        opened = {record.attempt for record in records}
        for attempt in job.attempts:
            if attempt.number not in opened:
                yield attempt.number, self._limits.wait_seconds if attempt.began else self._limits.unopened_wait_seconds

    def _give_up(self, key: tuple[str, WriterKind, int]) -> None:
        self._given_up[key] = None
        self._given_up.move_to_end(key)
        while len(self._given_up) > REMEMBERED_MAX:
            self._given_up.popitem(last=False)
