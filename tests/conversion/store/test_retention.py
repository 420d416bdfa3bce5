"""Converted datasets are removed when nobody has used them for long, and never while somebody does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.conversion.index import ImageEntry, Index
from services.conversion.store.store import ResultStore
from tests.object_server import Bucket

FILES = {"report.json": "{}", "metadata.json": "{}", "annotations/a.png": "map"}
DAYS = 30.0


class Clock:
    """The time of the machine, which the bucket's server has too, and days beyond it."""

    def __init__(self) -> None:
        self.days = 0.0

    def __call__(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)


async def publish(store: ResultStore, digest: str) -> None:
    with ThreadPoolExecutor(1) as executor:
        async with store.draft(digest, executor) as draft:
            for name, content in FILES.items():
                path = draft.dataset / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
            assert await store.publish(draft, digest, executor)


def test_a_dataset_of_a_folder_goes_when_nobody_has_used_it_for_so_long(tmp_path: Path) -> None:
    clock = Clock()
    store = ResultStore((tmp_path / "store").as_uri(), draft_hours_max=1, requests_max=4, now=clock)

    async def main() -> None:
        for digest in ("forgotten", "found", "read", "in-use"):
            await publish(store, digest)
        clock.days = DAYS - 1
        assert await store.expire(DAYS) == 0
        assert await store.find("found") == {}
        async with store.using(store.dataset_uri("read")):
            pass
        async with store.using(store.dataset_uri("in-use")):
            clock.days = 2 * DAYS - 2
            assert await store.expire(DAYS) == 1
            assert await store.find("forgotten") is None
            clock.days = 3 * DAYS
            assert await store.expire(DAYS) == 2
        assert {path.name for path in (tmp_path / "store/datasets").iterdir()} == {"in-use"}
        assert await store.expire(DAYS) == 1
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["datasets"]

    asyncio.run(main())


def test_a_dataset_of_a_bucket_goes_in_the_same_way(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = bucket.server, Clock()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.service.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.service.secret_access_key)
    store = ResultStore(
        f"s3://results/{bucket.prefix}",
        endpoint_url=server.endpoint_url,
        draft_hours_max=1,
        requests_max=4,
        now=clock,
    )

    async def main() -> None:
        async with store.using(store.dataset_uri("never-made")):
            assert await store.expire(DAYS) == 0
        for digest in ("forgotten", "in-use"):
            await publish(store, digest)
        assert await store.find("in-use") == {}
        assert await store.expire(DAYS) == 0
        clock.days = DAYS + 1
        async with store.using(store.dataset_uri("in-use")):
            assert await store.expire(DAYS) == 1
            assert await store.find("forgotten") is None
            assert await store.find("in-use") == {}
        clock.days = 2 * DAYS + 2
        assert await store.expire(DAYS) == 1
        assert [each.path async for each in store._objects.list()] == []

    asyncio.run(main())


async def keep_and_forget_indices(store: ResultStore, clock: Clock) -> None:
    index = Index(entries=(ImageEntry(name="a.png", size_bytes=1, etag="e"),))
    assert await store.expire_indices(DAYS) == 0
    for key in ("forgotten", "used"):
        await store.write_index(key, index)
    clock.days = DAYS - 1
    assert await store.expire_indices(DAYS) == 0
    assert await store.read_index("used") == index


def test_an_index_of_a_folder_goes_when_nobody_has_used_it_for_so_long(tmp_path: Path) -> None:
    clock = Clock()
    store = ResultStore((tmp_path / "store").as_uri(), draft_hours_max=1, requests_max=4, now=clock)

    async def main() -> None:
        await keep_and_forget_indices(store, clock)
        clock.days = 2 * DAYS - 2
        assert await store.expire_indices(DAYS) == 1
        assert await store.read_index("forgotten") is None
        clock.days = 3 * DAYS
        assert await store.expire_indices(DAYS) == 1
        assert not list((tmp_path / "store/indices").iterdir())

    asyncio.run(main())


def test_an_index_of_a_bucket_goes_in_the_same_way(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = bucket.server, Clock()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.service.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.service.secret_access_key)
    store = ResultStore(
        f"s3://results/{bucket.prefix}",
        endpoint_url=server.endpoint_url,
        draft_hours_max=1,
        requests_max=4,
        now=clock,
    )

    async def main() -> None:
        await keep_and_forget_indices(store, clock)
        clock.days = DAYS + 1
        # The bucket's clock is not ours: both were written today.
        assert await store.expire_indices(DAYS) == 2
        assert [each.path async for each in store._objects.list()] == []

    asyncio.run(main())


def test_other_uris_are_none_of_the_stores(tmp_path: Path) -> None:
    store = ResultStore((tmp_path / "store").as_uri(), draft_hours_max=1, requests_max=4)

    async def main() -> None:
        for uri in (
            "s3://bucket/x",
            "file:///x",
            store.uri,
            f"{store.uri}/datasets",
            f"{store.dataset_uri('a')}/images",
        ):
            async with store.using(uri):
                pass

    asyncio.run(main())
    assert not (tmp_path / "store").exists()
