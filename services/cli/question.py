"""Questions to the person at the terminal, before what nothing brings back."""

from __future__ import annotations

import signal
import sys

import typer

from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError


def confirm(question: str, *, otherwise: str) -> None:
    """Go on after a yes. Raises CommandError, which begins with `otherwise`, where nobody is there to answer.

    A no is typer's Abort. Ctrl-C ends the command at once: what an event loop does with it would wait for the answer.
    """
    if not sys.stdin.isatty():
        raise CommandError(f"{otherwise}: say --yes", exit_code=EXIT_NOT_UNDERSTOOD)
    of_loop = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        typer.confirm(question, abort=True, err=True)
    finally:
        signal.signal(signal.SIGINT, of_loop)
