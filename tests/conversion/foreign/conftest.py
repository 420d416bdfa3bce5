"""Imports and exports through the real service, and the files of foreign datasets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2

from services.conversion.finding import Report, Severity
from services.conversion.foreign import FOREIGN_FORMATS
from services.conversion.foreign.format import ForeignDataset, ForeignError, ReadRequest, Unannotated
from services.conversion.formats.format import MapFile
from services.conversion.index import ImageEntry
from services.conversion.raster.error import RasterLimits
from services.conversion.task import Task

REAL = Path(__file__).parents[4] / "shared/data"


@dataclass
class Outcome:
    """What an import or export gave. `error` where it was refused."""

    folder: Path
    findings: list[dataset_pb2.Finding] = field(default_factory=list)
    result: service_pb2.ConversionResult | None = None
    error: str = ""

    @property
    def rules(self) -> list[str]:
        return [finding.rule for finding in self.findings]

    @property
    def errors(self) -> list[str]:
        return [f.rule for f in self.findings if f.severity == dataset_pb2.SEVERITY_ERROR]

    def json(self, path: str = "annotations.json") -> Any:
        return json.loads((self.folder / path).read_text())


@dataclass
class Trader:
    """Imports from and exports to folders."""

    service: Any

    async def take(self, kind: str, source: Path, destination: Path, **fields: Any) -> Outcome:
        """Import a dataset."""
        request = service_pb2.ImportDatasetRequest(
            source=dataset_pb2.DatasetSource(uri=source.resolve().as_uri()),
            destination=dataset_pb2.DatasetSource(uri=destination.as_uri()),
            format=service_pb2.ForeignFormat.Value(f"FOREIGN_FORMAT_{kind}"),
            **fields,
        )
        return await self._outcome(self.service.stub.ImportDataset(request), destination)

    async def give(self, kind: str, source: Path, destination: Path, **fields: Any) -> Outcome:
        """Export a dataset."""
        request = service_pb2.ExportDatasetRequest(
            source=dataset_pb2.DatasetSource(uri=source.as_uri()),
            destination=dataset_pb2.DatasetSource(uri=destination.as_uri()),
            format=service_pb2.ForeignFormat.Value(f"FOREIGN_FORMAT_{kind}"),
            **fields,
        )
        return await self._outcome(self.service.stub.ExportDataset(request), destination)

    async def _outcome(self, call: Any, destination: Path) -> Outcome:
        outcome = Outcome(folder=destination)
        there = destination.exists()
        try:
            async for message in call:
                if message.HasField("finding"):
                    outcome.findings.append(message.finding)
                elif message.HasField("result"):
                    outcome.result = message.result
        except grpc.aio.AioRpcError as error:
            outcome.error = f"{error.code().name}: {error.details()}"
            assert destination.exists() == there, "nothing half written"
        return outcome


Trade = Callable[..., Any]


@pytest.fixture
def trade(run: Any, tmp_path: Path) -> Trade:
    """Runs a coroutine function with a trader; keywords are settings."""

    def trade(test: Callable[[Trader], Awaitable[Any]], **settings: Any) -> Any:
        async def with_service(service: Any) -> Any:
            return await test(Trader(service))

        roots = {"allowed_roots": (tmp_path, REAL.resolve()), "allowed_destination_roots": (tmp_path,)}
        return run(with_service, **{**roots, **settings})

    return trade


@dataclass
class Files:
    """Writes the files of a foreign dataset."""

    path: Path

    def text(self, name: str, content: str) -> Files:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return self

    def json(self, name: str, content: Any) -> Files:
        return self.text(name, json.dumps(content))

    def image(self, name: str, size: tuple[int, int] = (8, 6), **options: Any) -> Files:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name) * 31 % 256, 9, 9)).save(path, **options)
        return self

    def coco(self, kind: str, images: Mapping[str, Any], categories: list[Any], **options: Any) -> Files:
        """A COCO document: `images` by file name with their annotations."""
        listed, annotations = [], []
        for number, (name, of_image) in enumerate(images.items(), start=1):
            self.image(f"images/{name}")
            listed.append({"id": number, "file_name": name, "width": 8, "height": 6})
            annotations += [{"image_id": number, "id": len(annotations) + k, **a} for k, a in enumerate(of_image, 1)]
        about = {"images": listed, "annotations": annotations, "categories": categories, **options}
        return self.json(f"annotations/{kind}.json", about)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A folder for a foreign dataset."""
    return Files(tmp_path / "foreign")


@pytest.fixture
def real() -> Callable[[str], Path]:
    """A folder of real data."""

    def folder(name: str) -> Path:
        path = REAL / name
        if not path.is_dir():
            pytest.skip(f"the real data of {name} are not beside the repository")
        return path

    return folder


@dataclass
class LocalFiles:
    """A folder as a format sees it."""

    root: Path
    paths: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        found = sorted(path for path in self.root.rglob("*") if path.is_file())
        self.paths = {str(path.relative_to(self.root)): path.stat().st_size for path in found}

    async def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    async def head(self, path: str) -> bytes:
        return (self.root / path).read_bytes()[:4096]

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def read_each(self, paths: Sequence[str], take: Callable[[str, bytes], None], *, kept: bool = True) -> None:
        for path in paths:
            take(path, (self.root / path).read_bytes())


@dataclass
class Look:
    """A foreign dataset as its format reads it, without any service: annotations in memory by image."""

    report: Report
    dataset: ForeignDataset | None = None
    annotations: dict[str, Any] = field(default_factory=dict)

    @property
    def rules(self) -> list[str]:
        return [finding.rule for finding in self.report.findings]

    @property
    def errors(self) -> list[str]:
        return [finding.rule for finding in self.report.findings if finding.severity is Severity.ERROR]


def look(
    name: str, folder: Path, *, split: str = "", unannotated: Unannotated = Unannotated.DEFAULT, task: str = ""
) -> Look:
    """Read every image of a dataset."""
    found = Look(report=Report(findings_max=1_000, lenient=True))
    limits = RasterLimits(pixels_max=10**6, pages_max=1)
    wanted = Task(task) if task else None
    request = ReadRequest(split=split, unannotated=unannotated, raster_limits=limits, task=wanted)
    try:
        dataset = asyncio.run(FOREIGN_FORMATS[name].open(LocalFiles(folder), request, found.report))
    except ForeignError as error:
        found.report.fail(error.rule, str(error), error.place, value=error.value)
        return found
    found.dataset = dataset
    for image in dataset.images:
        with Image.open(folder / image.path) as picture:
            width, height = picture.size
        entry = ImageEntry(name=image.name, size_bytes=1, etag="", width=width, height=height)
        raw = dataset.annotation(entry)
        value = raw.value if raw is not None else None
        if raw is not None and raw.path:
            value = MapFile(suffix=raw.suffix, content=(folder / raw.path).read_bytes(), about=raw.value)
        if raw is not None and value is not None:
            value = dataset.codec.read(value, entry.size, raw.place, dataset.vocabulary, found.report)
        found.annotations[image.name] = value
    return found


@pytest.fixture(name="look")
def look_fixture() -> Callable[..., Look]:
    return look
