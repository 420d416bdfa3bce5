"""Images and maps out of a real S3 server, with the keys that are meant for them and no others."""

import asyncio
import random
from pathlib import Path

import pytest

from runner.agent.download import Downloaded, DownloadLimits, Downloads, IndexedImage
from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason
from services.chassis.objects import Credentials
from tests.object_server import Bucket

CONTENT = {f"{index}.png": b"image" * (index + 1) for index in range(20)} | {"large.png": bytes(2**20 + 1)}
IMAGES = [IndexedImage(name=name, size_bytes=len(content)) for name, content in CONTENT.items()]


@pytest.fixture
def images(bucket: Bucket) -> Bucket:
    for name, content in CONTENT.items():
        bucket.put(f"images/{name}", content)
    return bucket


def fetch(
    bucket: Bucket, folder: Path, *, anonymous: bool = False, key: Credentials | None = None, own: tuple[str, ...] = ()
) -> Downloaded:
    limits = DownloadLimits(concurrent_max=8, tries_max=2, disk_free_bytes_min=0)
    downloads = Downloads(limits=limits, randomness=random.Random(0), own_credentials_uris=own)
    source = bucket.source(anonymous=anonymous, key=key)
    wanted = downloads.images(source, f"{bucket.uri}/images", IMAGES, folder)
    return asyncio.run(downloads.files(wanted, folder, on_progress=lambda done, total: None))


def test_images_of_a_bucket_are_fetched_with_the_datasets_key(images: Bucket, tmp_path: Path) -> None:
    assert fetch(images, tmp_path / "out").files == len(CONTENT)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == CONTENT
    with pytest.raises(PermissionDenied):
        fetch(images, tmp_path / "other", key=images.server.stranger)


def test_the_runners_own_key_is_kept_for_what_its_configuration_names(
    images: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", images.server.owner.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", images.server.owner.secret_access_key)
    for own in ((), ("s3://results",), ("s3://datasets/team",)):
        with pytest.raises(PermissionDenied):
            fetch(images, tmp_path / "refused", anonymous=True, own=own)
    assert fetch(images, tmp_path / "out", anonymous=True, own=("s3://datasets/teams",)).files == len(CONTENT)


def test_an_image_that_is_gone_from_its_bucket_ends_the_download(images: Bucket, tmp_path: Path) -> None:
    images.delete("images/7.png")
    with pytest.raises(FailedPrecondition, match=r"the image 7\.png is gone") as refused:
        fetch(images, tmp_path / "out")
    assert refused.value.reason is Reason.DATASET_CHANGED
