"""Reading COCO's JSON at the size of COCO's own: `python -m tests.bench.coco_json [--json]`.

861,000 annotations in 477 MB are made from a seed, then read, each time in a process of its own, whose seconds of the
processor and largest memory are told. "Read" is all that an import does before its first image: the file, its parsing,
the annotations by image, repeated ids. The last line also makes numbers of every polygon and box, image after image,
as the import's pass over the images does. The ratio is to msgspec alone with types for everything.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from services.conversion.finding import Report
from services.conversion.foreign.coco.annotation import read_polygons
from services.conversion.foreign.coco.document import by_image, read_coco, report_repeated_ids
from tests.bench.result import Result

ANNOTATIONS = 861_000
IMAGES = 118_287
SIZE_BYTES = 477_000_000
SHAPES = 4_096


class BareAnnotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    segmentation: list[list[float]]
    bbox: list[float]
    area: float
    iscrowd: int


class BareDocument(msgspec.Struct, gc=False):
    annotations: list[BareAnnotation]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.add_argument("--measure", choices=READERS, help="read --file, and print seconds and bytes")
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(READERS[arguments.measure], arguments.file)
        return
    for result in run():
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        make(path, random.Random(0))
        yield Result(name="size of the COCO JSON, 861,000 annotations", value=path.stat().st_size / 1e6, unit="MB")
        bare, bare_bytes = measured("msgspec", path)
        yield Result(name="bare msgspec, typed", value=bare, unit="s")
        yield Result(name="bare msgspec, typed: peak memory", value=bare_bytes / 1e9, unit="GB")
        peer, peer_bytes = measured("pycocotools", path)
        yield Result(name="pycocotools", value=peer, unit="s", ratio=bare / peer)
        yield Result(name="pycocotools: peak memory", value=peer_bytes / 1e9, unit="GB", ratio=bare_bytes / peer_bytes)
        seconds, size = measured("import", path)
        yield Result(name="reading COCO JSON", value=seconds, unit="s", bar="<= 4", ratio=bare / seconds)
        yield Result(
            name="reading COCO JSON: peak memory", value=size / 1e9, unit="GB", bar="<= 1", ratio=bare_bytes / size
        )
        seconds, size = measured("numbers", path)
        yield Result(name="reading COCO JSON, every polygon as numbers", value=seconds, unit="s", ratio=bare / seconds)
        yield Result(
            name="reading COCO JSON, every polygon as numbers: peak memory",
            value=size / 1e9,
            unit="GB",
            ratio=bare_bytes / size,
        )


def make(path: Path, chance: random.Random) -> None:
    """Polygons as long as COCO's on average, drawn from a few thousand."""
    images = ",".join(f'{{"id":{n},"file_name":"{n:012}.jpg","width":640,"height":480}}' for n in range(IMAGES))
    categories = ",".join(f'{{"id":{n},"name":"category {n}"}}' for n in range(1, 81))
    per_shape = (SIZE_BYTES - len(images)) // ANNOTATIONS - 98
    shapes = [_shape(chance, per_shape) for _ in range(SHAPES)]
    with path.open("w") as file:
        file.write(f'{{"images":[{images}],"categories":[{categories}],"annotations":[')
        for number in range(ANNOTATIONS):
            image = chance.randrange(IMAGES)
            category = chance.randrange(1, 81)
            area, box, shape = shapes[chance.randrange(SHAPES)]
            file.write(
                f'{"," if number else ""}{{"segmentation":[[{shape}]],"area":{area},"iscrowd":0,"image_id":{image},'
                f'"bbox":[{box}],"category_id":{category},"id":{number}}}'
            )
        file.write("]}")


def _shape(chance: random.Random, length: int) -> tuple[float, str, str]:
    count = max(6, int(length * chance.uniform(0.2, 1.8)) // 14 * 2)
    corners = [round(chance.uniform(0, 480), 2) for _ in range(count)]
    across, down = corners[::2], corners[1::2]
    box = (min(across), min(down), round(max(across) - min(across), 2), round(max(down) - min(down), 2))
    return round(chance.uniform(10, 90_000), 4), ",".join(map(str, box)), ",".join(map(str, corners))


def measured(reader: str, path: Path) -> tuple[float, int]:
    """Seconds of the processor and largest memory of a process that reads the file once."""
    command = [sys.executable, "-m", "tests.bench.coco_json", "--measure", reader, "--file", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found["seconds"], found["bytes"]


def measure(read: Callable[[Path], object], path: Path) -> None:
    began = time.process_time()
    kept = read(path)
    seconds = time.process_time() - began
    assert kept
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"seconds": seconds, "bytes": peak}) + "\n")


def read_for_import(path: Path) -> object:
    report = Report(findings_max=100)
    document = read_coco(path.read_bytes(), "instances", path.name)
    found = by_image(document.annotations)
    report_repeated_ids(document.annotations, path.name, report)
    assert not report.findings
    return document, found


def read_every_number(path: Path) -> object:
    document = read_coco(path.read_bytes(), "instances", path.name)
    corners = 0
    for of_image in by_image(document.annotations).values():
        for each in of_image:
            corners += sum(map(len, read_polygons(each.segmentation) or ()))
            msgspec.json.decode(each.bbox)
    return corners


def read_bare(path: Path) -> object:
    return msgspec.json.Decoder(BareDocument).decode(path.read_bytes())


def read_with_pycocotools(path: Path) -> object:
    from pycocotools.coco import COCO

    return COCO(str(path))


READERS: dict[str, Callable[[Path], object]] = {
    "import": read_for_import,
    "numbers": read_every_number,
    "msgspec": read_bare,
    "pycocotools": read_with_pycocotools,
}


if __name__ == "__main__":
    main()
