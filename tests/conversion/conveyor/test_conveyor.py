"""Chunks go through in order, whoever works on them, and nothing depends on how many do."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis.errors import Reason, Unavailable
from services.conversion.conveyor.chunk import Recipe, convert_chunk
from services.conversion.conveyor.conveyor import CHUNK_BYTES, CHUNK_MAPS, CHUNKS_PER_WORKER, Conveyor, Freight, Totals
from services.conversion.conveyor.journal import Journal
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.conveyor.sink import NormalisedSink, NormalisedWriter
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors
from services.conversion.index import ImageEntry, Index
from services.conversion.task import Task
from tests.conversion.map_dataset import files_of, noise

SEMANTIC, MULTILABEL = Task.SEMANTIC_SEGMENTATION, Task.MULTILABEL_CLASSIFICATION
VOCABULARY = Colors(names=("sky", "road", "car"), colors={"sky": (0, 0, 255), "road": (90, 90, 90), "car": (255, 0, 0)})
IMAGES = 150


class AnyOrder(Executor):
    """One thread that takes whatever waits, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            self._waiting.append((future, lambda: function(*arguments, **keywords)))
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                future, work = self._waiting.pop(self._chance.randrange(len(self._waiting)))
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 — the future's caller gets it
                    future.set_exception(error)


def entries(count: int = IMAGES) -> list[ImageEntry]:
    return [
        ImageEntry(name=f"{n:04}.png", size_bytes=1, etag=str(n), width=12, height=8, format="PNG")
        for n in range(count)
    ]


def records(reading: Report, count: int = IMAGES, *, size_bytes: int = 0) -> Iterator[RawRecord]:
    """Some images have no map, some one of another shape, and some things are wrong while reading."""
    for number, entry in enumerate(entries(count)):
        place = Place(file=f"maps/{entry.name}", image=entry.name)
        if number % 40 == 13:
            reading.error("sidecar_without_map", "nothing is there", place)
        path = f"maps/{entry.name}" if number % 9 else ""
        yield RawRecord(
            image=entry,
            place=place,
            annotated=bool(path),
            value=None,
            path=path,
            suffix=".png",
            size_bytes=size_bytes,
        )


async def load(record: RawRecord) -> bytes:
    number = int(record.image.name[:4])
    return noise(number, (5, 8) if number % 31 == 7 else (12, 8))


def recipe(target: Task = SEMANTIC) -> Recipe:
    return Recipe(
        reader=FORMATS[SEMANTIC],
        source_vocabulary=VOCABULARY,
        source=SEMANTIC,
        target=target,
        steps=() if target is SEMANTIC else ((SEMANTIC, target, None),),
        writer=NormalisedWriter(FORMATS[target]),
        lenient=True,
        findings_max=100,
    )


async def carry(
    folder: Path, workers: Executor, workers_max: int, target: Task = SEMANTIC, journal: Journal | None = None
) -> tuple[dict[str, bytes], Report, Totals]:
    folder.mkdir(parents=True)
    reading = Report(findings_max=100, lenient=True)
    report = Report(findings_max=20, lenient=True)
    with ThreadPoolExecutor(2) as threads:
        conveyor = Conveyor(threads=threads, workers=workers, workers_max=workers_max, requests_max=4)
        freight = Freight(recipe=recipe(target), records=records(reading), reading=reading, maps=True, load=load)
        sink = NormalisedSink(
            FORMATS[target], images_uri="file:///i", index=Index(entries=tuple(entries())), fingerprint="f"
        )
        sink.begin(folder, freight.recipe.target_vocabulary())
        totals = await conveyor.carry(freight, report, lambda _: None, sink=sink, journal=journal)
        sink.end()
    return files_of(folder), report, totals


@pytest.mark.parametrize("target", [SEMANTIC, MULTILABEL])
def test_output_is_the_same_bytes_with_no_one_or_more_workers(
    target: Task, workers: WorkerPool, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as thread:
        alone = asyncio.run(carry(tmp_path / "0", thread, 1, target))
    assert alone[2].images == IMAGES
    assert alone[1].rules["sidecar_without_map"] == 4
    assert alone[1].rules["aspect_ratio"] > 0
    assert len(alone[1].findings) == min(20, alone[1].counts.total())
    for workers_max in (1, 2, 3):
        assert asyncio.run(carry(tmp_path / str(workers_max), workers, workers_max, target)) == alone


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), workers_max=st.integers(1, 5))
def test_output_is_the_same_bytes_in_whatever_order_chunks_are_done(
    seed: int, workers_max: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("orders")
    with ThreadPoolExecutor(1) as thread:
        alone = asyncio.run(carry(folder / "alone", thread, 1))
    with AnyOrder(seed) as workers:
        assert asyncio.run(carry(folder / "orders", workers, workers_max)) == alone


def test_a_chunk_has_the_same_result_in_a_thread_and_in_a_process(workers: WorkerPool) -> None:
    some = [
        RawRecord(image=entry, place=Place(file="x", image=entry.name), annotated=False, value=None)
        for entry in entries(3)
    ]
    assert workers.submit(convert_chunk, recipe(), some).result(60) == convert_chunk(recipe(), some)


def test_what_a_journal_holds_is_not_done_again(tmp_path: Path) -> None:
    class Refusing(Executor):
        def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
            raise AssertionError("it was done already")

    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal")
    with ThreadPoolExecutor(1) as thread:
        first = asyncio.run(carry(tmp_path / "first", thread, 1, journal=journal))
    assert len(list((tmp_path / "journal").iterdir())) == -(-IMAGES // CHUNK_MAPS)
    assert asyncio.run(carry(tmp_path / "second", Refusing(), 1, journal=journal)) == first


@pytest.mark.parametrize("content", [b"", b"\x93\x01", None])
def test_a_chunk_that_was_not_wholly_kept_is_done_again(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal")
    with ThreadPoolExecutor(1) as thread:
        first = asyncio.run(carry(tmp_path / "first", thread, 1, journal=journal))
        kept = sorted((tmp_path / "journal").iterdir())
        if content is None:  # a chunk of other images
            content = kept[1].read_bytes()
        kept[0].write_bytes(content)
        assert asyncio.run(carry(tmp_path / "second", thread, 1, journal=journal)) == first


@pytest.mark.parametrize(("size_bytes", "records_max"), [(0, CHUNK_MAPS), (CHUNK_BYTES, 1)])
def test_what_is_in_flight_is_bounded_whatever_the_number_of_images(size_bytes: int, records_max: int) -> None:
    loaded, done, most = 0, 0, 0

    async def counting(record: RawRecord) -> bytes:
        nonlocal loaded, most
        loaded += 1
        most = max(most, loaded - done)
        return await load(record)

    def tell(totals: Totals) -> None:
        nonlocal done
        done = totals.counts_in.labelled + totals.counts_in.unlabelled

    async def main() -> None:
        reading, report = Report(findings_max=1, lenient=True), Report(findings_max=1, lenient=True)
        with ThreadPoolExecutor(2) as threads:
            conveyor = Conveyor(threads=threads, workers=threads, workers_max=2, requests_max=100)
            freight = Freight(
                recipe=recipe(),
                records=records(reading, 400, size_bytes=size_bytes),
                reading=reading,
                maps=True,
                load=counting,
            )
            await conveyor.carry(freight, report, tell)

    asyncio.run(main())
    assert done == 400
    assert most <= 2 * CHUNKS_PER_WORKER * records_max


def test_a_cancelled_pass_ends_soon_and_its_workers_go_on(workers: WorkerPool, tmp_path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def stalling(record: RawRecord) -> bytes:
            if int(record.image.name[:4]) > CHUNK_MAPS * 2:
                begun.set()
                await asyncio.Event().wait()
            return await load(record)

        reading, report = Report(findings_max=1, lenient=True), Report(findings_max=1, lenient=True)
        with ThreadPoolExecutor(2) as threads:
            conveyor = Conveyor(threads=threads, workers=workers, workers_max=2, requests_max=4)
            freight = Freight(recipe=recipe(), records=records(reading), reading=reading, maps=True, load=stalling)
            passing = asyncio.create_task(conveyor.carry(freight, report, lambda _: None))
            await begun.wait()
            passing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(passing, 20)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert asyncio.run(carry(tmp_path / "after", workers, 2))[2].images == IMAGES


def test_an_object_that_cannot_be_read_ends_the_pass_with_its_error() -> None:
    async def failing(record: RawRecord) -> bytes:
        if record.image.name == "0050.png":
            raise Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, "the store is away")
        return await load(record)

    async def main() -> None:
        reading, report = Report(findings_max=1, lenient=True), Report(findings_max=1, lenient=True)
        with ThreadPoolExecutor(2) as threads:
            conveyor = Conveyor(threads=threads, workers=threads, workers_max=2, requests_max=4)
            freight = Freight(recipe=recipe(), records=records(reading), reading=reading, maps=True, load=failing)
            with pytest.raises(Unavailable, match="the store is away"):
                await conveyor.carry(freight, report, lambda _: None)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
