"""Conversions of maps, beside the bars of the design: `python -m tests.bench.conversion_maps [--json]`.

500 panoptic maps of 640 x 480 pixels with 14.5 segments each are made from a seed, as the COCO panoptic format has them
and natively, and converted as the service does it: files read, chunks converted in processes, files written. Seconds
are those of the clock, as that is what two processes are for. The ratio is to a bare loop in as many processes, which
decodes, looks up, finds runs or colours and encodes, and checks nothing; and to the peers' way, which looks for every
segment in the whole map, in the one process that it has. All take turns; the ratio is the median of the rounds, the
value that of the fastest. Memory is that of a process and its workers that do this once and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from services.conversion.convert.plan import plan
from services.conversion.conveyor.chunk import Recipe
from services.conversion.conveyor.conveyor import Conveyor, Freight
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.conveyor.sink import NormalisedSink, NormalisedWriter, Sink
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.foreign.coco.instances import CocoInstances
from services.conversion.foreign.coco.panoptic import CocoSegments
from services.conversion.foreign.format import WriteRequest
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import paint
from services.conversion.formats.format import MapFile
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageEntry, ImageSize, Index
from services.conversion.raster.error import RasterLimits
from services.conversion.raster.palette import KeyTable, keys_of_pixels
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.raster.rle import encode_rles
from services.conversion.raster.runs import bounds_of_many, runs_of_labels
from services.conversion.raster.tiff import read_pages, write_instances
from services.conversion.task import Task
from tests.bench.result import Result
from tests.bench.turns import in_turns

IMAGES = 500
MEMORY_IMAGES = (500, 2_000)
WIDTH, HEIGHT = 640, 480
SIZE = ImageSize(width=WIDTH, height=HEIGHT)
LIMITS = RasterLimits(pixels_max=10**7, pages_max=1_000)
ROUNDS = 5
OF_BARE = 0.5
"""Of the speed of as many processes that check nothing and write nothing."""
THINGS = tuple(f"thing {number}" for number in range(80))
STUFF = tuple(f"stuff {number}" for number in range(53))
NAMES = (*THINGS, *STUFF)
IDS = {name: number for number, name in enumerate(NAMES, start=1)}
COLORS = PanopticColors(
    names=NAMES, colors={name: (n % 256, 1 + n // 256, 7) for name, n in IDS.items()}, things=frozenset(THINGS)
)
MEMORY_SECONDS = 0.02
MEMORY_GROWTH_MAX = 1.1
"""So much of a difference is chance."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Files of the same maps, by image, and what COCO's JSON says of each."""

    folder: Path
    names: tuple[str, ...]
    about: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One conversion to be measured. `files`: what its source is, `png` or `tiff`."""

    name: str
    end: Task
    files: str
    coco: bool = False


COCO = Route(
    name="COCO panoptic PNG to COCO instances with RLE", end=Task.INSTANCE_SEGMENTATION, files="png", coco=True
)
NATIVE = Route(name="panoptic TIFF to instance TIFF", end=Task.INSTANCE_SEGMENTATION, files="tiff")
SEMANTIC = Route(name="panoptic TIFF to semantic PNG", end=Task.SEMANTIC_SEGMENTATION, files="tiff")
COCO_SEMANTIC = Route(name="COCO panoptic PNG to semantic PNG", end=Task.SEMANTIC_SEGMENTATION, files="png")
"""The second of the pair is what the peers' figures are for."""


Bare = Callable[[bytes, bytes], object]
"""What makes something of a map's file and its `segments_info`."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How another tool does it, and how many times as fast we want to be."""

    name: str
    way: Bare
    times: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.add_argument("--images", type=int, default=IMAGES, help="maps of a conversion")
    parser.add_argument("--memory-of", type=Path, help="convert the maps of this folder once")
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        with conveyor_of(2) as (conveyor, _):
            Carrying(route=COCO, maps=found_maps(arguments.memory_of), conveyor=conveyor).seconds(arguments.images)
        return
    for result in run(arguments.images):
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


def run(images: int = IMAGES) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        maps = make_maps(Path(folder), images)
        of_pycocotools = Peer(name="pycocotools", way=pycocotools_rle, times=3.0)
        of_panopticapi = Peer(name="panopticapi", way=panopticapi_semantic, times=2.0)
        yield from rates(COCO, maps, 1, bare_rle)
        yield from rates(COCO, maps, 2, bare_rle, of_pycocotools)
        yield from rates(NATIVE, maps, 2, bare_tiff)
        yield from rates(COCO_SEMANTIC, maps, 2, bare_semantic, of_panopticapi)
        yield from rates(SEMANTIC, maps, 2)
        few, many = (memory(maps, count) for count in MEMORY_IMAGES)
        yield Result(name=f"peak memory, {MEMORY_IMAGES[0]} images", value=few / 1e6, unit="MB")
        yield Result(
            name=f"peak memory, {MEMORY_IMAGES[1]} images",
            value=many / 1e6,
            unit="MB",
            bar=f"<= {MEMORY_GROWTH_MAX * few / 1e6:.0f}",
            ratio=few / many,
        )


def rates(
    route: Route, maps: Maps, workers: int, bare: Bare | None = None, peer: Peer | None = None
) -> Iterator[Result]:
    """Of one route, beside what is bare and the way of a peer."""
    images = len(maps.names)
    ours = f"{route.name}, {workers} worker{'s' if workers > 1 else ''}"
    with conveyor_of(workers) as (conveyor, pool):
        carrying = Carrying(route=route, maps=maps, conveyor=conveyor)
        carrying.seconds(min(images, 64))  # the processes import what they need
        works = {ours: partial(carrying.seconds, images)}
        if bare is not None:
            works["bare loop"] = partial(bare_seconds, maps, route, bare, pool, workers)
        if peer is not None:
            works[peer.name] = partial(bare_seconds, maps, route, peer.way, pool, 1)
        found = in_turns(works, ROUNDS)
    value = images / found.least(ours)
    if bare is None:
        yield Result(name=ours, value=value, unit="images/s")
    else:
        yield Result(name=f"bare loop, {ours}", value=images / found.least("bare loop"), unit="images/s")
        ratio = found.ratio("bare loop", ours)
        yield Result(name=ours, value=value, unit="images/s", bar=f"ratio >= {OF_BARE}", ratio=ratio)
    if peer is not None:
        yield Result(name=f"peer: {peer.name}, 1 process", value=images / found.least(peer.name), unit="images/s")
        bar = f"ratio >= {peer.times:g}"
        yield Result(
            name=f"{ours}, beside {peer.name}",
            value=value,
            unit="images/s",
            bar=bar,
            ratio=found.ratio(peer.name, ours),
        )
    of_processor = max(carrying.of_processor)
    yield Result(name=f"{ours}, a second of the processor", value=of_processor, unit="images")


def make_maps(folder: Path, count: int) -> Maps:
    """Bands of stuff, and things with wavy outlines upon them; a little void."""
    chance = random.Random(0)
    names, about = [], {}
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(count):
        labels = np.zeros((HEIGHT, WIDTH), np.uint16)
        segments: list[Segment] = []
        for band in range(3):
            category = chance.choice(STUFF)
            edge = HEIGHT * band / 3 + 30 * np.sin(x / chance.uniform(20, 90)) + chance.uniform(0, 40)
            labels[y >= edge] = len(segments) + 1
            segments.append(Segment(category=category, id=len(segments) + 1))
        for _ in range(chance.choice((11, 12))):
            radius = chance.uniform(8, 90)
            left, top = chance.randrange(WIDTH), chance.randrange(HEIGHT)
            reach = int(1.3 * radius) + 1
            window = (slice(max(0, top - reach), top + reach), slice(max(0, left - reach), left + reach))
            dx, dy = x[window] - left, y[window] - top
            waves = chance.randint(2, 9)
            near = np.hypot(dx, dy) < radius * (1 + 0.3 * np.sin(waves * np.arctan2(dy, dx)))
            if near.any():
                labels[window][near] = len(segments) + 1
                segments.append(Segment(category=chance.choice(THINGS), id=len(segments) + 1))
        name = f"{number:012}"
        about[name] = write_maps(folder, name, labels, segments, chance)
        names.append(name)
    (folder / "about.json").write_text(json.dumps({name: text.decode() for name, text in about.items()}))
    return Maps(folder=folder, names=tuple(names), about=about)


def write_maps(
    folder: Path, name: str, labels: NDArray[np.uint16], segments: list[Segment], chance: random.Random
) -> bytes:
    """The same map in both forms; gives its `segments_info`."""
    left = [number for number in range(1, len(segments) + 1) if (labels == number).any()]
    table = np.zeros(len(segments) + 1, np.uint16)
    table[left] = np.arange(1, len(left) + 1)
    kept = tuple(segments[number - 1] for number in left)
    keys = np.array([0, *chance.sample(range(1, 2**24), len(kept))])
    ids = keys[table[labels]]
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(rgb).save(png, "PNG")  # with filters, as COCO's own have
    (folder / f"{name}.png").write_bytes(png.getvalue())
    panoptic = PanopticMap(labels=table[labels], segments=kept)
    file = FORMATS[Task.PANOPTIC_SEGMENTATION].write(panoptic, SIZE, COLORS)
    assert isinstance(file, MapFile)
    (folder / f"{name}.tiff").write_bytes(file.content)
    about = [
        {"id": int(key), "category_id": IDS[each.category], "iscrowd": 0}
        for key, each in zip(keys[1:], kept, strict=True)
    ]
    return json.dumps(about).encode()


def found_maps(folder: Path) -> Maps:
    about = {name: text.encode() for name, text in json.loads((folder / "about.json").read_text()).items()}
    return Maps(folder=folder, names=tuple(about), about=about)


@contextlib.contextmanager
def conveyor_of(workers: int) -> Iterator[tuple[Conveyor, WorkerPool]]:
    """With processes of its own."""
    with ThreadPoolExecutor(4) as threads, WorkerPool(workers) as pool:
        yield Conveyor(threads=threads, workers=pool, workers_max=workers, requests_max=16), pool


@dataclass(kw_only=True)
class Carrying:
    """One conversion, as often as it is wanted. `of_processor`: images a second of the processor, each time."""

    route: Route
    maps: Maps
    conveyor: Conveyor
    of_processor: list[float] = field(default_factory=list)

    def seconds(self, images: int) -> float:
        """Of the clock; more images than maps are the same ones again."""
        return asyncio.run(self._once(images))

    async def _once(self, images: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            recipe, sink = self.recipe_and_sink(images)
            report = Report(findings_max=10)
            freight = Freight(
                recipe=recipe, records=self.records(images), reading=Report(findings_max=10), maps=True, load=self.load
            )
            began, spent = time.perf_counter(), processor_seconds()
            sink.begin(Path(folder), recipe.target_vocabulary())
            totals = await self.conveyor.carry(freight, report, lambda totals: None, sink=sink)
            sink.end()
            seconds = time.perf_counter() - began
            self.of_processor.append(images / (processor_seconds() - spent))
        assert (totals.images, report.findings) == (images, [])
        return seconds

    def recipe_and_sink(self, images: int) -> tuple[Recipe, Sink]:
        way = plan(Task.PANOPTIC_SEGMENTATION, self.route.end)
        native = FORMATS[Task.PANOPTIC_SEGMENTATION]
        recipe = Recipe(
            reader=CocoSegments(names={n: name for name, n in IDS.items()}, ids={}, limits=LIMITS)
            if self.route.files == "png"
            else native,
            source_vocabulary=COLORS,
            source=Task.PANOPTIC_SEGMENTATION,
            target=self.route.end,
            steps=tuple((edge.start, edge.end, None) for edge in way.steps),
        )
        entries = tuple(self.entry(number) for number in range(images))
        if self.route.coco:
            request = WriteRequest(
                task=self.route.end, vocabulary=recipe.target_vocabulary(), category_ids={}, images=entries
            )
            writing = CocoInstances().write(request)
            return replace(recipe, writer=writing.codec), writing.sink
        target = FORMATS[self.route.end]
        sink = NormalisedSink(target, images_uri="file:///maps", index=Index(entries=entries), fingerprint="")
        return replace(recipe, writer=NormalisedWriter(target)), sink

    def entry(self, number: int) -> ImageEntry:
        return ImageEntry(name=f"{number:012}.jpg", size_bytes=1, etag="", width=WIDTH, height=HEIGHT, format="JPEG")

    def records(self, images: int) -> Iterator[RawRecord]:
        for number in range(images):
            name = self.maps.names[number % len(self.maps.names)]
            path = f"{name}.{self.route.files}"
            yield RawRecord(
                image=self.entry(number),
                place=Place(file=path),
                annotated=True,
                value=self.maps.about[name] if self.route.files == "png" else None,
                path=path,
                suffix=f".{self.route.files}",
            )

    async def load(self, record: RawRecord) -> bytes:
        return await asyncio.to_thread((self.maps.folder / record.path).read_bytes)


def processor_seconds() -> float:
    """Of this process and its workers, which others on the machine add little to."""
    processes = (psutil.Process(), *psutil.Process().children(recursive=True))
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def bare_seconds(maps: Maps, route: Route, bare: Bare, pool: WorkerPool, workers: int) -> float:
    """Of processes that do the least, each its share of the maps."""
    files = [(maps.folder / f"{name}.{route.files}", maps.about[name]) for name in maps.names]
    began = time.perf_counter()
    for _ in pool.map(partial(do_bare, bare), [files[first::workers] for first in range(workers)]):
        pass
    return time.perf_counter() - began


def do_bare(bare: Bare, files: Sequence[tuple[Path, bytes]]) -> None:
    for path, about in files:
        bare(path.read_bytes(), about)


def bare_labels(content: bytes, about: bytes) -> tuple[NDArray[np.uint16], list[Any]]:
    segments = json.loads(about)
    table = KeyTable([each["id"] for each in segments])
    labels, _ = table.indices(keys_of_pixels(decode_png(content, LIMITS)))
    return labels, segments


def bare_rle(content: bytes, about: bytes) -> object:
    labels, segments = bare_labels(content, about)
    found = zip(runs_of_labels(labels, len(segments)), segments, strict=True)
    runs = [mask for mask, segment in found if segment["category_id"] <= len(THINGS)]
    texts = encode_rles(runs, height=HEIGHT, width=WIDTH)
    boxes = bounds_of_many(runs, height=HEIGHT)
    return [json.dumps({"counts": text.decode(), "bbox": box}) for text, box in zip(texts, boxes, strict=True)]


def panopticapi_ids(content: bytes) -> NDArray[np.int32]:
    """The number of each pixel's segment."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(content))).astype(np.int32), 2, 0)
    ids: NDArray[np.int32] = red + 256 * green + 65_536 * blue
    return ids


def pycocotools_rle(content: bytes, about: bytes) -> object:
    """As panopticapi does it: every segment is looked for in the whole map."""
    ids = panopticapi_ids(content)
    found = []
    for segment in json.loads(about):
        if segment["category_id"] <= len(THINGS):
            mask = coco_mask.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
            found.append(json.dumps({"counts": mask["counts"].decode(), "bbox": list(coco_mask.toBbox(mask))}))
    return found


def panopticapi_semantic(content: bytes, about: bytes) -> object:
    """As panopticapi does it: every segment is looked for in the whole map; a byte a pixel, where we write colours."""
    ids = panopticapi_ids(content)
    semantic = np.zeros((HEIGHT, WIDTH), np.uint8)
    for segment in json.loads(about):
        semantic[ids == segment["id"]] = segment["category_id"]
    file = io.BytesIO()
    Image.fromarray(semantic).save(file, "PNG")
    return file.getvalue()


def bare_semantic(content: bytes, about: bytes) -> object:
    labels, segments = bare_labels(content, about)
    colors = np.zeros((len(segments) + 1, 3), np.uint8)
    for number, segment in enumerate(segments, start=1):
        colors[number] = COLORS.colors[NAMES[segment["category_id"] - 1]]
    return encode_png(paint(labels, colors))


def bare_tiff(content: bytes, about: bytes) -> object:
    colors, ids = (page.pixels() for page in read_pages(content, LIMITS))
    keys = keys_of_pixels(colors)
    labels = ids.astype(np.uint16) * (keys != 0)
    runs = [mask for mask in runs_of_labels(labels, int(labels.max())) if mask.starts.size]
    return write_instances(HEIGHT, WIDTH, [(mask, (1, 2, 3)) for mask in runs])


def memory(maps: Maps, images: int) -> int:
    """The most bytes that a process and its workers hold together, not counting twice what they share."""
    command = [sys.executable, "-m", "tests.bench.conversion_maps", "--memory-of", str(maps.folder)]
    child = psutil.Popen([*command, "--images", str(images)])
    peak = 0
    while child.poll() is None:
        held = 0
        for process in (child, *child.children(recursive=True)):
            try:
                held += process.memory_full_info().uss
            except psutil.Error:
                continue
        peak = max(peak, held)
        time.sleep(MEMORY_SECONDS)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return peak


if __name__ == "__main__":
    main()
