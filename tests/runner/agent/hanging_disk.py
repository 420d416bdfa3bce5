"""Disks that hang, from a moment on.

One hangs for an agent's process alone: calls for what lies in a folder do not return. Python tells of most calls before
it makes them (its audit events); the few of which it does not are put behind a function that waits. Whoever waits has
let go of the interpreter, as with a call of the system. This needs no rights.

The other is real, and needs root's: in a frozen file system whoever writes waits in the kernel.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_BYTES = 200 * 2**20

CUSTOMIZE = """
import json, os, subprocess, sys, threading, time, traceback

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "os.truncate"}
FUNCTIONS = ("stat", "lstat", "statvfs", "fsync", "fdatasync", "write", "pwrite")
stat, readlink = os.stat, os.readlink

def place_of(what):
    if isinstance(what, int):
        try:
            return readlink(f"/proc/self/fd/{what}")
        except OSError:
            return ""
    return os.fsdecode(what) if isinstance(what, (str, bytes, os.PathLike)) else ""

def hangs(event):
    try:
        stat(HANGING)
        with file_open(HANGING) as file:
            wanted = json.load(file)
    except (OSError, ValueError):
        return False
    return event in wanted or not wanted

def wait(event, what):
    if not place_of(what).startswith(FOLDER) or not hangs(event):
        return
    if threading.get_ident() == threading.main_thread().ident:
        with file_open(LOOP_WAITED, "a") as report:
            report.write(f"{event} {place_of(what)}\\n{''.join(traceback.format_stack()[-6:-2])}")
    while hangs(event):
        time.sleep(0.02)

def behind(name, function):
    def wait_and_call(what, *arguments, **options):
        wait(name, what)
        return function(what, *arguments, **options)
    return wait_and_call

def fork_exec(*arguments):
    # whoever starts a process waits until it is in its folder
    wait("fork_exec", arguments[4])
    return fork_and_exec(*arguments)

if sys.orig_argv[1].endswith("agent.py"):
    file_open, fork_and_exec = open, subprocess._fork_exec
    subprocess._fork_exec = fork_exec
    for name in FUNCTIONS:
        setattr(os, name, behind(name, getattr(os, name)))
    sys.addaudithook(lambda event, arguments: wait(event, arguments[0]) if event in EVENTS else None)
"""


class HangingDisk:
    """The disk under `folder`, in the agents that are started after this."""

    def __init__(self, folder: Path, customize: Path) -> None:
        """`customize`: the file that Python runs at its start."""
        self._hanging = customize.with_name("hanging")
        self._loop_waited = customize.with_name("loop-waited")
        names = f"FOLDER, HANGING, LOOP_WAITED = {str(folder)!r}, {str(self._hanging)!r}, {str(self._loop_waited)!r}\n"
        customize.write_text(names + CUSTOMIZE)

    def hang(self, *calls: str) -> None:
        """From now on, in these calls, or in all."""
        draft = self._hanging.with_name("hanging.draft")
        draft.write_text(json.dumps(calls))
        draft.replace(self._hanging)

    def go_on(self) -> None:
        """It answers again."""
        self._hanging.unlink(missing_ok=True)

    @property
    def loop_waited(self) -> str:
        """Where the agent's event loop waited for it; empty where it never did."""
        return self._loop_waited.read_text() if self._loop_waited.exists() else ""


class FrozenDisk:
    """A file system of its own, at `folder`, that can be frozen: who writes then waits in a call that nothing ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_frozen = False

    def freeze(self) -> None:
        _run("fsfreeze", "--freeze", str(self.folder))
        self._is_frozen = True

    def thaw(self) -> None:
        if self._is_frozen:
            _run("fsfreeze", "--unfreeze", str(self.folder))
        self._is_frozen = False


@contextmanager
def frozen_disk(image: Path, folder: Path) -> Iterator[FrozenDisk]:
    """Mounted at `folder`, in the file `image`. Skips the test where there are no rights for that."""
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    folder.mkdir()
    try:
        _run("mkfs.ext4", "-q", str(image))
        _run("mount", "-o", "loop", str(image), str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted: {getattr(error, 'stderr', None) or error}")
    disk = FrozenDisk(folder)
    try:
        try:
            disk.freeze()
            disk.thaw()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be frozen: {getattr(error, 'stderr', None) or error}")
        yield disk
    finally:
        disk.thaw()
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
