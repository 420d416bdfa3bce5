"""Everything of one machine as one thing: started, watched over, stopped in order.

`Stack` starts the processes of `machine` in a data folder, starts one that dies again at the same address, and leaves
nothing behind: each child is on a leash, and `stop` looks for what is left. `sihlai up`, the demo and the system tests
use it. It speaks to nobody: what happens goes to `tell`.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from services.chassis.backoff import Backoff
from services.chassis.endpoints import SERVICES
from services.cli.error import CommandError
from services.cli.machine.child import Child
from services.cli.machine.definitions import MARK_VARIABLE, StackConfig, definitions, runner_ids
from services.cli.machine.folder import DataFolder, held, write_endpoints, write_processes
from services.cli.machine.issuing import Issuing
from services.cli.machine.probe import has_gpu

__all__ = ["Change", "Stack", "StackConfig", "StackError", "StackEvent"]

WATCH_SECONDS = 0.1
"""How often it is looked who died."""
TAIL_LINES = 6


class StackError(CommandError):
    """The stack cannot start; the message is for a person."""


class Change(enum.StrEnum):
    """What can happen to a process."""

    SERVING = "serving"
    DIED = "died"
    RESTARTED = "restarted"
    STOPPED = "stopped"
    KILLED = "killed"


@dataclass(frozen=True, kw_only=True)
class StackEvent:
    """Something happened to a process. `detail` is for people."""

    name: str
    change: Change
    detail: str = ""


class Stack:
    """The processes of one machine. Methods may be called from any thread; as a context manager it stops at the end."""

    def __init__(
        self,
        config: StackConfig,
        *,
        environ: Mapping[str, str],
        tell: Callable[[StackEvent], None] = lambda event: None,
    ) -> None:
        self.config = config
        self.folder = DataFolder(root=config.data)
        self._issuing = Issuing(self.folder, runner_ids(config))
        self._environ = environ
        self._tell = tell
        self._mark = uuid.uuid4().hex
        self._children: dict[str, Child] = {}
        self._lock = threading.RLock()
        self._down: set[str] = set()
        """Killed on purpose: they wait for restart()."""
        self._serving: set[str] = set()
        self._backoffs: dict[str, Backoff] = {}
        self._due: dict[str, float] = {}
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._watcher: threading.Thread | None = None
        self._holding = contextlib.ExitStack()
        # The leash of a child is tied to the thread that started it: one thread starts them all, and lives on.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stack-starter")

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when all serve. After FolderInUseError or StackError nothing is left running."""
        self._holding.enter_context(held(self.folder))
        self.folder.endpoints.unlink(missing_ok=True)  # of one that was killed
        try:
            self._issuing.issue_due()
            for definition in definitions(self.config, environ=self._environ, mark=self._mark):
                self._children[definition.name] = Child(definition)
            # Who is stopped first starts last: a runner that finds no scheduler would pause before it tries again.
            runners = {name: child for name, child in self._children.items() if child.definition.stop_order == 0}
            servers = {name: child for name, child in self._children.items() if name not in runners}
            for group in (servers, runners):
                for child in group.values():
                    self._start_child(child)
                self._wait_serving(group)
        except BaseException:
            self._hurry.set()
            self.stop()
            raise
        addresses = {name: self.address(name) for name in (*SERVICES, "nats")}
        write_endpoints(self.folder, {**addresses, **self.config.transport.endpoints(), "up": str(os.getpid())})
        self._watcher = threading.Thread(target=self._watch, name="stack-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> tuple[str, ...]:
        """Stop in order: runners, metrics, scheduler, conversion, nats. Return those that had to be killed.

        May be called again, and also after a failed start.
        """
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._children:  # a stack that was refused must not take the other one's endpoints
            self.folder.endpoints.unlink(missing_ok=True)
        killed: list[str] = []
        by_order = sorted(self._children.values(), key=lambda child: child.definition.stop_order)
        for _, group in itertools.groupby(by_order, key=lambda child: child.definition.stop_order):
            killed += self._stop_group(list(group))
        for process_id, command in self.survivors():
            killed.append(f"{command} (process {process_id})")
            self._tell(StackEvent(name=command, change=Change.KILLED, detail=f"process {process_id} was left behind"))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self._children.clear()
        self._starter.shutdown()
        self._holding.close()
        return tuple(killed)

    def hurry(self) -> None:
        """Let a stop, now or later, wait no longer than `hurry_seconds` for anyone."""
        self._hurry.set()

    def cancel(self) -> None:
        """Let a start that is under way end with StackError; nothing happens after it."""
        self._stopping.set()

    def kill(self, name: str) -> None:
        """SIGKILL to one process; it stays down until restart()."""
        with self._lock:
            child = self._children[name]
            self._down.add(name)
            self._due.pop(name, None)
            self._serving.discard(name)
            child.signal(signal.SIGKILL)
            child.wait(time.monotonic() + self.config.service_stop_seconds)

    def restart(self, name: str) -> None:
        """Start a process again at the same address and return when it serves; one that runs is killed first."""
        self.kill(name)
        with self._lock:
            child = self._children[name]
            self._start_child(child)
        self._wait_serving({name: child})
        with self._lock:
            self._down.discard(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The processes, in the order of starting."""
        return tuple(self._children)

    def address(self, name: str) -> str:
        """Where a server listens; empty for a runner."""
        return self._children[name].definition.address

    def process_id(self, name: str) -> int:
        """The id of the process that runs under this name now."""
        return self._children[name].process_id

    def log(self, name: str) -> Path:
        """The file with the process's log."""
        return self._children[name].definition.log

    def starts(self, name: str) -> int:
        """How often the process was started: 1 where it never died."""
        return self._children[name].starts

    def trains_on_gpu(self) -> bool:
        """Whether a runner has a GPU, as the scheduler knows it."""
        runners = [name for name in self.names if name.startswith("runner-")]
        scheduler, tls = self.address("scheduler"), self.config.transport.client_tls
        return any(has_gpu(self.folder, scheduler, name, tls) for name in runners)

    def survivors(self) -> list[tuple[int, str]]:
        """Processes of this stack, grandchildren too, that are no running child: id and command. Linux only."""
        own = {child.process_id for child in self._children.values() if child.running}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK_VARIABLE}={self._mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command and int(entry.name) not in own:
                    found.append((int(entry.name), command))
        return found

    def _start_child(self, child: Child) -> None:
        self._starter.submit(child.start).result()
        started = [each for each in list(self._children.values()) if each.starts]
        write_processes(self.folder, [_described(each) for each in started])

    def _wait_serving(self, children: Mapping[str, Child]) -> None:
        deadline = time.monotonic() + self.config.start_seconds_max
        waiting = dict(children)
        while waiting:
            for name, child in list(waiting.items()):
                if self._stopping.is_set():
                    raise StackError("the start was interrupted")
                if not child.running:
                    raise StackError(_end_message(child, "while it started"))
                if child.serves:
                    del waiting[name]
                    self._serving.add(name)
                    self._tell(StackEvent(name=name, change=Change.SERVING, detail=child.definition.address))
                elif time.monotonic() > deadline:
                    raise StackError(
                        f"{name} does not serve after {self.config.start_seconds_max:.0f} s: its log is in "
                        f"{child.definition.log}"
                    )
            self._stopping.wait(WATCH_SECONDS / 2)

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            with contextlib.suppress(OSError):  # a full disk: there is half a life left
                self._issuing.issue_due()
            for child in list(self._children.values()):
                with self._lock:
                    if child.name not in self._down and not self._stopping.is_set():
                        self._look_after(child)

    def _look_after(self, child: Child) -> None:
        name, now = child.name, time.monotonic()
        child.bound_log()
        if child.running:
            if name not in self._serving and child.serves:
                self._serving.add(name)
                self._tell(StackEvent(name=name, change=Change.SERVING, detail=child.definition.address))
        elif name not in self._due:
            pause = self._put_off(child, now)
            self._serving.discard(name)
            message = _end_message(child, f"and is started again in {pause:.1f} s")
            self._tell(StackEvent(name=name, change=Change.DIED, detail=message))
        elif now >= self._due[name]:
            del self._due[name]
            self._start_again(child, now)

    def _start_again(self, child: Child, now: float) -> None:
        try:
            self._start_child(child)
        except OSError as error:  # a full disk, no process left: it passes, and the others are still to be watched
            pause = self._put_off(child, now)
            problem = f"{child.name} cannot be started, it is tried again in {pause:.1f} s: {error}"
            self._tell(StackEvent(name=child.name, change=Change.DIED, detail=problem))
        else:
            self._tell(StackEvent(name=child.name, change=Change.RESTARTED, detail=child.definition.address))

    def _put_off(self, child: Child, now: float) -> float:
        """Set when a dead child is started again; in how many seconds that is."""
        backoff = self._backoffs.setdefault(child.name, self._backoff())
        if now - child.started_at > self.config.steady_seconds:
            backoff.reset()
        pause = backoff.next_seconds()
        self._due[child.name] = now + pause
        return pause

    def _backoff(self) -> Backoff:
        config = self.config
        return Backoff(
            seconds_first=config.restart_seconds_first,
            seconds_max=config.restart_seconds_max,
            randomness=random.Random(),  # noqa: S311  # spreads restarts, guards nothing
        )

    def _stop_group(self, children: list[Child]) -> list[str]:
        """SIGTERM to all of them at once, time to end, SIGKILL to who is left."""
        running = [child for child in children if child.running]
        began = time.monotonic()
        for child in running:
            child.signal(signal.SIGTERM)
        killed = []
        for child in running:
            seconds = child.definition.stop_seconds
            while not child.wait(time.monotonic() + WATCH_SECONDS):
                limit = min(seconds, self.config.hurry_seconds) if self._hurry.is_set() else seconds
                if time.monotonic() - began > limit:
                    killed.append(child.name)
                    break
            change = Change.KILLED if child.running else Change.STOPPED
            detail = f"it did not end within {time.monotonic() - began:.0f} s" if child.running else ""
            child.end()
            self._tell(StackEvent(name=child.name, change=change, detail=detail))
        return killed


def _end_message(child: Child, ending: str) -> str:
    code = child.exit_code or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    tail = "\n".join(f"  {line}" for line in child.log_tail(TAIL_LINES))
    return f"{child.name} ended {how} {ending}; its log is in {child.definition.log}" + (f":\n{tail}" if tail else "")


def _described(child: Child) -> dict[str, Any]:
    """What `sihlai ps` shows of it."""
    definition = child.definition
    return {
        "process": child.name,
        "address": definition.address,
        "process_id": child.process_id,
        "starts": child.starts,
        "log": str(definition.log),
    }
