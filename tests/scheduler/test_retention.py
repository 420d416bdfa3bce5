"""Old checkpoints go; the last, the best, some of every part of the iterations, and what others begin with stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec
from sqlalchemy import text

from services.chassis.auth.keys import TokenSigner, TokenVerifier, public_key_files
from services.chassis.loop import keep_turning
from services.scheduler.desk import DeskLimits
from services.scheduler.domain.job import SECOND_US, CheckpointKey, ResumeSource
from services.scheduler.domain.retention import Retention
from services.scheduler.keyring import Keyring
from services.scheduler.loop.forgetting import Forgetting, ForgettingLimits, KeyForgetting
from services.scheduler.objects.checkpoints import MANIFEST, CheckpointStore
from services.scheduler.store import retention
from services.scheduler.store.retention import RetentionRows
from services.scheduler.wire.checkpoint import pinned_checkpoint

RETENTION = Retention(kept=4, settle_minutes=10.0)
DESK = DeskLimits(
    wait_seconds_max=1.0,
    idle_wait_seconds_max=1.0,
    idle_calls_per_second=500.0,
    resend_seconds=1.0,
    stop_grace_seconds=1.0,
    forget_seconds=60.0,
    gap_seconds=1.0,
)
SECONDS_MAX = 30.0


def left(checkpoints, retention: Retention = RETENTION, *, needed=frozenset(), now_us: int = 2**60) -> list[int]:
    gone = retention.superfluous(checkpoints, iterations_max=100, needed=needed, now_us=now_us)
    return [each.key.iteration for each in checkpoints if each not in gone]


def test_one_of_each_part_stays_and_the_best_and_what_is_needed(checkpoint):
    all_of_them = [checkpoint("a", 1, iteration, best=iteration == 40) for iteration in range(10, 101, 10)]
    assert left(all_of_them) == [20, 40, 50, 70, 100]
    needed = frozenset({CheckpointKey(job_uid="a", epoch=1, iteration=10)})
    assert left(all_of_them, needed=needed) == [10, 20, 40, 50, 70, 100]


def test_what_stays_stays_when_it_is_asked_again_and_while_more_come(checkpoint):
    every = [checkpoint("a", 1, iteration) for iteration in range(1, 101)]
    kept: list = []
    for each in every:
        kept.append(each)
        gone = RETENTION.superfluous(kept, iterations_max=100, needed=frozenset(), now_us=2**60)
        kept = [one for one in kept if one not in gone]
        assert kept[-1] is each
        assert len(kept) <= RETENTION.kept
    assert [each.key.iteration for each in kept] == [25, 50, 75, 100]


def test_of_two_epochs_the_newer_ones_count(checkpoint):
    assert left([checkpoint("a", 1, 20), checkpoint("a", 1, 60), checkpoint("a", 2, 10)]) == [60, 10]


def test_a_young_checkpoint_stays(checkpoint):
    young = [checkpoint("a", 1, iteration) for iteration in (1, 2, 3, 100)]
    created_us = young[0].create_time_us
    assert left(young, now_us=created_us + 599 * SECOND_US) == [1, 2, 3, 100]
    assert left(young, now_us=created_us + 600 * SECOND_US) == [3, 100]


def test_no_checkpoints_are_none_too_many():
    assert RETENTION.superfluous([], iterations_max=100, needed=frozenset(), now_us=0) == []


def begins_with(name: str) -> bytes:
    spec = JobSpec()
    spec.model.initialization.checkpoint.checkpoint = name
    return spec.SerializeToString()


async def pruned(rows: RetentionRows) -> list[int]:
    return [each.key.iteration async for part in rows.prune() for each in part]


@pytest.mark.parametrize("live", [True, False])
def test_what_other_jobs_begin_with_stays(with_stores, checkpoint, live):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        made = [checkpoint(uid, 1, n) for n in (1, 2, 3, 4, 5, 30, 60, 90, 99)]
        await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made))
        source = ResumeSource(job_name="projects/digits/jobs/first", checkpoint_name="1-2", key=made[1].key)
        await stores.submit("digits", "resumed", source=source)
        pinning = await stores.submit("digits", "begun", spec=begins_with("projects/digits/jobs/first/checkpoints/1-4"))
        if not live:
            await stores.stop(pinning)
        stores.clock.pass_seconds(600)
        rows = RetentionRows(stores.database, RETENTION, pinned_by=pinned_checkpoint)
        gone = await pruned(rows)
        assert gone == ([1, 3, 90] if live else [1, 3, 4, 90])
        assert await pruned(rows) == []
        assert await stores.count("checkpoints") == len(made) - len(gone)

    with_stores(test)


@pytest.mark.parametrize("by", ["specification", "resume"])
def test_what_is_begun_with_while_others_go_stays(with_stores, checkpoint, monkeypatch, by):
    """Which may go is found out before: what comes after that is looked at with each part."""
    monkeypatch.setattr(retention, "PRUNED_TOGETHER_MAX", 1)

    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        made = [checkpoint(uid, 1, n) for n in (1, 2, 3, 4, 5, 30, 60, 90, 99)]
        await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made))
        stores.clock.pass_seconds(600)
        parts = RetentionRows(stores.database, RETENTION, pinned_by=pinned_checkpoint).prune()
        gone = [each.key.iteration for each in await anext(parts)]
        if by == "resume":
            source = ResumeSource(job_name="projects/digits/jobs/first", checkpoint_name="1-3", key=made[2].key)
            await stores.submit("digits", "resumed", source=source)
        else:
            await stores.submit("digits", "begun", spec=begins_with("projects/digits/jobs/first/checkpoints/1-3"))
        gone += [each.key.iteration async for part in parts for each in part]
        assert gone == [1, 2, 4, 90]
        assert await stores.count("checkpoints") == len(made) - len(gone)

    with_stores(test)


def test_what_cannot_be_read_keeps_its_own_checkpoints_and_no_others(with_stores, checkpoint):
    async def test(stores):
        await stores.create_project("digits")
        for job_id in ("damaged", "sound"):
            uid = await stores.submit("digits", job_id)
            standing = await stores.report("one")
            made = [checkpoint(uid, 1, n) for n in (1, 2, 3, 4, 5, 30, 60, 90, 99)]
            await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made))
        await stores.submit("digits", "unreadable", spec=b"no specification")
        damage = text(
            "UPDATE checkpoints SET files = '[{\"nonsense\": 1}]'"
            " WHERE iteration = 5 AND job_uid IN (SELECT uid FROM jobs WHERE job_id = 'damaged')"
        )
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        stores.clock.pass_seconds(600)
        rows = RetentionRows(stores.database, RETENTION, pinned_by=pinned_checkpoint)
        assert await pruned(rows) == [1, 2, 3, 4, 90]
        assert await stores.count("checkpoints", f"job_uid = '{uid}'") == 4

    with_stores(test)


def test_the_files_of_what_goes_are_deleted_and_no_others(with_stores, checkpoint, tmp_path: Path):
    root = tmp_path / "checkpoints"
    store = CheckpointStore(root.as_uri())

    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        made = []
        for iteration in range(10, 101, 10):
            folder = root / uid / "1" / str(iteration)
            folder.mkdir(parents=True)
            for name in ("model.safetensors", MANIFEST):
                (folder / name).write_text("x")
            made.append(replace(checkpoint(uid, 1, iteration), uri=folder.as_uri()))
        report = root / uid / "1" / "conversion.json"
        report.write_text("{}")
        await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made))
        stores.clock.pass_seconds(600)
        forgetting = Forgetting(
            stores.upkeep,
            store,
            RetentionRows(stores.database, RETENTION, pinned_by=pinned_checkpoint),
            limits=ForgettingLimits(),
        )
        running = asyncio.create_task(keep_turning("forgetting", forgetting.turn))
        try:
            async with asyncio.timeout(SECONDS_MAX):
                while sum(path.is_file() for path in root.rglob("*")) > 2 * RETENTION.kept + 1:  # noqa: ASYNC110 — files
                    await asyncio.sleep(0.02)
        finally:
            running.cancel()
        there = sorted(int(path.parent.name) for path in root.rglob(MANIFEST))
        assert there == [20, 50, 70, 100]
        assert report.exists()
        listed = await stores.checkpoints.page("digits", "first", before=None, limit=9)
        assert [each.key.iteration for each in listed] == [100, 70, 50, 20]

    with_stores(test)


def test_store_that_is_away_holds_up_a_part_of_what_goes_and_the_rest_goes_later(with_stores, checkpoint, monkeypatch):
    monkeypatch.setattr(retention, "PRUNED_TOGETHER_MAX", 2)

    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        store = CheckpointStore("s3://bucket/checkpoints", endpoint_url="http://127.0.0.1:9")  # nobody listens there
        made = [checkpoint(uid, 1, n) for n in (1, 2, 3, 4, 5, 30, 60, 90, 99)]
        made = [replace(each, uri=f"{store.prefix(uid, 1)}/{each.key.iteration}") for each in made]
        await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made))
        stores.clock.pass_seconds(600)
        rows = RetentionRows(stores.database, RETENTION, pinned_by=pinned_checkpoint)
        limits = ForgettingLimits(pause_seconds=0.0, deletion_seconds=0.2)
        forgetting = Forgetting(stores.upkeep, store, rows, limits=limits)
        for left in (7, 5, 4):
            await forgetting.turn()
            assert await stores.count("checkpoints") == left

    with_stores(test)


def test_ended_keys_are_forgotten_by_a_loop_of_their_own(tmp_path: Path):
    path = tmp_path / "token.pem"
    TokenSigner.from_file(path)  # makes it
    now = datetime.now(tz=UTC)
    keyring = Keyring(path, TokenVerifier.from_files(public_key_files(path)), now=lambda: now)
    old = keyring.rotate(ends_at=now - timedelta(minutes=1))
    ended, current = (tmp_path / f"token.{key}.pub.pem" for key in (old, keyring.key_id))
    assert ended.exists()

    async def test():
        forgetting = KeyForgetting(keyring, limits=ForgettingLimits())
        running = asyncio.create_task(keep_turning("key-forgetting", forgetting.turn))
        try:
            async with asyncio.timeout(SECONDS_MAX):
                while ended.exists():  # noqa: ASYNC110 — files
                    await asyncio.sleep(0.02)
        finally:
            running.cancel()

    asyncio.run(test())
    assert current.exists()
