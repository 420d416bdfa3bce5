"""Whoever follows a job goes on over an `up` that was killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.cli.home import WAIT_SECONDS, Home, write_datasets

FOLLOWS = (
    ("sihlai job watch digits/first", "queued"),
    ("sihlai logs -f --json digits/first", "caught_up"),
    ("sihlai job wait digits/first", ""),
    ("sihlai job submit digits/second spec.yaml --follow", "queued"),
)
"""And what each says once it follows; the wait says nothing."""
IDLE_SECONDS_MAX = 0.05
"""Processor time in a second of all who only wait."""
SUBMIT = "sihlai job submit digits/first spec.yaml"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Home]:
    """A machine that is up without a runner, and a job in its queue."""
    home = Home(tmp_path)
    write_datasets(tmp_path)
    for line in ("sihlai up -d --runners 0", "sihlai project create digits --training ~/data/digits", SUBMIT):
        done = home.ask(line)
        assert done.returncode == 0, done.stderr
    yield home
    home.ask("sihlai down")


def killed_up(machine: Home) -> None:
    data = machine.folder / ".local" / "share" / "sihlai"
    os.kill(int((data / "up.lock").read_text()), signal.SIGKILL)


def started_up(machine: Home) -> None:
    again = machine.ask("sihlai up -d --runners 1")
    assert again.returncode == 0, again.stderr


def until_answered(machine: Home, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until each has asked a service and has nothing to do but wait, and what they asked for is answered."""
    asking = [psutil.Process(each.pid) for each in processes]
    ends_at, before, spent = time.monotonic() + WAIT_SECONDS, -1.0, 0.0
    while spent - before > IDLE_SECONDS_MAX or not all(each.net_connections("tcp") for each in asking):
        assert time.monotonic() < ends_at
        time.sleep(1)
        before, spent = spent, sum(sum(each.cpu_times()[:2]) for each in asking)
    assert machine.ask("sihlai job list digits").returncode == 0  # asked later, and answered


def test_who_follows_a_job_sees_its_end_although_up_was_killed_in_between(machine: Home) -> None:
    """The services of the second `up` answer seconds before its runner does, and its addresses are written down."""
    follows = [
        subprocess.Popen(
            ["bash", "-c", f"exec {line} 2>&1"],
            cwd=machine.folder,
            env=machine.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        for line, _ in FOLLOWS
    ]
    try:
        for follow, (_, text) in zip(follows, FOLLOWS, strict=True):
            assert follow.stdout is not None
            while text and text not in follow.stdout.readline():
                assert follow.poll() is None
        until_answered(machine, follows)
        killed_up(machine)
        started_up(machine)
        for follow in follows:
            said, _ = follow.communicate(timeout=WAIT_SECONDS)
            assert follow.returncode == 0, said
    finally:
        for follow in follows:
            follow.kill()


def test_top_stays_while_nobody_answers_and_says_so(machine: Home) -> None:
    shown, exit_code = machine.on_terminal(
        "exec sihlai top --seconds 0.2",
        columns=100,
        meanwhile=(
            ("runners: none", lambda: killed_up(machine)),
            ("no answer since", lambda: started_up(machine)),
        ),
        until="runners: 1",
    )
    assert exit_code == 130
    assert "Traceback" not in shown
