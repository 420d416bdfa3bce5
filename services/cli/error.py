"""How a command ends: its exit codes, and the error that is one sentence for a person."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_NOT_UNDERSTOOD = 2
EXIT_UNREACHABLE = 3
EXIT_JOB_FAILED = 4
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""Who read the output has gone, as `head` does: what a shell says of a process that SIGPIPE ended."""


class CommandError(Exception):
    """A command cannot be done; the message is one sentence for a person."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
