"""The `sihlai` command. The environment is read here, and nowhere else.

What takes a while to import is imported below `main`: Ctrl-C may come then, too.
"""

from __future__ import annotations

import io
import os
import sys

from services.cli.error import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREAD


def main() -> None:
    """Run one command and exit with its code."""
    try:
        import signal

        code = _exit_code()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done: Python's own end must not alter how
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    raise SystemExit(code)


def _exit_code() -> str | int | None:
    """Run one command."""
    environ = dict(os.environ)
    _open_what_is_closed()
    # gRPC's core writes to standard error by itself, before anybody can be asked; what matters is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows few letters gets a table all the same
    try:
        from services.cli.commands import app

        app(obj=environ)
    except SystemExit as end:
        # typer ends by itself where a pipe is closed while it writes help.
        return EXIT_UNREAD if isinstance(end.__context__, BrokenPipeError) else _flushed(end.code)
    except OSError as error:
        return _told(error)
    raise AssertionError("typer ends with SystemExit")


def _open_what_is_closed() -> None:
    """Give what a caller has closed to nobody: else output would land in the next file that is opened."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _flushed(code: str | int | None) -> str | int | None:
    """The exit code, or that of what is only found when the last of the output is written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _told(error)
    return code


def _told(error: OSError) -> int:
    """The exit code of output that cannot be written, after a sentence where somebody is there to read it."""
    # Python would try, and complain, once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return EXIT_UNREAD
    sys.stderr.write(f"error: {error.strerror or error}\n")
    return EXIT_FAILED


if __name__ == "__main__":
    main()
