"""When a followed job's rows have ended.

They have ended when the job has and every writer of every attempt is finished, or when the wait for that is over: a
runner that died will never finish its writers. A broken connection never looks like an end, and with the scheduler away
nothing ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.metrics.job import JobFacts
from services.metrics.store import Store
from services.metrics.writer import WriterKind, WriterRecord


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Nothing more will come. `complete`: everything that was written is stored."""

    complete: bool


class Endings:
    """Looks whether jobs' rows have ended; followers of the same job that look at once share the look."""

    def __init__(self, store: Store, *, wait_seconds: float, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._wait = timedelta(seconds=wait_seconds)
        self._clock = clock
        self._looks: dict[tuple[str, WriterKind], asyncio.Task[list[WriterRecord]]] = {}

    async def verdict(self, job: JobFacts, kind: WriterKind, *, seen_ended_at: datetime) -> Verdict | None:
        """None while more may come. `seen_ended_at` is when the caller first heard that the job has ended."""
        records = {(record.attempt, record.rank): record for record in await self._records(job.uid, kind)}
        expected = set(records) | {(attempt, 0) for attempt in job.attempts}
        found = [records.get(writer) for writer in expected]
        if all(record is not None and record.finished for record in found):
            return Verdict(complete=all(record is not None and record.complete for record in found))
        # The end may be long ago, and the scheduler's clock may go wrong: the earlier limit holds.
        begin = min(job.ended_at or seen_ended_at, seen_ended_at)
        return Verdict(complete=False) if self._clock() >= begin + self._wait else None

    async def _records(self, job_uid: str, kind: WriterKind) -> list[WriterRecord]:
        key = (job_uid, kind)
        look = self._looks.get(key)
        if look is None:
            look = asyncio.create_task(self._store.writer_records(job_uid, kind))
            self._looks[key] = look
            look.add_done_callback(lambda _: self._looks.pop(key, None))
        # One follower that goes away must not end the look of the others.
        return await asyncio.shield(look)
