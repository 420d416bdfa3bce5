"""Datasets of other tools that go from one bucket to another: written with the caller's rights, whole or not at all."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import obstore
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, SihlaiError, Unavailable
from services.chassis.rpc import error_from_rpc
from tests.object_server import Bucket
from tests.relay import relay_to

HOSTS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
STALL_SECONDS = 1.0
YOLO = service_pb2.FOREIGN_FORMAT_YOLO_DETECT
SOON_SECONDS = 20.0


@pytest.fixture
def yolo(bucket: Bucket, tmp_path: Path) -> Bucket:
    """Three images with boxes, one without."""
    folder = tmp_path / "yolo"
    for name in ("a", "b", "c", "d"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (9, 9, ord(name))).save(folder / "images" / f"{name}.png")
    (folder / "labels").mkdir()
    for name in ("a", "b", "c"):
        (folder / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.5 1\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images\nnames: {0: cat, 1: no}\n")
    bucket.upload(folder, "yolo/")
    return bucket


def destination(bucket: Bucket, endpoint_url: str = "", **options: Any) -> dataset_pb2.DatasetSource:
    key = options.pop("key", bucket.server.owner)
    return bucket.source(key=key, endpoint_url=endpoint_url, below="/made", **options)


def import_request(bucket: Bucket, target: dataset_pb2.DatasetSource) -> service_pb2.ImportDatasetRequest:
    return service_pb2.ImportDatasetRequest(
        source=bucket.source(below="/yolo"), format=YOLO, destination=target, copy_images=True
    )


def made(bucket: Bucket, below: str = "made") -> dict[str, bytes]:
    """What lies at the destination, by name."""
    store, prefix = bucket.server.store(), f"{bucket.prefix}/{below}"
    paths = [each["path"] for batch in obstore.list(store, prefix) for each in batch]
    return {path.removeprefix(f"{prefix}/"): bytes(obstore.get(store, path).bytes()) for path in paths}


async def failure(call: Any) -> SihlaiError:
    with pytest.raises(Exception, match=r".") as caught:
        async with asyncio.timeout(SOON_SECONDS):
            [_ async for _ in call]
    return error_from_rpc(caught.value)


def test_a_dataset_goes_from_a_bucket_into_a_bucket_and_back(run: Any, yolo: Bucket) -> None:
    async def test(service: Any) -> None:
        target = destination(yolo)
        messages = [each async for each in service.stub.ImportDataset(import_request(yolo, target))]
        assert messages[-1].result.dataset.uri == target.uri
        files = made(yolo)
        assert {"metadata.json", "annotations.json", "report.json", "images/a.png"} <= set(files)
        boxes = json.loads(files["annotations.json"])
        assert boxes["a.png"][1] == {"category": "no", "bbox": [0, 0, 20, 20]}
        assert boxes["d.png"] == []
        back = yolo.source(key=yolo.server.owner, below="/back")
        export = service_pb2.ExportDatasetRequest(source=target, format=YOLO, destination=back, copy_images=True)
        messages = [each async for each in service.stub.ExportDataset(export)]
        assert messages[-1].result.dataset.uri == back.uri
        labels = [content for name, content in made(yolo, "back").items() if name.endswith("a.txt")]
        assert [line.split()[0] for line in labels[0].decode().splitlines()] == ["0", "1"]

    run(test, **HOSTS)


def test_a_key_that_may_not_write_is_refused_and_leaves_nothing(run: Any, yolo: Bucket) -> None:
    async def test(service: Any) -> None:
        for target in (
            destination(yolo, key=yolo.server.reader),
            destination(yolo, key=yolo.server.stranger),
            destination(yolo, anonymous=True),
        ):
            error = await failure(service.stub.ImportDataset(import_request(yolo, target)))
            assert isinstance(error, PermissionDenied)
            assert error.reason is Reason.OBJECT_STORE_DENIED
            assert error.message.startswith(target.uri)
        assert made(yolo) == {}

    run(test, **HOSTS)


@pytest.mark.parametrize("name", ["images/c.png", "annotations.json", "metadata.json"])
def test_an_upload_that_fails_midway_is_taken_back(name: str, run: Any, yolo: Bucket) -> None:
    """What stalls is given up; the server itself is there, so that what was uploaded can be removed."""

    async def test(service: Any) -> None:
        async with relay_to(yolo.server.port) as relay:
            relay.hold_requests(f"PUT [^ ]*/made/{name} ".encode())
            request = import_request(yolo, destination(yolo, relay.endpoint_url))
            error = await failure(service.stub.ImportDataset(request))
            assert isinstance(error, Unavailable)
            assert relay.held.is_set()
            assert made(yolo) == {}
            relay.release()
            assert [each async for each in service.stub.ImportDataset(request)][-1].HasField("result")
            assert "metadata.json" in made(yolo)

    run(test, object_write_seconds=STALL_SECONDS, **HOSTS)


def test_what_is_there_is_never_written_over(run: Any, yolo: Bucket) -> None:
    yolo.put("made/notes.txt", b"mine")

    async def test(service: Any) -> None:
        error = await failure(service.stub.ImportDataset(import_request(yolo, destination(yolo))))
        assert isinstance(error, FailedPrecondition)
        assert error.reason is Reason.OBJECT_ALREADY_EXISTS
        assert made(yolo) == {"notes.txt": b"mine"}

    run(test, **HOSTS)


def test_the_systems_own_store_is_no_destination_whatever_it_is_called(
    run: Any, yolo: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the service's own key writes for nobody, also where it reads for all."""
    own = yolo.server.owner
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", own.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", own.secret_access_key)
    name = secrets.token_hex(6)
    (tmp_path / "link").symlink_to(tmp_path / "store")

    def import_into(uri: str) -> service_pb2.ImportDatasetRequest:
        target = destination(yolo, anonymous=True)
        target.uri = uri
        return import_request(yolo, target)

    async def in_a_bucket(service: Any) -> None:
        for uri in (f"s3://results/{name}/x", f"s3://results//%{ord(name[0]):x}{name[1:]}/./x", "s3://results"):
            error = await failure(service.stub.ImportDataset(import_into(uri)))
            assert isinstance(error, PermissionDenied), uri
            assert error.reason is Reason.URI_NOT_ALLOWED, uri
        error = await failure(service.stub.ImportDataset(import_into(f"{yolo.uri}/made")))
        assert error.reason is Reason.OBJECT_STORE_DENIED
        assert made(yolo) == {}

    async def on_this_machine(service: Any) -> None:
        root = tmp_path.as_uri()
        for uri in (f"{root}/store/x", f"{root}/%73tore/x", f"{root}/./store//x", f"{root}/link/x", root):
            error = await failure(service.stub.ImportDataset(import_into(uri)))
            assert isinstance(error, PermissionDenied), uri
            assert error.reason is Reason.URI_NOT_ALLOWED, uri
        assert not (tmp_path / "store" / "x").exists()

    store = {"store_uri": f"s3://results/{name}", "store_endpoint_url": yolo.server.endpoint_url}
    run(in_a_bucket, own_credentials_uris=("s3://datasets",), **store, **HOSTS)
    run(on_this_machine, allowed_destination_roots=(tmp_path,), **HOSTS)
