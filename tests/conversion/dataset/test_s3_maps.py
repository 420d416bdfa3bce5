"""Datasets whose annotations are maps, in a real bucket: read like those on this machine, and kept whole."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import obstore
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.chassis.errors import FailedPrecondition, Reason, SihlaiError, Unavailable
from services.chassis.rpc import error_from_rpc
from tests.conversion.map_dataset import files_of, noise, write_semantic
from tests.object_server import Bucket, free_ports
from tests.relay import relay_to

HOSTS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
STALL_SECONDS = 1.0
SEMANTIC, MULTILABEL = task_pb2.TASK_SEMANTIC_SEGMENTATION, task_pb2.TASK_MULTILABEL_CLASSIFICATION
SOON_SECONDS = 20.0


@pytest.fixture
def maps(bucket: Bucket, tmp_path: Path) -> Path:
    """Twenty images, sixteen with a map, here and in the bucket."""
    folder = write_semantic(tmp_path / "maps", 20)
    bucket.upload(folder)
    return folder


async def failure(call: Any) -> SihlaiError:
    with pytest.raises(Exception, match=r".") as caught:
        async with asyncio.timeout(SOON_SECONDS):
            await call
    return error_from_rpc(caught.value)


def local_files(result: service_pb2.ConversionResult) -> dict[str, bytes]:
    return files_of(Path(result.dataset.uri.removeprefix("file://")))


def test_maps_in_a_bucket_are_converted_into_the_same_as_those_on_this_machine(
    run: Any, maps: Path, bucket: Bucket
) -> None:
    async def test(service: Any) -> None:
        found = []
        for source in (service_pb2.ConvertDatasetRequest().source, bucket.source()):
            source.uri = source.uri or maps.as_uri()
            names = {}
            for end in (SEMANTIC, MULTILABEL):
                files = local_files(await service.convert(source, end))
                names |= {f"{end} {name}": files[name] for name in files if "annotations" in name}
            answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))
            found.append((names, answer.images, list(answer.annotation_sets)))
        assert found[0] == found[1]
        assert sum(name.endswith(".png") for name in found[0][0]) == 14  # of sixteen maps two ignore all

    run(test, **HOSTS)


@pytest.mark.parametrize("happens", ["deleted", "replaced"])
def test_a_map_that_changes_between_its_listing_and_its_turn_ends_the_call(
    happens: str, run: Any, maps: Path, bucket: Bucket
) -> None:
    async def test(service: Any) -> None:
        # Its header is read for the index, and kept: then only the conversion itself reads it.
        await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=bucket.source()))
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(rb"GET [^ ]*/maps/0005.png ")
            failed = asyncio.create_task(failure(service.convert(source, SEMANTIC)))
            async with asyncio.timeout(SOON_SECONDS):
                await relay.held.wait()
            if happens == "deleted":
                bucket.delete("maps/0005.png")
            else:
                bucket.put("maps/0005.png", noise(99))
            relay.release()
            error = await failed
            assert isinstance(error, FailedPrecondition)
            assert error.reason is Reason.DATASET_CHANGED
            assert error.message.startswith(f"{bucket.uri}/maps/0005.png ")
            assert not list(service.store.glob("datasets/*"))

    run(test, **HOSTS)


def test_maps_are_kept_in_a_bucket_whole_or_not_at_all(
    run: Any, maps: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, (port,) = bucket.server.service, free_ports(1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", own.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", own.secret_access_key)
    name = secrets.token_hex(6)
    expected: dict[str, bytes] = {}

    def kept() -> dict[str, bytes]:
        store = bucket.server.store("results")
        paths = [each["path"] for batch in obstore.list(store, f"{name}/datasets") for each in batch]
        return {path.split("/", 3)[3]: bytes(obstore.get(store, path).bytes()) for path in paths}

    async def convert_locally(service: Any) -> None:
        expected.update(local_files(await service.convert(bucket.source(), SEMANTIC)))

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port, port) as relay:
            relay.hold_requests(rb"PUT [^ ]*/annotations/0007.png ")
            error = await failure(service.convert(bucket.source(), SEMANTIC))
            assert isinstance(error, Unavailable)
            assert "report.json" not in kept()
            relay.release()
            await service.convert(bucket.source(), SEMANTIC)
            assert kept() == expected

    run(convert_locally, **HOSTS)
    store = {"store_uri": f"s3://results/{name}", "store_endpoint_url": f"http://127.0.0.1:{port}"}
    run(test, **store, object_write_seconds=STALL_SECONDS, **HOSTS)
