"""Lists of images for viewers, beside the bar of the design: `python -m tests.bench.conversion_lists [--json]`.

A dataset of 100,000 photos with boxes, all hard links to a few files. The first call goes through it; what counts is a
page of 50 images with thumbnails that nobody has asked for before. Beside each page stands the bare decoding and making
smaller of as many photos, one after the other; the ratio is the median of the pages, the value that of the fastest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from services.chassis.image import read_image
from services.conversion.__main__ import build_library
from services.conversion.config import ConversionConfig
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.passes.catalogue import ImagesRequest
from services.conversion.source.place import DatasetSource
from tests.bench.result import Result, print_lines
from tests.bench.turns import in_turns

IMAGES = 100_000
LINKS_MAX = 50_000
"""To one file: ext4 takes 65,000."""
PAGE = 50
SIDE = 128
WIDTH, HEIGHT = 640, 480
PAGES = 9
CATEGORIES = tuple(f"category {number}" for number in range(80))


def main() -> None:
    print_lines(__doc__, run())


def run() -> Iterator[Result]:
    bare = f"bare decoding and making smaller of {PAGE} photos"
    listed = f"ListImages: {PAGE} of {IMAGES:,} annotated images with thumbnails, once indexed"
    with tempfile.TemporaryDirectory() as name, pages(Path(name)) as (photo, next_page):
        first = next_page()
        found = in_turns({bare: lambda: bare_page(photo), listed: next_page}, PAGES)
    yield Result(name=bare, value=found.least(bare), unit="s")
    yield Result(name=f"the first page of {IMAGES:,} annotated images, none of them indexed", value=first, unit="s")
    yield Result(name=listed, value=found.least(listed), unit="s", bar="<= 0.3", ratio=found.ratio(bare, listed))


def make_dataset(folder: Path, chance: random.Random, images: int = IMAGES) -> bytes:
    """The photo that all images are."""
    (folder / "images").mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([x % 256, y % 256, (x + y) // 5 % 256], axis=2).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    annotations = {}
    for number in range(images):
        if number % LINKS_MAX:
            os.link(folder / f"images/{number - number % LINKS_MAX}.jpg", folder / f"images/{number}.jpg")
        else:
            (folder / f"images/{number}.jpg").write_bytes(file.getvalue())
        left, top = chance.randrange(WIDTH - 100), chance.randrange(HEIGHT - 100)
        box = [left, top, left + chance.randrange(5, 100), top + chance.randrange(5, 100)]
        annotations[f"{number}.jpg"] = [{"category": chance.choice(CATEGORIES), "bbox": box}]
    (folder / "labels.json").write_text(json.dumps(annotations))
    metadata = {"task": "object detection", "categories": CATEGORIES, "annotations": "labels.json"}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return file.getvalue()


def bare_page(photo: bytes) -> float:
    began = time.perf_counter()
    for _ in range(PAGE):
        picture = read_image(photo, side_min=SIDE)
        picture = picture.resize((SIDE, SIDE * HEIGHT // WIDTH), reducing_gap=2.0)
        picture.save(BytesIO(), "JPEG", quality=85)
    return time.perf_counter() - began


@contextlib.contextmanager
def pages(folder: Path) -> Iterator[tuple[bytes, Callable[[], float]]]:
    """A dataset's photo, and what asks for the next page and gives the seconds that it took."""
    photo = make_dataset(folder / "dataset", random.Random(0))
    config = ConversionConfig(
        store_uri=(folder / "store").as_uri(), allowed_roots=(folder,), token_public_keys=(), list_seconds_max=3_600.0
    )
    begins = count(step=PAGE)
    with ThreadPoolExecutor(4) as threads, asyncio.Runner() as loop:
        workers = WorkerPool(2)
        library = build_library(config, threads, workers, None)

        def next_page() -> float:
            request = ImagesRequest(
                source=DatasetSource(uri=(folder / "dataset").as_uri()),
                annotation_set="",
                begin=next(begins),
                count=PAGE,
                side=SIDE,
            )
            began = time.perf_counter()
            found = loop.run(library.images(request))
            seconds = time.perf_counter() - began
            assert len(found.images) == PAGE
            assert all(each.shown.content for each in found.images)
            return seconds

        try:
            yield photo, next_page
        finally:
            workers.shutdown()


if __name__ == "__main__":
    main()
