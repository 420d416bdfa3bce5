"""One process of the supervisor: what it is started with, whether it serves, and its end.

A child has a process group of its own, so that Ctrl-C at the terminal reaches its supervisor alone, and it is on a
leash: it dies with its supervisor. It must be started from a thread that lives as long as the supervisor, because the
leash is tied to that thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.leash import on_leash

LOG_BYTES_MAX = 32 * 2**20
"""A log that is larger when its process starts is put aside, once."""
LOG_TAIL_BYTES = 4_096
POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a process is: the same for every start, its address included.

    `stop_order`: who has a lower number is stopped first. `serves` asks whether it answers; it may take a second.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    address: str
    serves: Callable[[], bool]
    prepare: Callable[[], None]
    stop_order: int
    stop_seconds: float


class Child:
    """A process that is, was or will be running."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.started_at = 0.0

    @property
    def name(self) -> str:
        """Its name in the stack."""
        return self.definition.name

    @property
    def process_id(self) -> int:
        """The id of the process that was started last."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self) -> None:
        """Start the process; what an earlier one left in its group is ended first."""
        assert not self.running, f"{self.name} is running"
        if self._process is not None:
            _end_group(self._process.pid)
        definition = self.definition
        definition.prepare()
        definition.log.parent.mkdir(parents=True, exist_ok=True)
        if definition.log.exists() and definition.log.stat().st_size > LOG_BYTES_MAX:
            definition.log.replace(definition.log.with_name(f"{definition.log.name}.1"))
        with definition.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                on_leash(definition.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(definition.environ),
                process_group=0,
            )
        self.starts += 1
        self.started_at = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: negative is the signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; nothing happens where it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, deadline: float) -> bool:
        """Wait until the process has ended or `time.monotonic()` reaches the deadline; return whether it has ended."""
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return not self.running

    def end(self) -> None:
        """SIGKILL to the process and all of its group, and wait for it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        _end_group(self._process.pid)

    def log_tail(self, lines_max: int) -> list[str]:
        """The last lines that the process wrote since it was started last."""
        with self.definition.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-lines_max:]


def _end_group(process_id: int) -> None:
    """End what a dead process left in its group, such as the workers of its pool."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)
