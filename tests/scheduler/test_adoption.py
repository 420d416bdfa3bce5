"""Checkpoints of ended attempts are looked for, also for days where the store is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from services.chassis.loop import keep_turning
from services.chassis.objects.access import S3Key
from services.scheduler.domain.job import SECOND_US, JobState
from services.scheduler.loop.adoption import Adoption, AdoptionLimits
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store import orphans

LIMITS = AdoptionLimits(look_seconds=0.5, retry_seconds=0.05, seconds_max=120.0, days_max=7.0)


def write_checkpoint(root, job_uid: str, **changes) -> None:
    folder = root / job_uid / "1" / "40"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"model")
    manifest = {
        "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
        "epoch": 1,
        "iteration": 40,
        "cause": "STOP",
        "create_time_unix_us": 1_800_000_000_000_000,
        "selection_value": None,
        "best": False,
    } | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


async def lost(stores, project_id: str) -> str:
    """A job whose attempt was lost; its uid."""
    await stores.create_project(project_id)
    uid = await stores.submit(project_id)
    await stores.report(f"runner-of-{project_id}")
    stores.clock.pass_seconds(26)
    await stores.upkeep.renew_and_expire([])
    return uid


@contextlib.asynccontextmanager
async def adopting(stores, store: CheckpointStore, **limits):
    """Looks for checkpoints as long as it is open."""
    adoption = Adoption(stores.orphans, store, limits=replace(LIMITS, **limits), monotonic=stores.clock.monotonic)
    turning = asyncio.create_task(keep_turning("adoption", adoption.turn))
    yield
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)


class EmptyBucket:
    """An S3-compatible server that holds nothing. It never answers about the jobs that are in `slow`."""

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.waiting = 0
        self._never = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).decode()
        if any(uid in asked for uid in self.slow):
            self.waiting += 1
            await self._never.wait()
        body = b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        writer.close()

    @contextlib.asynccontextmanager
    async def serve(self):
        """The server's store of checkpoints."""
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield CheckpointStore(
            "s3://bucket/checkpoints",
            endpoint_url=address,
            credentials=S3Key(access_key_id="a", secret_access_key="b"),
        )
        self._never.set()
        server.close()


AWAY = "http://127.0.0.1:9"
"""Nobody listens there; a look ends after half a second."""


def store_that_is_away() -> CheckpointStore:
    return CheckpointStore("s3://bucket/checkpoints", endpoint_url=AWAY)


async def when_ready(stores, *uids: str) -> None:
    async def are_ready() -> bool:
        return all([(await stores.job(uid)).job.ready for uid in uids])

    await stores.when(are_ready, seconds=20.0)  # less than it takes until a client of the store gives up by itself


async def when_looked(stores) -> None:
    """Until a look has failed, and was put off."""

    async def is_put_off() -> bool:
        return await stores.count("attempts", "adopt_time_us > 0") > 0

    await stores.when(is_put_off)


async def when_over(stores) -> None:
    """Until nothing is to be looked for any more."""

    async def is_over() -> bool:
        return await stores.count("attempts", "NOT active AND NOT adopted") == 0

    await stores.when(is_over)


def test_job_waits_a_while_for_a_store_that_is_away_and_its_model_is_found_days_later(with_stores, tmp_path):
    async def test(stores):
        uid = await lost(stores, "digits")
        async with adopting(stores, store_that_is_away()):
            await when_looked(stores)
            assert (await stores.job(uid)).job.held
            stores.clock.pass_seconds(121)
            await when_ready(stores, uid)
            await stores.stop(uid)
        stores.clock.pass_seconds(3 * 86_400)
        write_checkpoint(tmp_path, uid)
        async with adopting(stores, CheckpointStore(tmp_path.as_uri())):
            await when_over(stores)
        job = (await stores.job(uid)).job
        assert (job.state, job.last_checkpoint.iteration) == (JobState.STOPPED, 40)

    with_stores(test)


def test_store_that_stays_away_is_given_up_after_days(with_stores):
    async def test(stores):
        uid = await lost(stores, "digits")
        stores.clock.pass_seconds(8 * 86_400)
        async with adopting(stores, store_that_is_away()):
            await when_over(stores)
        assert (await stores.job(uid)).job.ready

    with_stores(test)


def test_manifest_that_cannot_be_recorded_stands_before_no_other(with_stores, tmp_path):
    async def test(stores):
        poisoned, sound = await lost(stores, "poisoned"), await lost(stores, "sound")
        files = [{"name": "model.safetensors", "size_bytes": 5, "sha256": "no\0digest"}]
        write_checkpoint(tmp_path, poisoned, files=files)
        write_checkpoint(tmp_path, sound)
        async with adopting(stores, CheckpointStore(tmp_path.as_uri())):
            await when_over(stores)
        assert (await stores.job(sound)).job.last_checkpoint.iteration == 40
        assert (await stores.job(poisoned)).job.last_checkpoint is None

    with_stores(test)


def test_all_jobs_go_on_in_time_where_the_store_hangs(with_stores, monkeypatch):
    monkeypatch.setattr(orphans, "LET_GO_MAX", 3)

    async def test(stores):
        bucket = EmptyBucket()
        damaged, *sound = [await lost(stores, f"project-{number}") for number in range(9)]
        bucket.slow = {damaged, *sound}
        labels = text(f"UPDATE jobs SET labels = '[]' WHERE uid = '{damaged}'")
        await stores.database.write(lambda tx: tx.connection.execute(labels))
        async with bucket.serve() as store, adopting(stores, store, looks_max=2, look_seconds=600.0):

            async def hangs() -> bool:
                return bucket.waiting == 2

            await stores.when(hangs)
            stores.clock.pass_seconds(119)
            await asyncio.sleep(0.2)
            assert await stores.count("jobs", "held") == 9
            stores.clock.pass_seconds(7)
            await when_ready(stores, *sound)
            assert (await stores.count("jobs", "held"), bucket.waiting) == (1, 2), "it cannot be read"

    with_stores(test)


def test_look_that_hangs_holds_up_no_other(with_stores):
    async def test(stores):
        bucket = EmptyBucket()
        slow, *others = [await lost(stores, f"project-{number}") for number in range(6)]
        bucket.slow = {slow}
        async with bucket.serve() as store, adopting(stores, store, looks_max=2, look_seconds=600.0):
            await when_ready(stores, *others)
            later = await lost(stores, "later")
            await when_ready(stores, later)
            assert (await stores.job(slow)).job.held

    with_stores(test)


@pytest.mark.parametrize("step_seconds", [-3_600, 3_600])
def test_clock_that_is_set_lets_a_job_go_neither_sooner_nor_later(with_stores, step_seconds):
    async def test(stores):
        uid = await lost(stores, "digits")
        async with adopting(stores, store_that_is_away()):
            await when_looked(stores)
            stores.clock.step(step_seconds)
            stores.clock.pass_seconds(60)
            await asyncio.sleep(0.2)
            assert (await stores.job(uid)).job.held
            stores.clock.pass_seconds(61)
            await when_ready(stores, uid)

    with_stores(test)


def test_what_an_attempt_leaves_that_was_lost_for_a_while_is_looked_for_at_once(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        standing = await stores.report("one")
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        [orphan] = await stores.orphans.due(10)
        await stores.orphans.look_later(orphan.key, seconds=3_600.0)
        standing = await stores.hold("one", standing)
        assert (await stores.job(uid)).job.state is JobState.RUNNING
        await stores.end("one", standing, "STOPPED")
        assert [each.key for each in await stores.orphans.due(10)] == [orphan.key]

    with_stores(test)


def test_store_is_asked_often_while_a_job_waits_also_where_the_clock_was_set_forward(with_stores):
    async def test(stores):
        await lost(stores, "digits")
        stores.clock.step(3_600)
        async with adopting(stores, store_that_is_away()):
            await when_looked(stores)
        soon_us = stores.clock.now_us + 15 * SECOND_US
        assert await stores.count("attempts", f"adopt_time_us <= {soon_us}") == 1

    with_stores(test)
