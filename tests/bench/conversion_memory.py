"""Memory of a conversion of values, by the number of images: `python -m tests.bench.conversion_memory [--json]`.

Two datasets of photos with boxes, alike but for their number. Each is converted by a process that does this once and
nothing else, an index that is there already included. What the larger one takes more is told for each image more, with
the bytes of its annotations, which are kept as they are written: the rest is the index.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.conversion.__main__ import build_library
from services.conversion.config import ConversionConfig
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.library import ConversionRequest
from services.conversion.source.place import DatasetSource
from services.conversion.task import Task
from tests.bench.conversion_lists import make_dataset
from tests.bench.result import Result

IMAGES = (10_000, 40_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.add_argument("--convert", type=Path, help="convert the dataset in a folder, and print the most it took")
    arguments = parser.parse_args()
    if arguments.convert:
        asyncio.run(convert(arguments.convert))
        sys.stdout.write(f"{peak_bytes()}\n")
        return
    for result in run():
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


def run() -> Iterator[Result]:
    peaks, sizes = [], []
    for images in IMAGES:
        with tempfile.TemporaryDirectory() as name:
            make_dataset(Path(name) / "dataset", random.Random(0), images)
            sizes.append((Path(name) / "dataset/labels.json").stat().st_size)
            command = [sys.executable, "-m", "tests.bench.conversion_memory", "--convert", name]
            peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            yield Result(name=f"peak memory of a conversion of {images:,} images", value=peaks[-1] / 1e6, unit="MB")
    few, many = IMAGES
    grown, written = ((each[1] - each[0]) / (many - few) for each in (peaks, sizes))
    yield Result(name="annotations of an image, as they are written", value=written, unit="bytes")
    yield Result(name="memory for each image more", value=grown, unit="bytes", bar="<= 2000")


async def convert(folder: Path) -> None:
    config = ConversionConfig(
        store_uri=(folder / "store").as_uri(), allowed_roots=(folder,), token_public_keys=(), list_seconds_max=3_600.0
    )
    with ThreadPoolExecutor(4) as threads:
        workers = WorkerPool(2)
        try:
            library = build_library(config, threads, workers, None)
            source = DatasetSource(uri=(folder / "dataset").as_uri())
            request = ConversionRequest(source=source, annotation_set="", end=Task.QUADRILATERAL_DETECTION)
            async for _ in library.convert(request):
                pass
        finally:
            workers.shutdown()


def peak_bytes() -> int:
    """Of this process alone: what its parent took before is not counted."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
