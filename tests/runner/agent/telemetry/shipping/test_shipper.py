"""Spools on their way into the real metrics service."""

import asyncio
import os
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.shipping import shipper as shipping
from runner.agent.telemetry.shipping.shipper import Shipper, Token
from runner.agent.telemetry.shipping.writer import ShippingLimits
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.agent.telemetry.spool.segment import HEAD
from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.write_token import WriteToken
from services.chassis.rpc import channel
from tests.runner.agent.recording import LIMITS, limits, until
from tests.runner.agent.system import System
from tests.tokens import runner_token

SHIPPING_LIMITS = ShippingLimits(
    reconnect_seconds_first=0.05,
    reconnect_seconds_max=0.2,
    set_aside_seconds=0.5,
    answer_seconds_max=60,
    token_renewal=timedelta(minutes=10),
)


def spool_of(folder: Path, *, points: int = 0, lines: int = 0, points_dropped: int = 0) -> Spool:
    """A closed spool of a new job, each point and line a message of its own."""
    key = AttemptKey(job_uid=uuid.uuid4().hex, epoch=1)
    disk = SpoolDisk(limits(segment_bytes_max=600, batch_points_min=1))
    spool = Spool(folder / str(key), job="projects/p/jobs/j", key=key, attempt=1, disk=disk)

    async def write() -> None:
        recorder = Recorder(spool, now_unix_us=lambda: 1_000_000, on_append=lambda: None)
        for step in range(points):
            recorder.points({"train/loss": 1 / (step + 1)}, step=step)
        for index in range(lines):
            recorder.line(f"line {index}")
            recorder.flush()
        disk.writing.post(lambda: spool.points.drop(points_dropped))
        recorder.close()
        await recorder.written(20)

    asyncio.run(write())
    return spool


def token_for(system: System, spool: Spool, *, lives: timedelta = timedelta(hours=1)) -> Token:
    expires_at = (datetime.now(UTC) + lives).replace(microsecond=0)
    claims = WriteToken(
        project="p",
        job_uid=spool.key.job_uid,
        attempt=spool.attempt,
        epoch=spool.key.epoch,
        from_step=0,
        expires_at=expires_at,
        drain_only=True,
    )
    signer = TokenSigner.from_file(system.folder / "token.pem")
    return Token(text=signer.sign(claims), expire_time=expires_at)


def ship(system: System, work: Callable[[Shipper], Awaitable[None]]) -> None:
    """Run a shipper until the work is done."""

    async def run() -> None:
        access = runner_token(system.folder / "token.pem")
        metrics = channel(system.services["metrics"].address, token=lambda: access, retry_attempts_max=1)
        shipper = Shipper(
            metrics,
            limits=SHIPPING_LIMITS,
            randomness=random.Random(0),
            now=lambda: datetime.now(UTC),
            on_change=lambda: None,
        )
        running = asyncio.create_task(shipper.run())
        try:
            await work(shipper)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await metrics.close()

    asyncio.run(run())


def test_spools_are_sent_to_their_end_and_then_deleted(system: System, tmp_path: Path) -> None:
    spools = [spool_of(tmp_path, points=300, lines=30), spool_of(tmp_path, lines=1), spool_of(tmp_path)]

    async def drain(shipper: Shipper) -> None:
        for spool in spools:
            shipper.add(spool)
        assert shipper.tokens_wanted() == spools
        for spool in spools:
            shipper.set_token(spool.key, token_for(system, spool))
        await until(lambda: not list(tmp_path.iterdir()))

    ship(system, drain)


@pytest.mark.parametrize("damaged", [0, 1, -2])
def test_records_that_the_disk_lost_do_not_hold_up_the_others(system: System, tmp_path: Path, damaged: int) -> None:
    spool = spool_of(tmp_path, points=200, points_dropped=1)  # what was dropped is noted in an empty newest segment
    segments = sorted((spool.folder / "points").glob("*.segment"))
    assert len(segments) > 3
    os.truncate(segments[damaged], HEAD.size)
    found = Spool.found(spool.folder, SpoolDisk(LIMITS))

    async def drain(shipper: Shipper) -> None:
        shipper.add(found)
        shipper.set_token(found.key, token_for(system, found))
        await until(lambda: shipper.empty)
        await until(lambda: f"{spool.key.job_uid}/1/0/points" in gaps_logged(system))

    ship(system, drain)


def gaps_logged(system: System) -> list[str]:
    lines = (system.folder / "metrics.log").read_text().splitlines()
    return [word for line in lines if "writer_gap" in line for word in line.split('"')]


def test_a_token_that_does_not_hold_is_asked_for_again(system: System, tmp_path: Path) -> None:
    spool = spool_of(tmp_path, lines=3)

    async def drain(shipper: Shipper) -> None:
        shipper.add(spool)
        shipper.set_token(spool.key, Token(text="nonsense", expire_time=datetime.now(UTC) + timedelta(hours=1)))
        assert shipper.tokens_wanted() == []
        await until(lambda: shipper.tokens_wanted() == [spool])
        assert spool.folder.exists()
        shipper.set_token(spool.key, token_for(system, spool))
        await until(lambda: shipper.empty)

    ship(system, drain)


def test_a_token_that_ends_soon_is_renewed(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_of(tmp_path, lines=1)

    monkeypatch.setattr(shipping, "TOKEN_SECONDS_MIN", 0)

    async def look(shipper: Shipper) -> None:
        shipper.add(spool)
        shipper.set_token(spool.key, token_for(system, spool, lives=timedelta(minutes=5)))
        assert shipper.tokens_wanted() == [spool]
        shipper.set_token(spool.key, token_for(system, spool))
        assert shipper.tokens_wanted() == []

    ship(system, look)


def test_what_nobody_wants_is_deleted_but_never_what_is_still_written(system: System, tmp_path: Path) -> None:
    closed = spool_of(tmp_path, lines=1)
    key = AttemptKey(job_uid="a", epoch=1)
    written = Spool(tmp_path / "written", job="projects/p/jobs/j", key=key, attempt=1, disk=SpoolDisk(LIMITS))

    async def drop(shipper: Shipper) -> None:
        for spool in (closed, written):
            shipper.add(spool)
            shipper.drop(spool.key)
        assert shipper.tokens_wanted() == [written]
        await until(lambda: not closed.folder.exists())

    ship(system, drop)
    assert written.folder.exists()


def test_a_spool_that_was_moved_away_when_it_was_to_be_deleted_is_deleted_when_it_is_back(
    system: System, tmp_path: Path
) -> None:
    spools = tmp_path / "spools"
    closed = spool_of(spools, lines=1)
    away = spools.rename(tmp_path / "away")

    async def drop(shipper: Shipper) -> None:
        shipper.add(closed)
        shipper.drop(closed.key)
        for _ in range(2):
            closed.disk.writing.submit(lambda: None).result(20)
            shipper.sync()
        away.rename(spools)
        assert closed.folder.exists()
        shipper.sync()
        await until(lambda: not closed.folder.exists())

    ship(system, drop)
