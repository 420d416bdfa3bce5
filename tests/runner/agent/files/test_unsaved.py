"""Last checkpoints that wait on the runner's disk: bounded, tried before they are given up, and deaf to clocks."""

import asyncio
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import AttemptKey
from runner.agent.disk import Disk, DiskStandsStill
from runner.agent.files.unsaved import END, SECONDS_PER_DAY, WAITED, Unsaved, UnsavedLimits
from runner.agent.files.upload import UploadTarget
from runner.report import CheckpointWritten
from tests.runner.agent.recording import until

A_YEAR = 366 * SECONDS_PER_DAY


class Waiting:
    """Checkpoints of epochs 1, 2, … that wait for the store in `root`, as one agent after the other has them.

    Each is of a job of its own, where it is not said of which.
    """

    def __init__(self, root: Path, *, checkpoints_max: int = 5, bytes_max: int = 2**30, days_max: float = 14.0) -> None:
        self.root = root
        self.limits = UnsavedLimits(
            checkpoints_max=checkpoints_max,
            bytes_max=bytes_max,
            days_max=days_max,
            retry_seconds_first=0.02,
            retry_seconds_max=0.05,
        )
        self.disk = Disk(still_seconds_max=20, again_seconds_max=2)
        self.unsaved = self.agent()
        self.uploaded: list[int] = []

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def epochs(self) -> list[int]:
        """Those whose checkpoints wait."""
        return sorted(int(path.parent.name.split("-")[1]) for path in self.root.glob(f"unsaved/*/{END}"))

    def agent(self) -> Unsaved:
        """Another start of the agent."""
        return Unsaved(self.root / "unsaved", disk=self.disk, limits=self.limits, randomness=random.Random(0))

    async def keep(self, epoch: int, *, job: str = "", size_bytes: int = 7) -> None:
        job = job or f"job{epoch}"
        key = AttemptKey(job_uid=job, epoch=epoch)
        folder = self.root / "attempt" / str(epoch)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(size_bytes))
        target = UploadTarget(job="projects/p/jobs/j", epoch=epoch, uri=(self.store / str(epoch)).as_uri())
        written = CheckpointWritten(str(folder), 7, "STOP", None, False)
        checkpoint = await self.unsaved.keep(key, written, target, 1_000_000)
        closed = wire.ClosedAttempt(job_uid=job, epoch=epoch, outcome=job_pb2.ATTEMPT_OUTCOME_STOPPED)
        await self.unsaved.conclude(key, closed, checkpoint)

    async def running(self, unsaved: Unsaved, condition: Callable[[], bool]) -> None:
        """Let the agent try until the condition is true."""

        async def take(closed: wire.ClosedAttempt) -> None:
            self.uploaded.append(closed.epoch)

        trying = asyncio.create_task(unsaved.run(take))
        try:
            await until(condition)
        finally:
            trying.cancel()

    def waited(self, epoch: int) -> float:
        return sum(float(path.read_text()) for path in self.root.glob(f"unsaved/*-{epoch}/{WAITED}"))


def test_of_too_many_the_oldest_is_given_up_as_soon_as_one_more_is_kept(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, checkpoints_max=2)
    waiting.store.write_text("a file where the store's folder should be")

    async def keep_three() -> None:
        async def keep() -> None:
            for epoch in (3, 1, 2):
                await waiting.keep(epoch)
                await until(lambda epoch=epoch: waiting.waited(epoch) > 0)  # type: ignore[misc]  # a loop's lambda

        keeping = asyncio.create_task(keep())
        await waiting.running(waiting.unsaved, keeping.done)
        await keeping
        assert waiting.epochs == [1, 2]
        waiting.store.unlink()
        await waiting.running(waiting.unsaved, lambda: not waiting.epochs)

    asyncio.run(keep_three())
    assert sorted(waiting.uploaded) == [1, 2]


def test_of_those_that_take_too_much_the_oldest_are_given_up_but_never_the_newest(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, bytes_max=100)
    waiting.store.write_text("a file where the store's folder should be")

    async def keep_some() -> None:
        async def keep() -> None:
            for epoch, size_bytes in ((1, 60), (2, 30), (3, 60), (4, 1_000)):
                await waiting.keep(epoch, size_bytes=size_bytes)
                await until(lambda epoch=epoch: waiting.waited(epoch) > 0)  # type: ignore[misc]  # a loop's lambda
                seen.append(waiting.epochs)

        seen: list[list[int]] = []
        keeping = asyncio.create_task(keep())
        await waiting.running(waiting.unsaved, lambda: keeping.done() and waiting.epochs == [4])
        await keeping
        assert seen[1] == [1, 2]
        assert 2 in seen[2]

    asyncio.run(keep_some())


def test_of_one_job_only_the_newest_attempts_is_kept(tmp_path: Path) -> None:
    """The scheduler records no checkpoint of an attempt that another one has followed."""
    waiting = Waiting(tmp_path, checkpoints_max=2)
    waiting.store.write_text("a file where the store's folder should be")

    async def keep_some() -> None:
        await waiting.keep(1, job="other")
        for epoch in (9, 10, 2, 11):
            await waiting.keep(epoch, job="job")
        await waiting.running(waiting.unsaved, lambda: waiting.epochs == [1, 11])
        waiting.store.unlink()
        await waiting.keep(12, job="job")
        await waiting.running(waiting.unsaved, lambda: not waiting.epochs)

    asyncio.run(keep_some())
    assert sorted(waiting.uploaded) == [1, 12]


def test_one_whose_newer_one_cannot_be_read_is_kept(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)

    async def keep_two() -> None:
        for epoch in (1, 2):
            await waiting.keep(epoch, job="job")
        (tmp_path / "unsaved" / "job-2" / END).write_bytes(b"")
        await waiting.running(waiting.unsaved, lambda: waiting.uploaded == [1])

    asyncio.run(keep_two())


def test_what_a_disk_takes_too_late_is_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(tmp_path)
    waiting.disk = Disk(still_seconds_max=0.1, again_seconds_max=0.1)
    waiting.unsaved = waiting.agent()
    go, rename = threading.Event(), Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: go.wait(20) and rename(path, target))
    place = tmp_path / "unsaved" / "job1-1"

    async def keep_and_go_on() -> None:
        with pytest.raises(DiskStandsStill):
            await waiting.keep(1)
        go.set()
        await until((place / "files").exists)
        await waiting.running(waiting.unsaved, lambda: not place.exists())

    asyncio.run(keep_and_go_on())


@pytest.mark.parametrize("limits", [{"checkpoints_max": 0}, {"days_max": 0.0}])
def test_none_is_given_up_before_the_next_agent_has_tried_it(tmp_path: Path, limits: dict[str, int]) -> None:
    waiting = Waiting(tmp_path, **limits)

    async def keep_and_start_again() -> None:
        await waiting.keep(1)
        after = waiting.agent()
        after.sweep()
        await waiting.running(after, lambda: not waiting.epochs)

    asyncio.run(keep_and_start_again())
    assert waiting.uploaded == [1]
    assert (waiting.store / "1" / "7" / "manifest.json").exists()


def test_one_that_has_waited_too_long_is_given_up_while_the_agent_runs(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, days_max=0.2 / SECONDS_PER_DAY)
    waiting.store.write_text("a file where the store's folder should be")

    async def keep_and_wait() -> None:
        await waiting.keep(1)
        await waiting.running(waiting.unsaved, lambda: not waiting.epochs)

    asyncio.run(keep_and_wait())
    assert not waiting.uploaded


def test_a_step_of_the_clock_gives_nothing_up(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    waiting.store.write_text("a file where the store's folder should be")

    async def keep_and_set_the_clock() -> None:
        await waiting.keep(1)
        for path in tmp_path.glob("unsaved/**/*"):
            found = path.stat()
            os.utime(path, (found.st_atime - A_YEAR, found.st_mtime - A_YEAR))
        after = waiting.agent()
        after.sweep()
        await waiting.running(after, lambda: waiting.waited(1) > 0)
        waited = waiting.waited(1)
        await waiting.running(waiting.agent(), lambda: waiting.waited(1) > waited)

    asyncio.run(keep_and_set_the_clock())
    assert waiting.epochs == [1]
    assert waiting.waited(1) < SECONDS_PER_DAY


def test_what_was_kept_without_an_end_is_swept(tmp_path: Path) -> None:
    (tmp_path / "unsaved" / "job-1" / "files").mkdir(parents=True)
    Waiting(tmp_path).unsaved.sweep()
    assert not list((tmp_path / "unsaved").iterdir())
