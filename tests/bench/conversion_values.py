"""Conversions of values, beside the bars of the design: `python -m tests.bench.conversion_values [--json]`.

Each line has name, value, unit, bar and ratio. The ratio is to a bare loop in the same run, which does the least that
could be called the same work, so that a slow machine shows: 1 is as good as the loop, 0.5 takes twice as long. Seconds
are those of the processor, in one thread: others who work on the machine do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from services.conversion.convert.plan import plan
from services.conversion.conveyor.conveyor import Conveyor
from services.conversion.conveyor.journal import Journal
from services.conversion.dataset.metadata import read_metadata
from services.conversion.dataset.snapshot import SetContents, Snapshot
from services.conversion.file.document import read_document
from services.conversion.finding import Report
from services.conversion.index import ImageEntry, Index
from services.conversion.passes.conversion import Conversion
from services.conversion.task import Task
from tests.bench.result import Result

IMAGES = 5_000
BOXES = 36_000
ROUNDS = 3
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.parse_args()
    for result in run():
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


def run() -> Iterator[Result]:
    boxes = make_boxes(random.Random(0))
    bare = least_seconds(lambda: bare_yaml(boxes.yaml))
    yield Result(name="bare loop over libyaml's events, 36,000 boxes", value=bare, unit="s")
    yield from reading(boxes.yaml, "boxes.yaml", bare, "ratio >= 0.7")
    bare = least_seconds(lambda: json.loads(boxes.json))
    yield Result(name="bare json.loads, 36,000 boxes", value=bare, unit="s")
    yield from reading(boxes.json, "boxes.json", bare, "ratio >= 0.4")
    bare = IMAGES / least_seconds(lambda: bare_labels(boxes))
    yield Result(name="bare loop from boxes over quads to labels", value=bare, unit="images/s")
    for name, (start, end, *via) in PATHS.items():
        rate = max(conversion_rate(boxes, start, end, *via) for _ in range(ROUNDS))
        bar = "ratio >= 0.3" if {start, end} == {BOX, QUAD} else ">= 10000"
        yield Result(name=name, value=rate, unit="images/s", bar=bar, ratio=rate / bare)


def reading(content: bytes, name: str, bare: float, bar: str) -> Iterator[Result]:
    """As a file of annotations is read: everything is looked at and stays text. Then all of it as values at once."""
    seconds = least_seconds(lambda: read_document(content, name, keep=True))
    yield Result(name=f"reading {name}, as annotations are", value=seconds, unit="s", bar=bar, ratio=bare / seconds)
    seconds = least_seconds(lambda: read_document(content, name))
    yield Result(name=f"reading {name}, all as values", value=seconds, unit="s", ratio=bare / seconds)


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


def least_seconds(work: Callable[[], object]) -> float:
    """Of some rounds the fastest: what others do on the machine only ever adds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


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


def conversion_rate(boxes: Boxes, start: Task, end: Task, *via: Task) -> float:
    """Images a second of the service's own pass, from annotations that are parsed to files that are written."""
    report = Report(findings_max=100)
    metadata = json.dumps({"task": start, "categories": CATEGORIES, "annotations": "objects.json"})
    declared = read_metadata(metadata.encode(), "metadata.json", report)
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
        contents={"": SetContents(file=boxes.json if start is BOX else boxes.quads)},
        fingerprint="",
    )
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as threads:
        conveyor = Conveyor(threads=threads, workers=threads, workers_max=1, requests_max=1)
        conversion = Conversion(snapshot, declared.sets[0], plan(start, end, via=via), report)
        freight = conversion.prepare()
        freight = replace(freight, records=iter(list(freight.records)))  # each value is read as its turn comes
        journal = Journal(Path(folder) / "journal")
        for path in ("journal", "dataset"):
            (Path(folder) / path).mkdir()
        began = time.process_time()
        sink = conversion.sink()
        sink.begin(Path(folder) / "dataset", freight.recipe.target_vocabulary())
        asyncio.run(conversion.run(freight, conveyor, sink, lambda _: None, journal))
        sink.end()
        seconds = time.process_time() - began
    assert not report.findings
    return IMAGES / seconds


if __name__ == "__main__":
    main()
