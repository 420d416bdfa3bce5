"""A service that is killed while it publishes leaves nothing that the next call to the same place stumbles over."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest

from services.chassis.errors import FailedPrecondition, Reason, Unavailable
from services.chassis.objects.store import ObjectFolder, open_store
from services.conversion.store.destination import Destination
from services.conversion.store.uploading import MARK
from tests.conversion.map_dataset import files_of
from tests.object_server import Bucket

ROOT = Path(__file__).parents[3]
PUBLISH = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from services.chassis.objects.access import S3Key
from services.chassis.objects.store import open_store
from services.conversion.store.destination import Destination
draft, uri, endpoint_url, key, secret = sys.argv[1:]
folder = open_store(uri) if uri.startswith("file:") else open_store(
    uri, endpoint_url=endpoint_url, credentials=S3Key(access_key_id=key, secret_access_key=secret)
)
with ThreadPoolExecutor(2) as executor:
    destination = Destination(
        folder, endpoint_url=endpoint_url, requests_max=1, upload_seconds_max=60, executor=executor
    )
    asyncio.run(destination.publish(Path(draft), "digest"))
"""


def write_draft(folder: Path, *, digest: str = "digest", files: int = 300) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for number in range(files):
        (folder / f"annotations/{number:04}.png").write_text(f"{digest} {number}")
    (folder / "metadata.json").write_text("{}")
    (folder / "report.json").write_text(f'{{"digest": "{digest}"}}')
    return folder


def kill_when(condition: Callable[[], Any], *arguments: str) -> None:
    """Publish in a process that is killed as soon as the condition holds, or has ended before anybody looked."""
    process = subprocess.Popen([sys.executable, "-c", PUBLISH, *arguments], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None:
            assert time.monotonic() < deadline
        assert not process.poll(), "it has failed"
    finally:
        process.kill()
        process.wait()


async def publish(folder: ObjectFolder, draft: Path, digest: str = "digest", *, seconds: float = 60) -> bool:
    with ThreadPoolExecutor(2) as executor:
        destination = Destination(
            folder, endpoint_url="", requests_max=4, upload_seconds_max=seconds, executor=executor
        )
        first = await destination.publish(draft, digest)
        assert await destination.find(digest) == {"digest": digest}
        return first


def test_the_folder_that_a_killed_service_left_beside_a_destination_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for tries in itertools.count():  # the moment between two renames is short
        target = out / f"labels{tries}"
        draft = write_draft(tmp_path / f"draft{tries}", files=4_000)
        parts = f".{target.name}.part-*"
        kill_when(lambda parts=parts: any(out.glob(parts)), str(draft), target.as_uri(), "", "", "")
        if not target.exists():
            break
        assert tries < 5
    (left,) = out.glob(f".{target.name}.part-*")
    others = [out / f".{target.name}.part-mine", out / f".{target.name}.part-{'0' * 16}", out / f".x.part-{'0' * 16}"]
    for other in others:
        other.mkdir()
        (other / "thesis.txt").write_text("years of work")
    expected = write_draft(tmp_path / "expected", files=3)
    asyncio.run(publish(open_store(target.as_uri()), write_draft(tmp_path / "draft", files=3)))
    assert files_of(target) == files_of(expected)
    assert not left.exists()
    assert all((other / "thesis.txt").exists() for other in others)


def test_the_folder_of_a_living_service_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out/labels"
    draft = write_draft(tmp_path / "draft", files=4_000)
    command = [sys.executable, "-c", PUBLISH, str(draft), target.as_uri(), "", "", ""]
    process = subprocess.Popen(command, cwd=ROOT)

    async def look() -> None:
        with ThreadPoolExecutor(2) as executor:
            folder = open_store(target.as_uri())
            destination = Destination(folder, endpoint_url="", requests_max=4, upload_seconds_max=0, executor=executor)
            while await destination.find("digest") is None:
                assert not process.poll()

    try:
        asyncio.run(asyncio.wait_for(look(), 120))
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert len(files_of(target)) == 4_002


@pytest.fixture
def interrupted(bucket: Bucket, tmp_path: Path) -> ObjectFolder:
    """A prefix into which a service was uploading when it was killed."""
    owner = bucket.server.owner
    uri = f"{bucket.uri}/out"
    draft = write_draft(tmp_path / "draft")
    for tries in itertools.count():  # a busy machine may look when the upload has ended
        kill_when(
            lambda: len(names(bucket)) > 20,
            *(str(draft), uri, bucket.server.endpoint_url, owner.access_key_id, owner.secret_access_key),
        )
        if MARK in (left := names(bucket)) and "report.json" not in left:
            break
        assert tries < 5
        for name in left:
            bucket.delete(f"out/{name}")
    return open_store(uri, endpoint_url=bucket.server.endpoint_url, credentials=owner)


def names(bucket: Bucket) -> set[str]:
    prefix = f"{bucket.prefix}/out"
    found = (each["path"] for batch in obstore.list(bucket.server.store(), prefix) for each in batch)
    return {path.removeprefix(f"{prefix}/") for path in found}


def test_an_upload_of_a_killed_service_is_gone_on_with_at_once(
    interrupted: ObjectFolder, bucket: Bucket, tmp_path: Path
) -> None:
    assert asyncio.run(publish(interrupted, tmp_path / "draft"))
    assert names(bucket) == set(files_of(tmp_path / "draft"))


def test_an_upload_of_a_killed_service_gives_way_to_another_dataset_once_it_is_surely_dead(
    interrupted: ObjectFolder, bucket: Bucket, tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "other", digest="other", files=3)
    left = names(bucket)
    with pytest.raises(Unavailable, match="being written by another call"):
        asyncio.run(publish(interrupted, draft, "other"))
    assert names(bucket) == left
    assert asyncio.run(publish(interrupted, draft, "other", seconds=0))
    assert names(bucket) == set(files_of(draft))


@pytest.mark.parametrize("digest", ["digest", "other"])
def test_nothing_is_removed_where_somebody_else_has_put_something(
    digest: str, interrupted: ObjectFolder, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put("out/thesis.txt", b"years of work")
    left = names(bucket)
    with pytest.raises(FailedPrecondition, match="is not empty") as refused:
        asyncio.run(publish(interrupted, tmp_path / "draft", digest, seconds=0))
    assert refused.value.reason is Reason.OBJECT_ALREADY_EXISTS
    assert names(bucket) == left


def test_two_services_that_upload_the_same_at_once_leave_it_whole(bucket: Bucket, tmp_path: Path) -> None:
    drafts = [write_draft(tmp_path / name) for name in ("a", "b")]
    folder = open_store(f"{bucket.uri}/out", endpoint_url=bucket.server.endpoint_url, credentials=bucket.server.owner)

    async def repeated(draft: Path) -> bool:
        while True:
            try:
                return await publish(folder, draft)
            except Unavailable:  # as whoever called is told to do
                await asyncio.sleep(0)

    async def both() -> list[bool]:
        async with asyncio.timeout(120):
            return await asyncio.gather(*map(repeated, drafts))

    assert any(asyncio.run(both()))
    assert names(bucket) == set(files_of(drafts[0]))
