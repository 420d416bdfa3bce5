"""Carries the records of a source through a recipe into a sink: some chunks at a time, put down in their order.

Memory is bounded by the chunks in flight, whatever the number of images. Findings, counts and files come out in the
order of the records, so that they do not depend on which worker was first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from services.chassis.errors import FailedPrecondition, Reason, SihlaiError
from services.conversion.conveyor.chunk import ChunkResult, Recipe, convert_chunk
from services.conversion.conveyor.counts import Counts
from services.conversion.conveyor.journal import Journal
from services.conversion.conveyor.pool import one_worker
from services.conversion.conveyor.sink import Sink
from services.conversion.conveyor.work import in_thread
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Report
from services.conversion.formats.format import MapFile

CHUNK_RECORDS = 250
"""Records of a chunk without maps: the grain of progress, of cancellation and of what is taken up again."""
CHUNK_MAPS = 16
"""Records of a chunk where maps are read or written."""
CHUNK_BYTES = 32 * 2**20
"""A chunk ends with the map that reaches this."""
CHUNKS_PER_WORKER = 2
"""In flight: one is worked on, one waits, so that no worker does."""
ALONE_TRIES_MAX = 2
"""So often a chunk whose worker died is tried with a worker of its own, where nothing else can be the cause."""
NAMES_CHARACTERS_MAX = 2_000
"""Of the images that an error names: it must fit into the trailers of a call."""

Load: TypeAlias = Callable[[RawRecord], Awaitable[bytes]]
"""The content of a record's file. Raises our errors, FailedPrecondition (DATASET_CHANGED) where it is another now."""


@dataclass(frozen=True, kw_only=True)
class Freight:
    """What is to be carried. `reading`: where `records` reports what is wrong; it is emptied chunk by chunk.

    `maps`: whether maps are read or written, so that the work is done by processes. `load` is needed where a record
    has a path.
    """

    recipe: Recipe
    records: Iterator[RawRecord]
    reading: Report
    maps: bool = False
    load: Load | None = None


@dataclass(kw_only=True)
class Totals:
    """What was carried so far."""

    images: int = 0
    labelled_in: int = 0
    dropped_by_steps: int = 0
    counts_in: Counts = field(default_factory=Counts)
    counts_out: Counts = field(default_factory=Counts)


class Conveyor:
    """`threads` do what is short, `workers` what is long, `workers_max` at once. `requests_max`: files read at once.

    `alone` makes an executor of one worker, for a chunk whose worker died.
    """

    def __init__(
        self,
        *,
        threads: Executor,
        workers: Executor,
        workers_max: int,
        requests_max: int,
        alone: Callable[[], Executor] = one_worker,
    ) -> None:
        self._threads = threads
        self._workers = workers
        self._workers_max = workers_max
        self._requests_max = requests_max
        self._alone = alone
        self._one_alone = asyncio.Lock()

    async def carry(
        self,
        freight: Freight,
        report: Report,
        tell: Callable[[Totals], None],
        *,
        sink: Sink | None = None,
        journal: Journal | None = None,
    ) -> Totals:
        """Carry everything; `tell` hears of each chunk. The sink has begun, and is not ended here.

        Chunks that the journal holds are not done again. Raises what the load raises, and FailedPrecondition where a
        chunk kills every worker that it is given to.
        """
        totals = Totals()
        requests = asyncio.Semaphore(self._requests_max)
        in_flight_max = self._workers_max * CHUNKS_PER_WORKER if freight.maps else 1
        waiting: deque[tuple[_Chunk, asyncio.Task[ChunkResult]]] = deque()
        more = True
        try:
            number = 0
            while more or waiting:
                while more and len(waiting) < in_flight_max:
                    chunk = await in_thread(self._threads, _next_chunk, freight, number)
                    more = bool(chunk.records)
                    task = asyncio.create_task(self._convert(freight, chunk, requests, journal))
                    waiting.append((chunk, task))
                    number += 1
                chunk, task = waiting[0]
                result = await task
                waiting.popleft()
                report.merge(result.report)
                report.merge(chunk.reading)
                await in_thread(self._threads, _put_down, chunk, result, totals, sink)
                tell(totals)
        finally:
            tasks = [task for _, task in waiting]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        return totals

    async def _convert(
        self, freight: Freight, chunk: _Chunk, requests: asyncio.Semaphore, journal: Journal | None
    ) -> ChunkResult:
        if not chunk.records:
            return ChunkResult(report=Report(findings_max=0))
        if journal is not None:
            found = await in_thread(self._threads, journal.find, chunk.number, chunk.records)
            if found is not None:
                return found
        recipe, records = freight.recipe, chunk.records
        changed = Report(findings_max=recipe.findings_max, lenient=recipe.lenient)
        if freight.load is not None:
            records = await _load(records, freight.load, requests, changed)
        executor = self._workers if freight.maps else self._threads
        try:
            # It is pure: nobody has to wait for it when the call is cancelled, and what waits for a worker is dropped.
            result = await asyncio.get_running_loop().run_in_executor(executor, convert_chunk, recipe, records)
        except BrokenExecutor:  # all that worked there has failed, and one of it may be the cause
            result = await self._convert_alone(recipe, records)
        result.report.merge(changed)
        if journal is not None:
            await in_thread(self._threads, journal.write, chunk.number, result)
        return result

    async def _convert_alone(self, recipe: Recipe, records: Sequence[RawRecord]) -> ChunkResult:
        """By a worker that has nothing else to do, and one chunk after the other: memory is what is most likely short.

        Without it a chunk that kills its worker would take other conversions along each time that it is tried.
        """
        loop = asyncio.get_running_loop()
        async with self._one_alone:
            for _ in range(ALONE_TRIES_MAX):
                executor = self._alone()
                try:
                    return await loop.run_in_executor(executor, convert_chunk, recipe, records)
                except BrokenExecutor:
                    continue
                finally:
                    executor.shutdown(wait=False)  # whoever is cancelled waits for no chunk
        raise _kills_workers(records)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    number: int
    records: Sequence[RawRecord]
    """None: there are no more."""
    reading: Report


def _next_chunk(freight: Freight, number: int) -> _Chunk:
    """Depends on nothing but the records: a chunk is the same in every run."""
    records: list[RawRecord] = []
    records_max = CHUNK_MAPS if freight.maps else CHUNK_RECORDS
    size_bytes = 0
    for record in freight.records:
        records.append(record)
        size_bytes += record.size_bytes
        if len(records) >= records_max or size_bytes >= CHUNK_BYTES:
            break
    return _Chunk(number=number, records=records, reading=freight.reading.take())


async def _load(
    records: Sequence[RawRecord], load: Load, requests: asyncio.Semaphore, changed: Report
) -> list[RawRecord]:
    """The records with the content of their files. A lenient report takes what is not there as it was; it is null."""

    async def loaded(record: RawRecord) -> RawRecord:
        if not record.path:
            return record
        async with requests:
            try:
                content = await load(record)
            except FailedPrecondition as error:
                if not changed.lenient or error.reason is not Reason.DATASET_CHANGED:
                    raise
                changed.error("map_changed", error.message, record.place)
                return replace(record, value=None)
        file = MapFile(suffix=record.suffix, content=content, about=record.value, about_file=record.about_file)
        return replace(record, value=file)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loaded(record)) for record in records]
    except* SihlaiError as errors:  # one of ours is what the caller knows: the group is only how we work
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


def _kills_workers(records: Sequence[RawRecord]) -> FailedPrecondition:
    names = ", ".join(record.image.name for record in records)
    if len(names) > NAMES_CHARACTERS_MAX:
        names = f"{names[:NAMES_CHARACTERS_MAX]} …"
    message = (
        f"the process that converts died {ALONE_TRIES_MAX + 1} times at the same {len(records)} images, most likely "
        f"for want of memory: make one of them smaller, leave it out, or give the service more memory ({names})"
    )
    metadata = {"first_image": records[0].image.name, "images": str(len(records))}
    return FailedPrecondition(Reason.DATASET_INVALID, message, metadata)


def _put_down(chunk: _Chunk, result: ChunkResult, totals: Totals, sink: Sink | None) -> None:
    totals.images += len(chunk.records)
    totals.dropped_by_steps += result.dropped_by_steps
    totals.counts_in.merge(result.counts_in)
    totals.counts_out.merge(result.counts_out)
    for record, (_, annotated, written) in zip(chunk.records, result.written, strict=True):
        totals.labelled_in += annotated
        if sink is not None:
            sink.add(record.image, written)
