"""Checkpoints of ended attempts are looked for, also for days where the store is away."""

from __future__ import annotations

import json

from services.scheduler.domain.job import JobState
from services.scheduler.loop.adoption import Adoption, AdoptionLimits
from services.scheduler.objects.checkpoints import CheckpointStore

LIMITS = AdoptionLimits(look_seconds=0.5, retry_seconds=5.0, seconds_max=120.0, days_max=7.0)


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


def adoption_from(stores, store: CheckpointStore) -> Adoption:
    return Adoption(stores.upkeep, store, limits=LIMITS, now_us=lambda: stores.clock.now_us)


def test_job_waits_a_while_for_a_store_that_is_away_and_its_model_is_found_days_later(with_stores, tmp_path):
    async def test(stores):
        # Nobody listens there; a look ends after half a second.
        away = CheckpointStore("s3://bucket/checkpoints", endpoint_url="http://127.0.0.1:9")
        uid = await lost(stores, "digits")
        adoption = adoption_from(stores, away)
        await adoption.turn()
        assert (await stores.job(uid)).job.held
        stores.clock.pass_seconds(121)
        await adoption.turn()
        assert (await stores.job(uid)).job.ready, "it goes on without its checkpoints"
        await stores.stop(uid)
        stores.clock.pass_seconds(3 * 86_400)
        await adoption.turn()
        write_checkpoint(tmp_path, uid)
        stores.clock.pass_seconds(3_600)
        await adoption_from(stores, CheckpointStore(tmp_path.as_uri())).turn()
        job = (await stores.job(uid)).job
        assert (job.state, job.last_checkpoint.iteration) == (JobState.STOPPED, 40)
        assert await stores.upkeep.attempts_to_adopt(10) == []

    with_stores(test)


def test_store_that_stays_away_is_given_up_after_days(with_stores):
    async def test(stores):
        away = CheckpointStore("s3://bucket/checkpoints", endpoint_url="http://127.0.0.1:9")
        uid = await lost(stores, "digits")
        stores.clock.pass_seconds(8 * 86_400)
        await adoption_from(stores, away).turn()
        assert await stores.upkeep.attempts_to_adopt(10) == []
        assert (await stores.job(uid)).job.ready

    with_stores(test)


def test_manifest_that_cannot_be_recorded_stands_before_no_other(with_stores, tmp_path):
    async def test(stores):
        poisoned, sound = await lost(stores, "poisoned"), await lost(stores, "sound")
        files = [{"name": "model.safetensors", "size_bytes": 5, "sha256": "no\0digest"}]
        write_checkpoint(tmp_path, poisoned, files=files)
        write_checkpoint(tmp_path, sound)
        await adoption_from(stores, CheckpointStore(tmp_path.as_uri())).turn()
        assert (await stores.job(sound)).job.last_checkpoint.iteration == 40
        assert (await stores.job(poisoned)).job.last_checkpoint is None

    with_stores(test)
