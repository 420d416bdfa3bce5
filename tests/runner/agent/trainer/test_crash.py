"""The real trainer, killed by the signals of a crash: its stack stands in the job's log, as an error."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_line_pb2
from sihlai.scheduler.v1 import job_pb2

from runner.__main__ import TRAINER_COMMAND
from runner.agent.disk import Disk
from runner.agent.ledger import Ledger
from runner.agent.trainer.supervision import Supervision
from tests.runner.agent.recording import Recording, limits, until


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_trainer_that_crashes_leaves_its_stack_in_the_log(tmp_path: Path, number: signal.Signals) -> None:
    assert (sys.executable, "-m", "runner.train") == TRAINER_COMMAND
    recording = Recording(tmp_path / "s", limits())
    attempt_file = tmp_path / "attempt.json"
    os.mkfifo(attempt_file)  # the trainer is in the middle of its work while nobody writes it
    supervision = Supervision(
        mark="0197-3",
        recorder=recording.recorder,
        ledger=Ledger(tmp_path / "ledger"),
        disk=Disk(still_seconds_max=20, again_seconds_max=2),
        exit_seconds_max=10,
        kill_seconds_max=10,
        on_report=lambda report: None,
    )

    writers: list[int] = []

    def is_read() -> bool:
        """Whether the trainer reads the file. It is kept open: else what it reads would have ended."""
        with contextlib.suppress(OSError):
            writers.append(os.open(attempt_file, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    async def crash() -> job_pb2.AttemptOutcome.ValueType:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
        command = [*TRAINER_COMMAND, "--attempt-file", str(attempt_file)]
        running = asyncio.create_task(supervision.run(command, folder=tmp_path, environ=environ))
        await until(is_read, seconds=60)
        process_id = supervision.process_id
        assert process_id is not None
        os.kill(process_id, number)
        ending = await running
        os.close(writers[0])
        recording.recorder.flush()
        assert ending.message.startswith(f"the trainer crashed with {number.name}")
        assert "read_attempt" in ending.message
        return ending.outcome

    assert asyncio.run(crash()) == job_pb2.ATTEMPT_OUTCOME_FAILED
    lines = [
        (text, level) for batch in recording.line_batches for text, level in zip(batch.lines, batch.levels, strict=True)
    ]
    (fatal,) = [index for index, (text, _) in enumerate(lines) if text.startswith("Fatal Python error: ")]
    (frame,) = [index for index, (text, _) in enumerate(lines) if text.endswith("in read_attempt")]
    assert {level for _, level in lines[fatal : frame + 1]} == {log_line_pb2.LOG_LEVEL_ERROR}
