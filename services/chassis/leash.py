"""Runs a command that dies with its starter: `python -I -S leash.py STARTER_PID FOLDER COMMAND…`.

The kernel sends SIGKILL to the command when the thread that started it ends, however it ends (PR_SET_PDEATHSIG, which
survives exec). A Python function between fork and exec would do the same, but may deadlock in a starter that has other
threads. Who starts a process in a folder waits until it is there; here it goes there afterwards, and a folder in a file
system that hangs keeps no starter. Standard library only, and no import of ours: it is started without site-packages to
take milliseconds.

A process that is ours from its start calls `hold` instead.

Linux only; elsewhere there is no leash.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def on_leash(command: Sequence[str], *, folder: str = "") -> list[str]:
    """The command that runs `command` on a leash; the caller's process and thread are its starter.

    `folder`: where it runs, an absolute path; empty: where its starter does.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), folder, *command]


def hold(starter: int) -> None:
    """Put this process on a leash: it dies with the thread of the process `starter` that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != starter:  # it died before the leash was on
            sys.exit(1)


def main() -> None:
    """Put on the leash, go to the folder, then become the command."""
    starter, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    hold(starter)
    if folder:
        os.chdir(folder)
    os.execvp(command[0], command)  # noqa: S606  # the command is our own; no shell is wanted


if __name__ == "__main__":
    main()
