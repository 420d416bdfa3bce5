"""An image that was replaced by another one of the same size is not trained on."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import obstore
import pytest
from sihlai.conversion.v1.dataset_pb2 import DatasetSource

from runner.agent.files.download import IN_MEMORY_BYTES_MAX, DownloadLimits, Downloads, IndexedImage
from services.chassis.errors import FailedPrecondition, Reason
from tests.object_server import Bucket

SIZES = [10, IN_MEMORY_BYTES_MAX + 1]
"""One that is read at once, and one that is copied piece by piece."""


async def fetch(source: DatasetSource, uri: str, image: IndexedImage, folder: Path) -> bytes:
    limits = DownloadLimits(concurrent_max=2, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0)
    downloads = Downloads(limits=limits, randomness=random.Random(0))
    await downloads.files(downloads.images(source, uri, [image], folder), folder, on_progress=lambda done, total: None)
    return (folder / image.name).read_bytes()


@pytest.mark.parametrize("size_bytes", SIZES)
def test_an_image_of_a_machine_is_checked_by_its_checksum(size_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "images/a.png"
    path.parent.mkdir()
    path.write_bytes(b"a" * size_bytes)
    etag = f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}"
    image = IndexedImage(name="a.png", size_bytes=size_bytes, etag=etag)
    source = DatasetSource(uri=tmp_path.as_uri())
    uri = path.parent.as_uri()
    assert asyncio.run(fetch(source, uri, image, tmp_path / "out")) == path.read_bytes()
    path.write_bytes(b"b" * size_bytes)
    with pytest.raises(FailedPrecondition, match=r"the image a\.png has not the checksum") as refused:
        asyncio.run(fetch(source, uri, image, tmp_path / "out"))
    assert refused.value.reason is Reason.DATASET_CHANGED


@pytest.mark.parametrize("size_bytes", SIZES)
def test_an_image_of_a_bucket_is_checked_by_its_etag(size_bytes: int, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a.png", b"a" * size_bytes)
    etag = obstore.head(bucket.server.store(), f"{bucket.prefix}/images/a.png")["e_tag"]
    image = IndexedImage(name="a.png", size_bytes=size_bytes, etag=etag or "")
    uri = f"{bucket.uri}/images"
    assert asyncio.run(fetch(bucket.source(), uri, image, tmp_path / "out")) == b"a" * size_bytes
    bucket.put("images/a.png", b"b" * size_bytes)
    with pytest.raises(FailedPrecondition, match=r"the image a\.png has not the ETag") as refused:
        asyncio.run(fetch(bucket.source(), uri, image, tmp_path / "out"))
    assert refused.value.reason is Reason.DATASET_CHANGED
