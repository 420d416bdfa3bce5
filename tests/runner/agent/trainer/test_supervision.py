"""A trainer under supervision: whatever breaks on the way, it never stands still unheard."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import Stopping
from runner.agent.disk import Disk
from runner.agent.ledger import Ledger
from runner.agent.trainer.ending import Ending
from runner.agent.trainer.process import GROUP_END_SECONDS, end_group
from runner.agent.trainer.supervision import StopWanted, Supervision
from runner.report import Progress
from tests.runner.agent.recording import Recording, Standstill, limits, until

MakeTrainer = Callable[[str], list[str]]

FOR_EVER = """
iteration = 0
while not commands:
    iteration += 1
    writer.write(Progress(iteration, 1_000_000))
writer.write(Ended(Outcome.STOPPED, "USER_STOP", f"told {commands[0]}", iteration))
"""


def supervision(
    folder: Path,
    on_report: Callable[[Any], None] = lambda report: None,
    stop: StopWanted | None = None,
    recording: Recording | None = None,
) -> Supervision:
    return Supervision(
        mark="0197-3",
        recorder=(recording or Recording(folder / "s", limits())).recorder,
        ledger=Ledger(folder / "ledger"),
        disk=Disk(still_seconds_max=20, again_seconds_max=2),
        exit_seconds_max=10,
        kill_seconds_max=3,
        on_report=on_report,
        stop=stop or StopWanted(),
    )


def test_a_relay_that_dies_ends_the_attempt_with_its_reason(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    """Nobody reads the pipe any more: the trainer would wait for ever, and its lease be renewed for ever."""

    def refuse(report: object) -> None:
        raise RuntimeError("the agent cannot take this in")

    async def run() -> Ending:
        watched = supervision(tmp_path, refuse)
        return await asyncio.wait_for(watched.run(make_trainer(FOR_EVER), folder=tmp_path, environ=os.environ), 60)

    ending = asyncio.run(run())
    assert (ending.outcome, ending.reason) == (job_pb2.ATTEMPT_OUTCOME_FAILED, job_pb2.JOB_REASON_INTERNAL)
    assert "the agent cannot take this in" in ending.message


def test_a_stop_that_came_before_the_trainer_is_told_to_it(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    async def run() -> Ending:
        wanted = StopWanted(stopping=Stopping.CHECKPOINT, grace_seconds=60)
        watched = supervision(tmp_path, lambda report: None, wanted)
        return await asyncio.wait_for(watched.run(make_trainer(FOR_EVER), folder=tmp_path, environ=os.environ), 60)

    ending = asyncio.run(run())
    assert (ending.outcome, ending.message) == (job_pb2.ATTEMPT_OUTCOME_STOPPED, "told stop")


def test_a_stop_while_the_trainer_works_is_told_to_it(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    seen: list[Progress] = []

    async def run() -> Ending:
        watched = supervision(tmp_path, seen.append)
        running = asyncio.create_task(watched.run(make_trainer(FOR_EVER), folder=tmp_path, environ=os.environ))
        await until(lambda: bool(seen), seconds=60)
        watched.stop(StopWanted(stopping=Stopping.CHECKPOINT, grace_seconds=60, hand_back=True))
        return await asyncio.wait_for(running, 60)

    assert asyncio.run(run()).message == "told hand-back"


LAST_WORDS = """
for step in range(1, 41):
    writer.write(Points(step, 5, {f"series/{index}/{'n' * 60}": float(step) for index in range(40)}))
writer.write(Ended(Outcome.COMPLETED, "LIMIT_REACHED", "", 40))
"""


def test_the_last_words_of_a_trainer_are_heard_also_where_the_disk_stands_still_at_its_end(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    recording = Recording(tmp_path / "s", limits(waiting_bytes_max=20_000, stall_seconds_max=4))
    standstill = Standstill(recording.disk)
    watched = supervision(tmp_path, recording=recording)

    async def run() -> Ending:
        return await asyncio.wait_for(watched.run(make_trainer(LAST_WORDS), folder=tmp_path, environ=os.environ), 60)

    ending = asyncio.run(run())
    standstill.end()
    assert (ending.outcome, ending.message) == (job_pb2.ATTEMPT_OUTCOME_COMPLETED, "")


def test_a_trainer_that_sigkill_does_not_end_ends_its_attempt_and_is_left_to_the_next_agent(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a disk in a call that nothing interrupts."""
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    monkeypatch.setattr(psutil.Process, "kill", lambda process: None)

    async def run() -> Ending:
        wanted = StopWanted(stopping=Stopping.IMMEDIATE, hand_back=True)
        watched = supervision(tmp_path, lambda report: None, wanted)
        running = watched.run(make_trainer("time.sleep(60)"), folder=tmp_path, environ=os.environ)
        return await asyncio.wait_for(running, 5 * GROUP_END_SECONDS)

    ending = asyncio.run(run())
    assert ending.outcome == job_pb2.ATTEMPT_OUTCOME_HANDED_BACK
    assert ending.reason == job_pb2.JOB_REASON_RUNNER_FAULT
    assert "SIGKILL does not end it" in ending.message
    (group,) = Ledger(tmp_path / "ledger").groups()
    monkeypatch.undo()
    assert not end_group(group).surviving
