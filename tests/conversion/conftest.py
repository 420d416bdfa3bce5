"""Datasets made of real files, and the real service on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import (
    ConversionServiceStub,
    add_ConversionServiceServicer_to_server,
)

from services.chassis.auth.guard import OpenGuard
from services.chassis.rpc import Server, channel
from services.conversion.__main__ import SERVICE, build_library
from services.conversion.config import ConversionConfig
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.servicer import ConversionServicer


@dataclass
class DatasetFolder:
    """Writes a dataset. Without changes it is sound: three cats, dogs and one image of which nothing is known."""

    path: Path

    def write(
        self,
        metadata: str | None = "task: multiclass classification\ncategories: [cat, dog]\nannotations: labels.yaml\n",
        images: tuple[str, ...] = ("a.png", "b.png", "c.png", "d.png"),
        **files: str,
    ) -> DatasetFolder:
        (self.path / "images").mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(images):
            self.image(name, color=number)
        if metadata is not None:
            self.text("metadata.yaml", metadata)
        for name, content in (files or {"labels.yaml": "a.png: cat\nb.png: dog\nc.png: dog\nd.png:\n"}).items():
            self.text(name, content)
        return self

    def text(self, name: str, content: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def image(self, name: str, *, color: int = 0, size: tuple[int, int] = (5, 4), **options: Any) -> Path:
        path = self.path / "images" / name
        image = Image.new("RGB", size, (color * 37 % 256, color * 91 % 256, color % 256))
        image.save(path, options.pop("format", None), **options)
        return path

    @property
    def source(self) -> dataset_pb2.DatasetSource:
        return dataset_pb2.DatasetSource(uri=self.path.as_uri())


@dataclass
class Service:
    """A running service and what it keeps."""

    channel: grpc.aio.Channel
    store: Path
    server: Server
    announced: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def stub(self) -> ConversionServiceStub:
        return ConversionServiceStub(self.channel)

    async def findings(
        self, source: dataset_pb2.DatasetSource, **fields: Any
    ) -> tuple[list[dataset_pb2.Finding], service_pb2.ValidationTotals]:
        request = service_pb2.ValidateDatasetRequest(source=source, **fields)
        messages = [message async for message in self.stub.ValidateDataset(request)]
        assert [message.WhichOneof("message") for message in messages].index("totals") == len(messages) - 1
        return [message.finding for message in messages if message.HasField("finding")], messages[-1].totals

    async def convert(self, source: dataset_pb2.DatasetSource, to: int, **fields: Any) -> service_pb2.ConversionResult:
        request = service_pb2.ConvertDatasetRequest(source=source, to=to, **fields)  # type: ignore[arg-type]
        messages = [message async for message in self.stub.ConvertDataset(request)]
        assert messages[-1].WhichOneof("message") == "result"
        return messages[-1].result

    def converted(self, result: service_pb2.ConversionResult) -> dict[str, Any]:
        folder = Path(result.dataset.uri.removeprefix("file://"))
        return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


Run = Callable[..., Any]


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, settings: Mapping[str, Any], workers: WorkerPool) -> AsyncIterator[Service]:
    store = tmp_path / "store"
    settings = {"allowed_roots": (tmp_path,), "progress_seconds": 0.01, **settings}
    config = ConversionConfig(**{"store_uri": store.as_uri(), "token_public_keys": (), **settings})
    server = Server(config, OpenGuard())
    announced: list[tuple[str, str, int]] = []

    class Listener:
        async def announce(self, digest: str, uri: str, images: int) -> None:
            announced.append((digest, uri, images))

    with ThreadPoolExecutor(config.threads_max) as executor:
        library = build_library(config, executor, workers, Listener())  # type: ignore[arg-type]
        servicer = ConversionServicer(library, server.stopping)
        server.add(SERVICE, lambda target: add_ConversionServiceServicer_to_server(servicer, target))
        address = await server.start()
        try:
            # An error is to be seen at once, and not after the client has tried again.
            async with channel(address, retry_attempts_max=1) as open_channel:
                yield Service(open_channel, store, server, announced)
        finally:
            await server.stop()


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """The processes of all services: each takes most of a second to start."""
    with WorkerPool(2) as workers:
        yield workers


@pytest.fixture
def run(tmp_path: Path, workers: WorkerPool) -> Run:
    """Runs a coroutine function with a service; keywords are settings."""

    def run(test: Callable[[Service], Awaitable[Any]], **settings: Any) -> Any:
        async def main() -> Any:
            async with asyncio.timeout(60), serving(tmp_path, settings, workers) as service:
                return await test(service)

        return asyncio.run(main())

    return run


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFolder:
    """A folder for a dataset, inside the allowed roots."""
    return DatasetFolder(tmp_path / "dataset")


@pytest.fixture
def other_dataset(tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(tmp_path / "other")
