"""A process of the supervisor, and its leash."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.machine import child as child_module
from services.cli.machine.child import Child, Definition

STARTER = """
import sys, time
from pathlib import Path
from tests.cli.test_child import definition
from services.cli.machine.child import Child
child = Child(definition(Path(sys.argv[1]), "import time; time.sleep(60)"))
child.start()
print(child.process_id, flush=True)
time.sleep(60)
"""


def definition(folder: Path, program: str) -> Definition:
    return Definition(
        name="child",
        command=[sys.executable, "-c", program],
        environ=os.environ,
        log=folder / "child.log",
        address="",
        serves=lambda process_id: True,
        prepare=lambda: None,
        stop_order=0,
        stop_seconds=1.0,
    )


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_gone(process_id: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_log_that_grows_too_large_is_put_aside_while_its_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "LOG_BYTES_MAX", 10_000)
    program = (
        "import time\nnumber = 0\nwhile True:\n    number += 1\n    print(number, flush=True)\n    time.sleep(1e-3)"
    )
    child = Child(definition(tmp_path, program))
    child.start()
    try:
        log, aside = tmp_path / "child.log", tmp_path / "child.log.1"
        assert until(lambda: log.stat().st_size > 10_000, 60.0)
        child.bound_log()
        assert aside.stat().st_size > 10_000
        assert until(lambda: bool(child.log_tail(1)), 60.0), "it writes on"
        assert log.stat().st_size < 10_000
        assert int(child.log_tail(1)[0]) > 1_000, "the lines go on, with no hole before them"
        assert b"\0" not in log.read_bytes()
        child.bound_log()
        assert log.stat().st_size > 0, "a small one stays"
    finally:
        child.end()


def test_a_child_dies_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environ
    ) as starter:
        assert starter.stdout is not None
        process_id = int(starter.stdout.readline())
        assert not is_gone(process_id)
        starter.kill()
        assert until(lambda: is_gone(process_id))


def test_a_child_can_start_again_and_its_log_tail_is_of_the_last_start(tmp_path: Path) -> None:
    child = Child(definition(tmp_path, "import os; print('I am', os.getpid())"))
    child.start()
    assert child.wait(time.monotonic() + 60)
    assert child.exit_code == 0
    child.start()
    assert child.wait(time.monotonic() + 60)
    assert child.starts == 2
    assert child.log_tail(5) == [f"I am {child.process_id}"]
    assert len((tmp_path / "child.log").read_text().splitlines()) == 2


def test_what_a_dead_child_leaves_in_its_group_is_ended_before_its_number_is_given_away(tmp_path: Path) -> None:
    program = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    child = Child(definition(tmp_path, program))
    child.start()
    assert child.wait(time.monotonic() + 60)
    assert until(lambda: is_gone(int(child.log_tail(1)[0])))
    assert child.exit_code == 0
    child.end()
    child.signal(signal.SIGTERM)
    assert child.exit_code == 0


def test_the_end_of_a_child_is_the_end_of_its_group(tmp_path: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    child = Child(definition(tmp_path, program))
    child.start()
    assert until(lambda: bool(child.log_tail(1)))
    grandchild = int(child.log_tail(1)[0])
    child.end()
    assert child.exit_code == -signal.SIGKILL
    assert until(lambda: is_gone(grandchild))
