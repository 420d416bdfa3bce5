"""Lists of images for viewers, beside the bar of the design: `python -m tests.bench.conversion_lists [--json]`.

A dataset of 100,000 photos with boxes, all hard links to a few files. The first call goes through it; what counts is a
page of 50 images with thumbnails that nobody has asked for before. Beside it stands the bare decoding and making
smaller of as many photos, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from services.chassis.image import read_image
from services.conversion.__main__ import build_library
from services.conversion.config import ConversionConfig
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.passes.catalogue import ImagesRequest
from services.conversion.source.place import DatasetSource
from tests.bench.result import Result

IMAGES = 100_000
LINKS_MAX = 50_000
"""To one file: ext4 takes 65,000."""
PAGE = 50
SIDE = 128
WIDTH, HEIGHT = 640, 480
PAGES = 5
CATEGORIES = tuple(f"category {number}" for number in range(80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.parse_args()
    for result in run():
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = make_dataset(folder / "dataset", random.Random(0))
        bare = min(bare_page(photo) for _ in range(3))
        yield Result(name=f"bare decoding and making smaller of {PAGE} photos", value=bare, unit="s")
        first, pages = asyncio.run(measure(folder))
        yield Result(name=f"the first page of {IMAGES:,} annotated images, none of them indexed", value=first, unit="s")
        best = min(pages)
        name = f"ListImages: {PAGE} of {IMAGES:,} annotated images with thumbnails, once indexed"
        yield Result(name=name, value=best, unit="s", bar="<= 0.3", ratio=bare / best)


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


async def measure(folder: Path) -> tuple[float, list[float]]:
    """Seconds of the first page, and of some that follow it."""
    config = ConversionConfig(
        store_uri=(folder / "store").as_uri(), allowed_roots=(folder,), token_public_keys=(), list_seconds_max=3_600.0
    )
    with ThreadPoolExecutor(4) as threads:
        workers = WorkerPool(2)
        try:
            library = build_library(config, threads, workers, None)
            taken = []
            for page in range(PAGES):
                request = ImagesRequest(
                    source=DatasetSource(uri=(folder / "dataset").as_uri()),
                    annotation_set="",
                    begin=page * PAGE,
                    count=PAGE,
                    side=SIDE,
                )
                began = time.perf_counter()
                found = await library.images(request)
                taken.append(time.perf_counter() - began)
                assert len(found.rows) == PAGE
                assert all(each.content for each in found.thumbnails)
        finally:
            workers.shutdown()
    return taken[0], taken[1:]


if __name__ == "__main__":
    main()
