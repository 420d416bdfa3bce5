"""Imports from a real bucket and exports into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import obstore
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

from tests.object_server import Bucket

HOSTS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
SQUARE = {"category_id": 7, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]], "iscrowd": 1}


async def last(call: Any) -> service_pb2.ConversionResult:
    messages = [message async for message in call]
    result: service_pb2.ConversionResult = messages[-1].result
    return result


def owned(bucket: Bucket) -> Any:
    """With a key that may write."""
    return bucket.source(key=bucket.server.owner)


def keys(bucket: Bucket) -> set[str]:
    found = obstore.list(bucket.server.store(bucket.name), bucket.prefix).collect()
    return {each["path"].removeprefix(f"{bucket.prefix}/") for each in found}


def content(bucket: Bucket, path: str) -> bytes:
    return bytes(obstore.get(bucket.server.store(bucket.name), f"{bucket.prefix}/{path}").bytes())


def test_masks_go_from_bucket_to_bucket_and_back(trade: Any, files: Any, bucket: Bucket) -> None:
    files.coco("instances_train", {"a.png": [SQUARE], "b.png": []}, [{"id": 7, "name": "cat"}])
    source, native, back = (replace(bucket, prefix=f"{bucket.prefix}/{name}") for name in ("coco", "native", "back"))
    source.upload(files.path)

    async def test(trader: Any) -> None:
        taking = service_pb2.ImportDatasetRequest(
            source=source.source(), destination=owned(native), format=service_pb2.FOREIGN_FORMAT_COCO_INSTANCES
        )
        taken = await last(trader.service.stub.ImportDataset(taking))
        assert (taken.images_in, taken.annotations_out, taken.dataset.uri) == (2, 1, native.uri)
        assert keys(native) >= {"annotations/a.tiff", "annotations/a.json", "metadata.json", "report.json"}
        findings, totals = await trader.service.findings(owned(native))
        assert (list(findings), totals.images) == ([], 2)
        giving = service_pb2.ExportDatasetRequest(
            source=owned(native),
            destination=owned(back),
            format=service_pb2.FOREIGN_FORMAT_COCO_INSTANCES,
            copy_images=True,
        )
        given = await last(trader.service.stub.ExportDataset(giving))
        assert given.annotations_out == 1
        assert keys(back) == {"annotations/instances.json", "images/a.png", "images/b.png", "report.json"}
        assert content(back, "images/a.png") == (files.path / "images/a.png").read_bytes()
        again = await last(trader.service.stub.ExportDataset(giving))
        assert again.reused

    trade(test, **HOSTS)


def test_an_image_that_cannot_be_read_leaves_nothing_half_written(trade: Any, files: Any, bucket: Bucket) -> None:
    files.text("data.yaml", "names: [cat]\ntrain: images\n").text("labels/a.txt", "0 0.5 0.5 0.2 0.2\n")
    files.image("images/a.png").text("images/b.png", "no picture")
    source, native = (replace(bucket, prefix=f"{bucket.prefix}/{name}") for name in ("yolo", "native"))
    source.upload(files.path)

    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(
            source=source.source(), destination=owned(native), format=service_pb2.FOREIGN_FORMAT_YOLO_DETECT
        )
        with pytest.raises(grpc.aio.AioRpcError, match="no JPEG, PNG or TIFF"):
            await last(trader.service.stub.ImportDataset(request))
        assert keys(native) == set()
        request.lenient = True
        taken = await last(trader.service.stub.ImportDataset(request))
        assert (taken.images_in, taken.annotations_out) == (2, 1)

    trade(test, **HOSTS)


def test_a_wrong_key_is_told_and_not_taken_for_an_empty_source(trade: Any, tmp_path: Any, bucket: Bucket) -> None:
    wrong = bucket.source()
    wrong.credentials.s3.secret_access_key = "wrong"

    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(
            source=wrong, destination=wrong, format=service_pb2.FOREIGN_FORMAT_PASCAL_VOC
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await last(trader.service.stub.ImportDataset(request))
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "wrong" not in str(error.value.details())

    trade(test, **HOSTS)
    assert not list(tmp_path.rglob("*.json"))
