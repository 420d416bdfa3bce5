"""Runs the trainer so that it dies with its agent: `python -I -S leash.py AGENT_PID COMMAND…`.

The kernel sends SIGKILL to the command when the agent's thread that started it ends, however it ends (PR_SET_PDEATHSIG,
which survives exec). A Python function between fork and exec would do the same, but may deadlock in an agent that has
gRPC's threads. Standard library only, and started without site-packages, so that it takes milliseconds.

Linux only; elsewhere the end of the command pipe has to do, and what the next agent ends at its start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Put on the leash, then become the command."""
    agent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != agent:  # it died before the leash was on
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # the command is our own; no shell is wanted


if __name__ == "__main__":
    main()
