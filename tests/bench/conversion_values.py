"""Conversions of values, beside the bars of the design: `python -m tests.bench.conversion_values [--json]`.

Each line has name, value, unit, bar and ratio. The ratio is to a bare loop, which does the least that could be called
the same work, so that a slow machine shows: 1 is as good as the loop, 0.5 takes twice as long. All take turns; the
ratio is the median of the rounds, the value that of the fastest. Seconds are those of the processor, in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from services.conversion.__main__ import COLLECTION_THRESHOLDS
from services.conversion.convert.plan import Plan, plan
from services.conversion.conveyor.conveyor import Conveyor
from services.conversion.conveyor.journal import Journal
from services.conversion.dataset.metadata import read_metadata
from services.conversion.dataset.snapshot import SetContents, Snapshot
from services.conversion.file.document import read_document
from services.conversion.finding import Report
from services.conversion.index import ImageEntry, Index
from services.conversion.passes.conversion import Conversion
from services.conversion.task import Task
from tests.bench.result import Result, print_lines
from tests.bench.turns import in_turns

IMAGES = 5_000
BOXES = 36_000
ROUNDS = 11
WIDTH, HEIGHT = 640, 480
BOX, QUAD = Task.OBJECT_DETECTION, Task.QUADRILATERAL_DETECTION
CATEGORIES = tuple(f"category {number}" for number in range(80))


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in YAML as people write it, in JSON as this system does, as quads in JSON, and each number as a text."""

    yaml: bytes
    json: bytes
    quads: bytes
    numbers: list[list[tuple[str, list[str]]]]


def main() -> None:
    print_lines(__doc__, run())


def run() -> Iterator[Result]:
    with collecting_as_the_service():
        boxes = make_boxes(random.Random(0))
        yield from reading(boxes.yaml, "boxes.yaml", "loop over libyaml's events", bare_yaml, "ratio >= 0.7")
        yield from reading(boxes.json, "boxes.json", "json.loads", json.loads, "ratio >= 0.4")
        yield from converting(boxes)


@contextlib.contextmanager
def collecting_as_the_service() -> Iterator[None]:
    """What is left of Python's collector of garbage where the service runs, also beside the bare loops."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTION_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def reading(content: bytes, name: str, bare_name: str, bare: Callable[[bytes], object], bar: str) -> Iterator[Result]:
    """As a file of annotations is read: everything is looked at and stays text. Then all of it as values at once."""
    works = {
        f"bare {bare_name}, 36,000 boxes": lambda: bare(content),
        f"reading {name}, as annotations are": lambda: read_document(content, name, keep=True),
        f"reading {name}, all as values": lambda: read_document(content, name),
    }
    found = in_turns({each: partial(seconds_of, work) for each, work in works.items()}, ROUNDS)
    twin, kept, values = works
    yield Result(name=twin, value=found.least(twin), unit="s")
    yield Result(name=kept, value=found.least(kept), unit="s", bar=bar, ratio=found.ratio(twin, kept))
    yield Result(name=values, value=found.least(values), unit="s", ratio=found.ratio(twin, values))


def converting(boxes: Boxes) -> Iterator[Result]:
    """Every path beside one loop over boxes and quads to labels."""
    bare = "bare loop from boxes over quads to labels"
    works: dict[str, Callable[[], float]] = {bare: lambda: seconds_of(lambda: bare_labels(boxes))}
    for name, (start, end, *via) in PATHS.items():
        works[name] = Converting(boxes.json if start is BOX else boxes.quads, plan(start, end, via=via)).seconds
    gc.freeze()  # what was read beforehand is no part of what is measured, nor is looking through it
    found = in_turns(works, ROUNDS)
    gc.unfreeze()
    yield Result(name=bare, value=IMAGES / found.least(bare), unit="images/s")
    for name, (start, end, *_) in PATHS.items():
        bar = "ratio >= 0.3" if {start, end} == {BOX, QUAD} else ">= 10000"
        value = IMAGES / found.least(name)
        yield Result(name=name, value=value, unit="images/s", bar=bar, ratio=found.ratio(bare, name))


PATHS = {
    "boxes to quads to boxes to labels, once read": (BOX, Task.MULTILABEL_CLASSIFICATION, QUAD),
    "quads to boxes to labels, once read": (QUAD, Task.MULTILABEL_CLASSIFICATION),
    "boxes to labels, once read": (BOX, Task.MULTILABEL_CLASSIFICATION),
    "boxes to quads, once read": (BOX, QUAD),
    "quads to boxes, once read": (QUAD, BOX),
}


def make_boxes(chance: random.Random) -> Boxes:
    """As many an image as in the validation images of COCO, with two digits after the point."""
    numbers: list[list[tuple[str, list[str]]]] = [[] for _ in range(IMAGES)]
    for _ in range(BOXES):
        x, y = chance.uniform(0, WIDTH - 110), chance.uniform(0, HEIGHT - 110)
        corners = (x, y, x + chance.uniform(5, 100), y + chance.uniform(5, 100))
        chance.choice(numbers).append((chance.choice(CATEGORIES), [f"{each:.2f}" for each in corners]))
    lines = []
    for number, image in enumerate(numbers):
        lines.append(f"{number:06}.jpg:{'' if image else ' []'}")
        lines += [f"- category: {name}\n  bbox: [{', '.join(corners)}]" for name, corners in image]
    as_json: dict[str, Any] = {
        f"{number:06}.jpg": [{"category": name, "bbox": [float(each) for each in corners]} for name, corners in image]
        for number, image in enumerate(numbers)
    }
    as_quads = {
        name: [{"category": each["category"], "quad": quad_of(*each["bbox"])} for each in image]
        for name, image in as_json.items()
    }
    return Boxes(
        yaml="\n".join(lines).encode(),
        json=json.dumps(as_json).encode(),
        quads=json.dumps(as_quads).encode(),
        numbers=numbers,
    )


def quad_of(xmin: float, ymin: float, xmax: float, ymax: float) -> list[list[float]]:
    return [[xmin, ymin], [xmax, ymin], [xmax, ymax], [xmin, ymax]]


def seconds_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def bare_yaml(content: bytes) -> None:
    for _ in yaml.parse(content, Loader=yaml.CSafeLoader):
        pass


def bare_labels(boxes: Boxes) -> list[str]:
    """Numbers read, corners made, bounds taken, labels written; nothing checked."""
    written = []
    for image in boxes.numbers:
        labels = {}
        for name, corners in image:
            xmin, ymin, xmax, ymax = map(float, corners)
            quad = ((xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax))
            across, down = [x for x, _ in quad], [y for _, y in quad]
            if min(across) < max(across) and min(down) < max(down):
                labels[name] = True
        written.append(json.dumps(list(labels)))
    return written


class Converting:
    """The service's own pass, from annotations that are parsed to files that are written, as often as it is wanted."""

    def __init__(self, annotations: bytes, way: Plan) -> None:
        self._report = Report(findings_max=100)
        metadata = json.dumps({"task": way.start, "categories": CATEGORIES, "annotations": "objects.json"})
        declared = read_metadata(metadata.encode(), "metadata.json", self._report)
        entries = tuple(
            ImageEntry(name=f"{n:06}.jpg", size_bytes=1, etag=str(n), width=WIDTH, height=HEIGHT, format="JPEG")
            for n in range(IMAGES)
        )
        snapshot = Snapshot(
            uri="file:///boxes",
            endpoint_url="",
            images_uri="file:///boxes/images",
            metadata=declared,
            index=Index(entries=entries),
            refused={},
            findings=(),
            contents={"": SetContents(file=annotations)},
            fingerprint="",
        )
        self._conversion = Conversion(snapshot, declared.sets[0], way, self._report)
        self._freight = self._conversion.prepare()
        self._records = list(self._freight.records)  # otherwise each value is read as its turn comes

    def seconds(self) -> float:
        """Of one pass."""
        with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as threads:
            folder = Path(name)
            conveyor = Conveyor(threads=threads, workers=threads, workers_max=1, requests_max=1)
            for path in ("journal", "dataset"):
                (folder / path).mkdir()
            taken = seconds_of(lambda: asyncio.run(self._carry(folder, conveyor)))
        assert not self._report.findings
        return taken

    async def _carry(self, folder: Path, conveyor: Conveyor) -> None:
        freight = replace(self._freight, records=iter(self._records))
        sink = self._conversion.sink()
        sink.begin(folder / "dataset", freight.recipe.target_vocabulary())
        await self._conversion.run(freight, conveyor, sink, lambda _: None, Journal(folder / "journal"))
        sink.end()


if __name__ == "__main__":
    main()
