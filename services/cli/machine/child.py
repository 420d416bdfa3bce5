"""One process of the supervisor: what it is started with, whether it serves, and its end.

A child has a process group of its own, so that Ctrl-C at the terminal reaches its supervisor alone, and it is on a
leash: it dies with its supervisor. It must be started from a thread that lives as long as the supervisor, because the
leash is tied to that thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.leash import on_leash

LOG_BYTES_MAX = 32 * 2**20
"""A log that is larger is put aside, once: it and the one before it are kept."""
LOG_TAIL_BYTES = 4_096
POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a process is: the same for every start, its address included.

    `stop_order`: who has a lower number is stopped first. `serves` asks whether the process with this id answers, and
    nobody else in its place; it may take a second.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    address: str
    serves: Callable[[int], bool]
    prepare: Callable[[], None]
    stop_order: int
    stop_seconds: float


class Child:
    """A process that is, was or will be running. May be used by several threads.

    Its number is given back to the system only once nothing of its group is left: as long as the process is not reaped,
    no stranger can bear it.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._lock = threading.RLock()
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
        """Start the process. Raises OSError."""
        assert not self.running, f"{self.name} is running"
        definition = self.definition
        definition.prepare()
        definition.log.parent.mkdir(parents=True, exist_ok=True)
        self.bound_log()
        with definition.log.open("ab") as log, self._lock:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                on_leash(definition.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(definition.environ),
                process_group=0,
            )
            self._exit_code = None
        self.starts += 1
        self.started_at = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the process is there. What one that has died left in its group is ended."""
        with self._lock:
            return self._process is not None and self._seen_exit_code(self._process) is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: negative is the signal; None while it runs."""
        with self._lock:
            return None if self._process is None else self._seen_exit_code(self._process)

    @property
    def serves(self) -> bool:
        """Whether the process answers."""
        return self.running and self.definition.serves(self.process_id)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; nothing happens where it has ended."""
        with self._lock:
            if self.running:
                os.kill(self.process_id, number)

    def wait(self, deadline: float) -> bool:
        """Wait until the process has ended or `time.monotonic()` reaches the deadline; return whether it has ended."""
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return not self.running

    def end(self) -> None:
        """SIGKILL to the process and all of its group, and wait for it."""
        while self.running:
            with self._lock:
                if self.running:
                    os.killpg(self.process_id, signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _seen_exit_code(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code, once the process has died: then its group is ended, and only then the process is reaped."""
        if self._exit_code is None:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            self._exit_code = process.wait()
        return self._exit_code

    def bound_log(self) -> None:
        """Put the log aside where it has grown too large. The process goes on with the emptied file, at whose end it
        writes; a line that it writes just then may be lost."""
        log = self.definition.log
        with contextlib.suppress(OSError), self._lock:
            if log.stat().st_size <= LOG_BYTES_MAX:
                return
            with contextlib.suppress(OSError):  # a full disk: all the more reason to empty it
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
            self._log_start = 0

    def log_tail(self, lines_max: int) -> list[str]:
        """The last lines that the process wrote since it was started last; none where its log cannot be read."""
        try:
            with self.definition.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-lines_max:]
        except OSError:
            return []
