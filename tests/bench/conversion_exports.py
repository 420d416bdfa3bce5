"""Exports with copies of the images, beside `cp -r`: `python -m tests.bench.conversion_exports [--json]`.

The images of a dataset of 2,000 photos are copied as an export copies them, and by `cp -r`, all in the cache of the
system. Whole exports of 20,000 photos with boxes go to each of three formats, synced to the disk, and beside them a
`cp -r` that is synced too, each on a disk that has nothing left to write. All take turns; the ratio is the median of
the rounds, the value that of the fastest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from services.chassis.objects.store import open_store
from services.conversion.__main__ import build_library
from services.conversion.config import ConversionConfig
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.passes.conversion import ConversionResult
from services.conversion.passes.copier import COPIES_TOGETHER
from services.conversion.passes.exchange import ExportRequest
from services.conversion.source.copying import copy_files
from services.conversion.source.place import DatasetSource
from tests.bench.conversion_lists import make_dataset
from tests.bench.result import Result, print_lines
from tests.bench.turns import in_turns

COPIES, ROUNDS = 2_000, 21
"""Many short rounds: how fast files are made changes from second to second where others make files."""
IMAGES, EXPORT_ROUNDS = 20_000, 3
FORMATS = {"COCO": "COCO instances", "YOLO": "YOLO detect", "Pascal VOC": "Pascal VOC"}


def main() -> None:
    print_lines(__doc__, run())


def run() -> Iterator[Result]:
    yield from copies()
    yield from exports()


def copies() -> Iterator[Result]:
    bare, ours = f"cp -r of {COPIES:,} images", f"the images of an export, {COPIES:,}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "dataset", random.Random(0), COPIES)
        works = {bare: lambda: copy_by_cp(folder), ours: lambda: copy(folder)}
        found = in_turns({name: partial(seconds_of, work, folder / "copies") for name, work in works.items()}, ROUNDS)
    yield Result(name=bare, value=found.least(bare), unit="s")
    yield Result(name=ours, value=found.least(ours), unit="s", bar="ratio <= 1.5", ratio=found.ratio(ours, bare))


def exports() -> Iterator[Result]:
    bare = f"cp -r of {IMAGES:,} images, synced"
    with tempfile.TemporaryDirectory() as name, exporting(Path(name)) as export:
        folder = Path(name)
        works: dict[str, Callable[[], object]] = {bare: lambda: copy_synced(folder)}
        for title, format_name in FORMATS.items():
            works[f"export of {IMAGES:,} images to {title}"] = partial(export, format_name)
        seconds_of(partial(export, FORMATS["COCO"]), folder / "out")  # indexes
        found = in_turns(
            {name: partial(seconds_on_idle_disk, work, folder) for name, work in works.items()}, EXPORT_ROUNDS
        )
    for name in works:
        ratio = None if name == bare else found.ratio(name, bare)
        yield Result(name=name, value=found.least(name), unit="s", ratio=ratio)


@contextlib.contextmanager
def exporting(folder: Path) -> Iterator[Callable[[str], None]]:
    """A dataset, and what exports it to a format."""
    make_dataset(folder / "dataset", random.Random(0), IMAGES)
    config = ConversionConfig(
        store_uri=(folder / "store").as_uri(),
        allowed_roots=(folder,),
        allowed_destination_roots=(folder / "out",),
        token_public_keys=(),
    )
    with ThreadPoolExecutor(4) as threads, asyncio.Runner() as loop:
        workers = WorkerPool(2)
        exchange = build_library(config, threads, workers, None).exchange

        async def last(request: ExportRequest) -> object:
            return [each async for each in exchange.export_dataset(request)][-1]

        def export(name: str) -> None:
            request = ExportRequest(
                source=DatasetSource(uri=(folder / "dataset").as_uri()),
                annotation_set="",
                format=name,
                destination=DatasetSource(uri=(folder / "out/exported").as_uri()),
                copy_images=True,
            )
            assert isinstance(loop.run(last(request)), ConversionResult)

        try:
            yield export
        finally:
            workers.shutdown()


def seconds_of(work: Callable[[], object], made: Path) -> float:
    """Of the work alone, not of removing what it has made."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    shutil.rmtree(made)
    return seconds


def seconds_on_idle_disk(work: Callable[[], object], folder: Path) -> float:
    os.sync()
    return seconds_of(work, folder / "out")


def copy(folder: Path) -> None:
    source = open_store((folder / "dataset/images").as_uri(), allowed_roots=[folder])
    files = [(f"{number}.jpg", folder / f"copies/{number}.jpg") for number in range(COPIES)]

    async def copy_all() -> None:
        for first in range(0, COPIES, COPIES_TOGETHER):
            await copy_files(source, files[first : first + COPIES_TOGETHER])

    asyncio.run(copy_all())


def copy_by_cp(folder: Path) -> None:
    subprocess.run(["cp", "-r", folder / "dataset/images", folder / "copies"], check=True)


def copy_synced(folder: Path) -> None:
    (folder / "out").mkdir()
    subprocess.run(["cp", "-r", folder / "dataset/images", folder / "out/images"], check=True)
    subprocess.run(["sync", "--file-system", folder / "out"], check=True)


if __name__ == "__main__":
    main()
