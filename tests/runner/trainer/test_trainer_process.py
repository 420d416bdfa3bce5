"""The trainer as the agent starts it: a process of its own, told through a pipe and heard through another."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from runner import predict
from runner.report import CheckpointWritten, Ended, Outcome, Points, read_reports
from runner.trainer.commands import EXIT_CODE_ORPHANED
from tests.runner.trainer.conftest import Workshop, spec_from

SECONDS_MAX = 60


@contextlib.contextmanager
def trainer(attempt_file: Path) -> Iterator[tuple[subprocess.Popen[bytes], BinaryIO]]:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "runner.train", "--attempt-file", str(attempt_file), "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--report-fd", str(writing)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(writing,)
    )
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            yield process, pipe
    finally:
        process.kill()
        process.wait(SECONDS_MAX)


def test_a_stop_ends_the_process_with_a_checkpoint_that_predicts(
    workshop: Workshop,
    halves: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 100_000})
    with trainer(workshop.write_attempt(training, spec)) as (process, pipe):
        assert process.stdin is not None
        reports = read_reports(pipe)
        for report in reports:
            if isinstance(report, Points) and report.step >= 3:
                break
        process.stdin.write(b"stop\n")
        process.stdin.flush()
        *_, last = rest = list(reports)
        assert isinstance(last, Ended)
        assert last.outcome is Outcome.STOPPED
        (written,) = (report for report in rest if isinstance(report, CheckpointWritten))
        assert process.wait(SECONDS_MAX) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    image = Path(training["images"]) / "000.png"
    monkeypatch.setattr(sys, "argv", ["predict", "--checkpoint", written.folder, "--json", str(image)])
    assert predict.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image"] == str(image)
    assert found["heads"]["side"]["category"] in {"left", "right", "top", "bottom"}


def test_the_process_ends_at_once_when_its_agent_is_gone(workshop: Workshop, halves: dict[str, str]) -> None:
    spec = spec_from(trainer={"iterations_max": 100_000})
    with trainer(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec)) as (process, pipe):
        for report in read_reports(pipe):
            if isinstance(report, Points):
                break
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS_MAX) == EXIT_CODE_ORPHANED


def test_signals_to_all_processes_of_a_machine_leave_the_trainer_to_its_agent(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    """As systemd sends them to a whole control group, and a terminal to its foreground processes."""
    spec = spec_from(trainer={"iterations_max": 100_000})
    with trainer(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec)) as (process, pipe):
        reports = read_reports(pipe)
        steps = (report.step for report in reports if isinstance(report, Points))
        reached = next(steps)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert next(step for step in steps if step > reached + 20)
        assert process.stdin is not None
        process.stdin.write(b"hand-back\n")
        process.stdin.flush()
        *_, last = rest = list(reports)
        assert isinstance(last, Ended)
        assert last.outcome is Outcome.HANDED_BACK
        assert any(isinstance(report, CheckpointWritten) for report in rest)
        assert process.wait(SECONDS_MAX) == 0


def test_wrong_flags_are_named_without_a_stack_trace() -> None:
    command = [sys.executable, "-m", "runner.train", "--report-fd", "1", "--attempt-fil", "x"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert found.returncode == 2
    assert "--attempt-file" in found.stderr
    assert "Traceback" not in found.stderr
