"""Signals end `sihlai up` however fast they come."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.home import Home

ROUNDS = """
import os, signal, sys
from pathlib import Path
from services.cli.machine.supervisor import Stack, StackConfig
from services.cli.command.up import signals

hurried = 0
class Counting(Stack):
    def hurry(self):
        global hurried
        hurried += 1
        super().hurry()

for number in range(int(sys.argv[2])):
    stack = Counting(StackConfig(data=Path(sys.argv[1])), environ={})
    with signals(stack) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait()
    stack._starter.shutdown()
print(hurried)
"""


def test_two_signals_at_once_never_hang(tmp_path: Path) -> None:
    """A handler that took a lock hung once in 250 to 1,100 rounds."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", ROUNDS, str(tmp_path), "1500"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PYTHONPATH": f"{root}:{root / 'protos'}"},
    )
    assert int(ended.stdout) == 1_500


INTERRUPTED = """
import atexit, os, signal, sys

at = sys.argv.pop(1)

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, CtrlC())
if at == "the end":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
from services.cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("at", "exit_code"),
    [
        *((module, 130) for module in ("services.cli.commands", "typer", "services.cli.command.project", "grpc")),
        ("the end", 3),
    ],
)
def test_ctrl_c_is_an_end_without_a_stack_trace_from_the_first_moment_to_the_last(
    at: str, exit_code: int, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, at, "project", "list"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "SIHLAI_DATA": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (exit_code, False), ended.stderr


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("sihlai project delete digits --scheduler 127.0.0.1:1", "for good?"),
        ("sihlai job delete digits/first --scheduler 127.0.0.1:1", "for good?"),
        ("sihlai token rotate-key --drop-old --scheduler 127.0.0.1:1", "for good?"),
        ("sihlai context add team a:1 --token-file -", "token"),
    ],
)
def test_ctrl_c_at_a_question_ends_the_command_at_once(line: str, question: str, tmp_path: Path) -> None:
    shown, exit_code = Home(tmp_path).on_terminal(f"exec timeout --foreground 120 {line}", columns=80, until=question)
    assert (exit_code, "Traceback" in shown) == (130, False), shown


@pytest.mark.parametrize("nothing", ["<&-", "</dev/null"])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sihlai project delete digits", "say --yes"),
        ("sihlai job delete digits/first", "say --yes"),
        ("sihlai token rotate-key --drop-old", "say --yes"),
        ("sihlai job submit digits -", "holds nothing"),
        ("setsid sihlai context add team a:1 --token-file -", "nobody is there"),
    ],
)
def test_a_question_that_nobody_answers_is_told(line: str, told: str, nothing: str, tmp_path: Path) -> None:
    ended = Home(tmp_path).ask(f"{line} {nothing}")
    assert ended.returncode == 2, ended.stderr
    assert told in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
