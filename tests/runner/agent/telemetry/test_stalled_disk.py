"""A disk that stands still in the middle of a call: the event loop and the other calls go on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.agent.telemetry.spool import writer_spool
from tests.runner.agent.recording import Recording, limits


class Hold:
    """Holds up every call of a function, in whatever thread, until it is let go."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._go = threading.Event()
        self.held = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        self.held.set()
        self._go.wait(20)
        return self._function(*arguments)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    holds: list[Hold] = []

    def hold_up(owner: object, name: str) -> Hold:
        made = Hold(getattr(owner, name))
        monkeypatch.setattr(owner, name, made)
        holds.append(made)
        return made

    yield hold_up
    for each in holds:
        each.let_go()


def write(recording: Recording, rows: range) -> None:
    for row in rows:
        recording.recorder.line(f"row {row}")
        recording.recorder.points({"train/loss": 1.0}, step=row)
        recording.recorder.flush()


@pytest.mark.parametrize("call", ["write", "open", "pwrite", "close"])
def test_no_call_that_writes_is_made_in_the_event_loop(tmp_path: Path, hold: Any, call: str) -> None:
    recording = Recording(tmp_path / "s", limits(segment_bytes_max=300))

    async def go_on() -> None:
        write(recording, range(10))
        await recording.recorder.written(20)
        held = hold(os, call)
        write(recording, range(10, 40))
        await asyncio.to_thread(held.held.wait, 20)
        write(recording, range(40, 60))  # the loop is here while the disk stands still
        with pytest.raises(TimeoutError):
            await recording.recorder.written(0.05)
        held.let_go()
        await recording.recorder.written(20)
        assert held.threads == {"spool-writing"}

    asyncio.run(asyncio.wait_for(go_on(), 60))
    assert recording.texts == [f"row {row}" for row in range(60)]
    assert recording.spool.points.rows == 60
    assert recording.spool.lines.rows_dropped == recording.spool.points.rows_dropped == 0


def test_a_sync_that_hangs_holds_up_neither_the_loop_nor_what_is_written(tmp_path: Path, hold: Any) -> None:
    recording = Recording(tmp_path / "s", limits(segment_bytes_max=300))

    async def go_on() -> None:
        write(recording, range(10))
        await recording.recorder.written(20)
        held = hold(writer_spool, "_sync_data")
        syncing = asyncio.create_task(recording.disk.syncing.run(recording.spool.sync))
        await asyncio.to_thread(held.held.wait, 20)
        write(recording, range(10, 60))
        await recording.recorder.written(20)
        assert not syncing.done()
        held.let_go()
        await syncing
        assert held.threads == {"spool-syncing"}

    asyncio.run(asyncio.wait_for(go_on(), 60))
    assert recording.texts == [f"row {row}" for row in range(60)]
