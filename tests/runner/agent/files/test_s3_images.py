"""Images and maps out of a real S3 server, with the keys that are meant for them and no others."""

import asyncio
import random
from pathlib import Path

import pytest
from sihlai.scheduler.v1 import job_pb2

from runner.agent.files.download import Downloaded, DownloadLimits, Downloads, IndexedImage
from runner.agent.files.provision import ending_of_provision
from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, Unavailable
from services.chassis.objects.access import S3Key
from tests.object_server import Bucket
from tests.relay import relay_to
from tests.runner.agent.recording import until

CONTENT = {f"{index}.png": b"image" * (index + 1) for index in range(20)} | {"large.png": bytes(2**20 + 1)}
IMAGES = [IndexedImage(name=name, size_bytes=len(content)) for name, content in CONTENT.items()]


@pytest.fixture
def images(bucket: Bucket) -> Bucket:
    for name, content in CONTENT.items():
        bucket.put(f"images/{name}", content)
    return bucket


def fetch(
    bucket: Bucket, folder: Path, *, anonymous: bool = False, key: S3Key | None = None, own: tuple[str, ...] = ()
) -> Downloaded:
    limits = DownloadLimits(concurrent_max=8, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0)
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


def test_a_bucket_that_is_away_for_a_while_is_waited_for_and_then_nobodys_fault(images: Bucket, tmp_path: Path) -> None:
    """Once it is back the download goes on; where it stays away the attempt is handed back."""
    problems: list[str] = []

    async def fetch_over_a_relay(unavailable_seconds_max: float, folder: Path, *, comes_back: bool) -> Downloaded:
        limits = DownloadLimits(
            concurrent_max=4,
            unavailable_seconds_max=unavailable_seconds_max,
            missing_seconds_max=0,
            disk_free_bytes_min=0,
        )
        async with relay_to(images.server.port) as relay:
            source = images.source()
            source.endpoint_url = relay.endpoint_url
            downloads = Downloads(limits=limits, randomness=random.Random(0))
            wanted = downloads.images(source, f"{images.uri}/images", IMAGES, folder)
            await relay.cut()
            fetching = asyncio.create_task(
                downloads.files(wanted, folder, on_progress=lambda done, total: None, on_problem=problems.append)
            )
            if comes_back:
                await until(lambda: any(problems), seconds=60)
                await relay.open()
            return await fetching

    fetched = asyncio.run(fetch_over_a_relay(60, tmp_path / "out", comes_back=True))
    assert fetched.files == len(CONTENT)
    assert problems[-1] == ""
    with pytest.raises(Unavailable) as away:
        asyncio.run(fetch_over_a_relay(0, tmp_path / "never", comes_back=False))
    ending = ending_of_provision(away.value)
    assert (ending.outcome, ending.reason) == (
        job_pb2.ATTEMPT_OUTCOME_HANDED_BACK,
        job_pb2.JOB_REASON_STORE_UNAVAILABLE,
    )


def test_a_download_that_breaks_off_again_and_again_goes_on_where_it_was(bucket: Bucket, tmp_path: Path) -> None:
    """No connection lives long enough for the whole of it, and all of it takes longer than a store may be away."""
    content = random.Random(0).randbytes(24 * 2**20)
    bucket.put("images/huge.tif", content)
    limits = DownloadLimits(concurrent_max=4, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0)

    async def fetch_over_a_relay() -> float:
        async with relay_to(bucket.server.port) as relay:
            relay.break_answers(2**21)
            source = bucket.source()
            source.endpoint_url = relay.endpoint_url
            downloads = Downloads(limits=limits, randomness=random.Random(0))
            image = IndexedImage(name="huge.tif", size_bytes=len(content))
            wanted = downloads.images(source, f"{bucket.uri}/images", [image], tmp_path)
            return (await downloads.files(wanted, tmp_path, on_progress=lambda done, total: None)).seconds

    assert asyncio.run(fetch_over_a_relay()) > limits.unavailable_seconds_max
    assert (tmp_path / "huge.tif").read_bytes() == content


def test_an_image_that_is_gone_from_its_bucket_ends_the_download(images: Bucket, tmp_path: Path) -> None:
    images.delete("images/7.png")
    with pytest.raises(FailedPrecondition, match=r"the image 7\.png is gone") as refused:
        fetch(images, tmp_path / "out")
    assert refused.value.reason is Reason.DATASET_CHANGED
