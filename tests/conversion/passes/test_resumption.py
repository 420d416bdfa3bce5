"""An interrupted conversion is taken up again: what was done is not done again, and nobody can tell afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub

from services.chassis.errors import Reason
from services.chassis.rpc import channel, error_from_rpc
from services.conversion.conveyor.conveyor import CHUNK_MAPS
from services.conversion.conveyor.journal import SUFFIX
from services.conversion.conveyor.pool import WORKER
from tests import tokens
from tests.conversion.map_dataset import files_of, png, write_semantic

ROOT = Path(__file__).parents[3]
SEMANTIC = task_pb2.TASK_SEMANTIC_SEGMENTATION
CHUNKS = 24
DRAIN_SECONDS_MAX = 30.0
"""A service that stops is alone on a machine a fraction of a second at it."""


@contextlib.asynccontextmanager
async def process(tmp_path: Path, store: Path, *settings: str) -> AsyncIterator[tuple[Any, ConversionServiceStub]]:
    """A real service in a process of its own."""
    address_file = tmp_path / "address"
    address_file.unlink(missing_ok=True)
    arguments = ["--address-file", address_file, "--store-uri", store.as_uri(), "--allowed-roots", tmp_path]
    arguments += ["--token-public-keys", tmp_path / "token.pub.pem"]
    token = tokens.token(tmp_path / "token.pem")
    command = [sys.executable, "-m", "services.conversion", *map(str, arguments), "--workers-max", "1", *settings]
    quiet = asyncio.subprocess.DEVNULL
    service = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=quiet, stderr=quiet)
    try:
        await until(address_file.exists)
        async with channel(address_file.read_text().strip(), token=lambda: token) as open_channel:
            yield service, ConversionServiceStub(open_channel)
    finally:
        with contextlib.suppress(ProcessLookupError):
            service.kill()
        await service.wait()


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(map(is_alive, processes))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Any, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 — what is waited for has no event
            await asyncio.sleep(0.002)


def request(folder: Path, *, lenient: bool = False) -> service_pb2.ConvertDatasetRequest:
    source = dataset_pb2.DatasetSource(uri=folder.as_uri())
    return service_pb2.ConvertDatasetRequest(source=source, to=SEMANTIC, lenient=lenient)


async def convert(stub: ConversionServiceStub, folder: Path, *, lenient: bool = False) -> service_pb2.ConversionResult:
    messages = [message async for message in stub.ConvertDataset(request(folder, lenient=lenient))]
    return messages[-1].result


def chunks(store: Path) -> set[int]:
    return {int(path.stem) for path in store.glob(f".draft-*/journal/*{SUFFIX}")}


@contextlib.contextmanager
def forbidden_to_read(folder: Path, numbers: set[int]) -> Iterator[None]:
    """Every map of these chunks is another one, in a way that its index cannot see: to read one is an error."""
    turn(folder, numbers)
    yield
    turn(folder, numbers)


def turn(folder: Path, numbers: set[int]) -> None:
    for number in numbers:
        for image in range(number * CHUNK_MAPS, (number + 1) * CHUNK_MAPS):
            path = folder / f"maps/{image:04}.png"
            if path.exists():
                about = path.stat()
                path.write_bytes(path.read_bytes()[::-1])
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def dataset_in(store: Path) -> dict[str, bytes]:
    (folder,) = (store / "datasets").iterdir()
    return files_of(folder)


async def convert_rest(stub: ConversionServiceStub, folder: Path, store: Path) -> service_pb2.ConversionResult:
    """The next call. Until it does something new, what was done already cannot be done again."""
    finished = chunks(store)
    assert 3 <= len(finished) < CHUNKS
    # A few, so that they are themselves again long before the contact sheet wants to show one.
    with forbidden_to_read(folder, set(sorted(finished)[:3])):
        converting = asyncio.create_task(convert(stub, folder))
        await until(lambda: converting.done() or chunks(store) - finished)
    return await converting


def test_a_conversion_whose_service_is_killed_is_taken_up_by_the_next_one(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", CHUNKS * CHUNK_MAPS, size=(120, 80))
    store, undisturbed = tmp_path / "store", tmp_path / "undisturbed"
    expected = run(lambda service: convert(service.stub, folder), store_uri=undisturbed.as_uri())

    async def main() -> None:
        async with process(tmp_path, store) as (service, stub):
            call = stub.ConvertDataset(request(folder))
            await until(lambda: len(chunks(store)) >= 3)
            workers = psutil.Process(service.pid).children()
            service.kill()
            await service.wait()
            with pytest.raises(grpc.RpcError):
                async for _ in call:
                    pass
        await until(lambda: are_gone(workers))
        assert not list(store.glob("datasets/*"))
        async with process(tmp_path, store) as (_, stub):
            result = await convert_rest(stub, folder, store)
        assert (result.reused, result.labelled_out) == (False, expected.labelled_out)

    asyncio.run(main())
    assert dataset_in(store) == dataset_in(undisturbed)
    assert not list(store.glob(".draft-*"))


def test_a_cancelled_conversion_is_taken_up_by_the_next_call(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", CHUNKS * CHUNK_MAPS, size=(120, 80))

    async def test(service: Any) -> None:
        call = service.stub.ConvertDataset(request(folder))
        await asyncio.gather(anext(aiter(call)), until(lambda: len(chunks(service.store)) >= 3))
        call.cancel()
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("work ")])
        assert (await convert_rest(service.stub, folder, service.store)).labelled_out > 0
        assert not list(service.store.glob(".draft-*"))

    run(test)


def test_a_lenient_conversion_that_is_taken_up_and_repeated_gives_the_same_result_and_report(
    run: Any, tmp_path: Path
) -> None:
    folder, undisturbed = write_semantic(tmp_path / "dataset", 8 * CHUNK_MAPS, size=(120, 80)), tmp_path / "undisturbed"
    spoil(folder)
    expected = run(lambda service: convert(service.stub, folder, lenient=True), store_uri=undisturbed.as_uri())
    assert {each.rule for each in expected.dropped} == {"truncated_map", "unknown_color"}
    assert "sidecar_without_map" in {each.rule for each in expected.findings}
    assert expected.images_with_errors > 2 * CHUNK_MAPS

    async def test(service: Any) -> None:
        call = service.stub.ConvertDataset(request(folder, lenient=True))
        await asyncio.gather(anext(aiter(call)), until(lambda: len(chunks(service.store)) >= 3))
        call.cancel()
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("work ")])
        assert 3 <= len(chunks(service.store)) < 8
        resumed = await convert(service.stub, folder, lenient=True)
        repeated = await convert(service.stub, folder, lenient=True)
        assert dataset_in(service.store) == dataset_in(undisturbed)
        assert (resumed.reused, repeated.reused) == (False, True)
        for each in (resumed, repeated):
            each.reused = expected.reused
            each.dataset.CopyFrom(expected.dataset)
            assert each == expected

    run(test)


def spoil(folder: Path) -> None:
    """Something is wrong with maps of every chunk."""
    for number in range(0, 8 * CHUNK_MAPS, 3):
        path = folder / f"maps/{number:04}.png"
        if number % 2 and path.exists():
            path.write_bytes(path.read_bytes()[:60])
        elif path.exists():
            path.write_bytes(png(np.full((80, 120, 3), 77, np.uint8)))
    (folder / "maps/nobody.yaml").write_text("ignore: [1]\n")


def test_a_worker_that_is_killed_is_replaced_and_the_conversion_goes_on(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", CHUNKS * CHUNK_MAPS, size=(120, 80))

    async def test(service: Any) -> None:
        following = asyncio.create_task(convert(service.stub, folder))
        await until(lambda: len(chunks(service.store)) >= 3)
        killed = [child for child in psutil.Process().children() if WORKER in child.cmdline()]
        for child in killed:
            child.kill()
        result = await following
        assert killed
        assert (result.images_in, result.labelled_out > 0) == (CHUNKS * CHUNK_MAPS, True)

    run(test)


def test_a_service_that_is_told_to_stop_does_so_soon_and_the_next_one_takes_its_work_up(tmp_path: Path) -> None:
    folder, store = write_semantic(tmp_path / "dataset", CHUNKS * CHUNK_MAPS, size=(120, 80)), tmp_path / "store"

    async def main() -> None:
        async with process(tmp_path, store) as (service, stub):
            following = asyncio.create_task(convert(stub, folder))
            await until(lambda: len(chunks(store)) >= 3)
            workers = [each for each in psutil.Process(service.pid).children() if WORKER in each.cmdline()]
            service.terminate()
            assert await asyncio.wait_for(service.wait(), DRAIN_SECONDS_MAX) == 0
            with pytest.raises(grpc.RpcError) as caught:
                await following
            assert error_from_rpc(caught.value).reason is Reason.SERVER_STOPPING
        await until(lambda: are_gone(workers))
        async with process(tmp_path, store) as (_, stub):
            assert not (await convert_rest(stub, folder, store)).reused

    asyncio.run(main())


def test_two_services_that_make_the_same_at_once_have_one_result(tmp_path: Path) -> None:
    folder, store = write_semantic(tmp_path / "dataset", 5 * CHUNK_MAPS), tmp_path / "store"

    async def main() -> None:
        async with process(tmp_path, store) as (_, first), process(tmp_path, store) as (_, second):
            results = await asyncio.gather(convert(first, folder), convert(second, folder))
        assert results[0].dataset == results[1].dataset
        assert [result.labelled_out for result in results] == [results[0].labelled_out] * 2

    asyncio.run(main())
    assert dataset_in(store)
    assert not list(store.glob(".draft-*"))
