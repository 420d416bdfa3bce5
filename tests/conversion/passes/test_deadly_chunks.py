"""A chunk whose worker dies is tried alone; one that always kills its worker is an error that names its images."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.conveyor.conveyor import ALONE_TRIES_MAX, CHUNK_MAPS, Conveyor, Freight, Totals
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.finding import Report
from services.conversion.formats import FORMATS
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.task import Task
from tests.conversion.conveyor.test_conveyor import IMAGES, load, recipe, records


@dataclass(frozen=True, kw_only=True)
class Deadly:
    """Reads semantic maps; its process dies of one image, so often. Each death leaves a file in `folder`."""

    image: str
    deaths: int
    folder: Path

    def read(self, value: Any, size: Any, place: Any, vocabulary: Any, report: Report) -> Any:
        if place.image == self.image and len(list(self.folder.iterdir())) < self.deaths:
            (self.folder / secrets.token_hex(8)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FORMATS[Task.SEMANTIC_SEGMENTATION].read(value, size, place, vocabulary, report)

    def write(self, annotation: SemanticMap, size: Any, vocabulary: Any) -> Any:
        raise NotImplementedError("it is read only")


async def carry(reader: Deadly, workers: WorkerPool) -> tuple[Totals, Report]:
    reading, report = Report(findings_max=9, lenient=True), Report(findings_max=9, lenient=True)
    with ThreadPoolExecutor(2) as threads:
        conveyor = Conveyor(threads=threads, workers=workers, workers_max=2, requests_max=4)
        freight = Freight(
            recipe=replace(recipe(), reader=reader), records=records(reading), reading=reading, maps=True, load=load
        )
        return await conveyor.carry(freight, report, lambda _: None), report


@pytest.mark.parametrize("deaths", [1, ALONE_TRIES_MAX])
def test_workers_that_die_cost_nothing_but_time(deaths: int, tmp_path: Path) -> None:
    deadly = Deadly(image="0040.png", deaths=deaths, folder=tmp_path)
    with WorkerPool(2) as workers:
        totals, report = asyncio.run(carry(deadly, workers))
        undisturbed = asyncio.run(carry(replace(deadly, deaths=0), workers))
    assert len(list(tmp_path.iterdir())) == deaths
    assert totals.images == IMAGES
    assert (totals, report) == undisturbed


def test_a_chunk_that_always_kills_its_worker_is_an_error_that_names_its_images(tmp_path: Path) -> None:
    with WorkerPool(2) as workers:
        with pytest.raises(FailedPrecondition, match=r"0040\.png") as caught:
            asyncio.run(carry(Deadly(image="0040.png", deaths=99, folder=tmp_path), workers))
        assert caught.value.reason is Reason.DATASET_INVALID
        assert "0031.png" not in caught.value.message
        assert caught.value.metadata == {"first_image": "0032.png", "images": str(CHUNK_MAPS)}
        assert len(list(tmp_path.iterdir())) == 1 + ALONE_TRIES_MAX
        assert workers.submit(os.getpid).result(60) > 0
