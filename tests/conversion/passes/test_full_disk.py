"""A disk that takes no more is an error of ours: nothing half written stays, and the service lives on."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2

from services.chassis.errors import Reason, SihlaiError, Unavailable
from services.chassis.rpc import error_from_rpc
from services.conversion.conveyor.journal import SUFFIX
from services.conversion.store.draft import LOCK
from tests.conversion.map_dataset import write_semantic
from tests.conversion.passes.test_resumption import convert, process

FILE_BYTES_MAX = 32 * 2**10


async def failure(call: Any) -> SihlaiError:
    try:
        await call
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


def left_in(store: Path) -> set[str]:
    """The names of files, but for indices and for what the next call goes on with."""
    files = {path.name for path in store.rglob("*") if path.is_file() and path.parent.name != "indices"}
    return files - {LOCK} - {path.name for path in store.rglob(f"*{SUFFIX}")}


def test_a_conversion_onto_a_full_disk_leaves_nothing_and_succeeds_once_there_is_room(tmp_path: Path) -> None:
    folder, store = write_semantic(tmp_path / "dataset", 40, size=(240, 160)), tmp_path / "store"

    async def main() -> None:
        async with process(tmp_path, store) as (service, stub):
            allowed = resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, resource.RLIM_INFINITY))
            error = await failure(convert(stub, folder))
            assert isinstance(error, Unavailable)
            assert error.reason is Reason.OBJECT_STORE_UNAVAILABLE
            assert "File too large" in error.message
            assert not left_in(store)
            resource.prlimit(service.pid, resource.RLIMIT_FSIZE, allowed)
            assert (await convert(stub, folder)).images_in == 40

    asyncio.run(main())


def test_an_import_of_images_onto_a_full_disk_shows_nothing_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    coco, store, out = tmp_path / "coco", tmp_path / "store", tmp_path / "out"
    (coco / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        Image.fromarray(pixels).save(coco / "images" / name)
    Image.fromarray(pixels[:9, :9]).save(coco / "images/0.png")  # this one fits
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (coco / "instances.json").write_text(json.dumps(content))
    request = service_pb2.ImportDatasetRequest(
        source=dataset_pb2.DatasetSource(uri=coco.as_uri()),
        destination=dataset_pb2.DatasetSource(uri=(out / "native").as_uri()),
        format=service_pb2.FOREIGN_FORMAT_COCO_INSTANCES,
        copy_images=True,
    )

    async def take(stub: Any) -> service_pb2.ConversionResult:
        messages: list[service_pb2.ImportDatasetResponse] = [each async for each in stub.ImportDataset(request)]
        return messages[-1].result

    async def main() -> None:
        settings = ("--allowed-destination-roots", str(out))
        async with process(tmp_path, store, *settings) as (service, stub):
            allowed = resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, resource.RLIM_INFINITY))
            error = await failure(take(stub))
            assert isinstance(error, Unavailable)
            assert error.reason is Reason.OBJECT_STORE_UNAVAILABLE
            assert "File too large" in error.message
            assert not left_in(store)
            assert not (out / "native").exists()
            (copied,) = out.glob(".native.part-*/copies/images/0.png")
            copied.write_bytes(bytes(copied.stat().st_size))  # by which it is known again
            resource.prlimit(service.pid, resource.RLIMIT_FSIZE, allowed)
            assert (await take(stub)).images_in == 8
        assert not any((out / "native/images/0.png").read_bytes())
        assert (out / "native/images/1.png").read_bytes() == (coco / "images/1.png").read_bytes()
        assert [path.name for path in out.iterdir()] == ["native"]

    asyncio.run(main())
