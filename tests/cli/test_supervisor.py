"""The supervisor with the real processes of one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.cli.machine.folder import FolderInUseError
from services.cli.machine.supervisor import Change, Stack, StackConfig, StackError, StackEvent
from tests.exchange import exchange

WAIT_SECONDS = 120.0
ODD_NAME = "Größe 100% #1 $x 'a' {c} \"b\""


def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def events() -> list[StackEvent]:
    return []


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, events: list[StackEvent]) -> Iterator[Stack]:
    config = StackConfig(
        data=tmp_path_factory.mktemp("stack") / ODD_NAME,
        runners=0,
        restart_seconds_first=0.05,
        start_seconds_max=2 * WAIT_SECONDS,
    )
    with Stack(config, environ=os.environ, tell=events.append) as running:
        yield running


def test_everything_serves_and_its_addresses_are_written_down(stack: Stack) -> None:
    endpoints = json.loads(stack.folder.endpoints.read_text())
    for service in ("scheduler", "metrics", "conversion", "nats"):
        assert endpoints[service] == stack.address(service)
        assert not stack.address(service).endswith(":0")


def test_a_data_folder_may_have_any_name(stack: Stack) -> None:
    data = stack.config.data
    assert (data / "scheduler" / "scheduler.sqlite").exists()
    assert (data / "metrics" / "lock").exists()
    assert all(stack.starts(name) == 1 for name in stack.names)
    assert [path.name for path in data.parent.iterdir()] == [ODD_NAME]


def test_a_second_stack_is_refused_and_leaves_the_first_alone(stack: Stack) -> None:
    second = Stack(stack.config, environ=os.environ)
    with pytest.raises(FolderInUseError, match="--data"):
        second.start()
    second.stop()
    assert stack.folder.endpoints.exists()


def test_a_killed_process_stays_down_until_it_is_restarted_at_its_address(stack: Stack) -> None:
    address, before = stack.address("nats"), stack.process_id("nats")
    stack.kill("nats")
    assert not psutil.pid_exists(before)
    stack.restart("nats")
    assert stack.address("nats") == address
    assert stack.process_id("nats") != before


def test_a_process_that_dies_is_started_again_at_its_address(stack: Stack, events: list[StackEvent]) -> None:
    starts, process_id = stack.starts("conversion"), stack.process_id("conversion")
    events.clear()
    os.kill(process_id, signal.SIGKILL)
    served = StackEvent(name="conversion", change=Change.SERVING, detail=stack.address("conversion"))
    assert until(lambda: served in events)
    assert stack.starts("conversion") == starts + 1
    told = [event for event in events if event.name == "conversion"]
    assert [event.change for event in told] == [Change.DIED, Change.RESTARTED, Change.SERVING]
    assert "SIGKILL" in told[0].detail


def test_a_process_that_cannot_be_started_again_is_tried_until_it_can(stack: Stack, events: list[StackEvent]) -> None:
    """The watcher lives on: with it nobody would look after anything any more."""
    logs = stack.log("nats").parent
    away = logs.with_name("logs.away")
    away.write_text("a file where the logs should be: as with a full disk nothing can be started")
    exchange(logs, away)
    try:
        events.clear()
        os.kill(stack.process_id("nats"), signal.SIGKILL)
        assert until(lambda: any("nats cannot be started" in event.detail for event in events))
    finally:
        exchange(logs, away)
    assert until(lambda: StackEvent(name="nats", change=Change.SERVING, detail=stack.address("nats")) in events)


def test_a_port_that_a_stranger_listens_at_is_never_taken_for_ours(stack: Stack, tmp_path: Path) -> None:
    """The stranger is a nats-server too: asked at its port it answers as ours would."""
    second = Stack(StackConfig(data=tmp_path, runners=0, listen_nats=stack.address("nats")), environ=os.environ)
    with pytest.raises(StackError, match="nats ended"):
        second.start()
    assert second.survivors() == []


def test_a_data_folder_that_the_engine_cannot_have_is_refused_with_the_reason(tmp_path: Path) -> None:
    stack = Stack(StackConfig(data=tmp_path / "what?", runners=0), environ=os.environ)
    with pytest.raises(StackError, match=r"takes none with '\?' in it"):
        stack.start()
    assert [path.name for path in tmp_path.iterdir()] == ["what?"]


def test_a_process_that_cannot_start_ends_the_start_with_its_own_words(tmp_path: Path) -> None:
    config = StackConfig(data=tmp_path, runners=0, extra={"scheduler": ["--no-such-setting", "1"]})
    stack = Stack(config, environ=os.environ)
    with pytest.raises(StackError, match="no-such-setting"):
        stack.start()
    assert stack.survivors() == []
    assert not stack.folder.endpoints.exists()


def test_up_leaves_nothing_behind_when_it_is_killed_and_stops_in_order_on_a_signal(tmp_path: Path) -> None:
    """One folder for both: what was killed must not stand in the way of the next start."""
    up, children = started_up(tmp_path, "--runners", "0")
    assert len(children) == 4
    up.kill()
    up.wait()
    assert until(lambda: not any(is_alive(child) for child in children))

    up, children = started_up(tmp_path)
    up.send_signal(signal.SIGTERM)
    _, stderr = up.communicate(timeout=WAIT_SECONDS)
    assert up.returncode == 0, stderr
    stopped = [line.split()[0] for line in stderr.splitlines() if line.endswith(" stopped")]
    assert stopped == ["runner-local-1", "metrics", "scheduler", "conversion", "nats"]
    assert not any(is_alive(child) for child in children)
    assert not (tmp_path / "endpoints.json").exists()


def started_up(data: Path, *words: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    environ = {**os.environ, "SIHLAI_SCHEDULER_ADDRESS": "127.0.0.1:1", "COLUMNS": "200"}
    up = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "up", "--data", str(data), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )

    def has_written() -> bool:
        try:
            return str(up.pid) in (data / "endpoints.json").read_text()
        except FileNotFoundError:  # not yet, or what a killed one left has just been removed
            return False

    assert until(lambda: has_written() or up.poll() is not None)
    assert up.poll() is None, up.communicate()
    return up, psutil.Process(up.pid).children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
