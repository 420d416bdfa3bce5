"""Signals end `sihlai up` however fast they come."""

import subprocess
import sys
from pathlib import Path

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
