"""How long the agent waits for its disk: while something moves, then for a while; after a standstill less."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.agent.disk import Disk, DiskStandsStill, Moved, delete_tree

HANGS_SECONDS = 20.0


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """Lets go of what hangs."""
    event = threading.Event()
    yield event
    event.set()


def test_what_moves_is_waited_for_and_what_stands_still_is_not(go: threading.Event) -> None:
    disk = Disk(still_seconds_max=0.3, again_seconds_max=0.1)

    def move(moved: Moved, seconds: float) -> str:
        for _ in range(round(seconds / 0.05)):
            moved()
            time.sleep(0.05)
        return "done"

    async def test() -> None:
        assert await disk.run_long(move, 0.8) == "done"
        with pytest.raises(DiskStandsStill, match="the disk stands still"):
            await disk.run(go.wait, HANGS_SECONDS)
        assert disk.stands_still

    asyncio.run(test())


def test_a_disk_that_stood_still_is_given_less_time_until_it_answers(go: threading.Event) -> None:
    disk = Disk(still_seconds_max=0.5, again_seconds_max=0.05)

    async def given_seconds() -> float:
        began = time.monotonic()
        with pytest.raises(DiskStandsStill):
            await disk.run(go.wait, HANGS_SECONDS)
        return time.monotonic() - began

    async def late() -> None:
        await asyncio.sleep(0.2)
        raise FileNotFoundError

    async def test() -> None:
        assert await given_seconds() >= 0.5
        assert await given_seconds() < 0.5
        with pytest.raises(FileNotFoundError):
            await disk.answer(late(), afresh=True)
        with pytest.raises(DiskStandsStill):
            await disk.run(go.wait, HANGS_SECONDS)
        with pytest.raises(FileNotFoundError):  # an answer too
            await disk.run(Path("/nowhere/at/all").read_bytes)
        assert await given_seconds() >= 0.5
        with pytest.raises(DiskStandsStill):
            await disk.answer(asyncio.sleep(HANGS_SECONDS), seconds_max=0.2)

    asyncio.run(test())


def test_who_hurries_waits_no_longer_not_even_for_what_moves(go: threading.Event) -> None:
    disk = Disk(still_seconds_max=HANGS_SECONDS, again_seconds_max=0.1)

    def move(moved: Moved) -> None:
        while not go.wait(0.02):
            moved()

    async def test() -> None:
        working = asyncio.create_task(disk.run_long(move))
        await asyncio.sleep(0.2)
        assert not working.done()
        disk.hurry()
        with pytest.raises(DiskStandsStill):
            await asyncio.wait_for(working, HANGS_SECONDS / 2)
        assert await disk.run(lambda: "what answers at once is had") == "what answers at once is had"

    asyncio.run(test())


def test_a_tree_is_deleted_without_following_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    tree = tmp_path / "tree"
    for folder in ("a/b/c", "d"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "file").touch()
    (tree / "to-folder").symlink_to(elsewhere)
    (tree / "a" / "to-file").symlink_to(elsewhere / "kept")
    (tree / "a" / "to-nothing").symlink_to("nowhere")
    moves: list[None] = []
    assert delete_tree(lambda: moves.append(None), tree)
    assert not tree.exists()
    assert (elsewhere / "kept").exists()
    assert len(moves) == 9
    assert delete_tree(lambda: None, tree)
