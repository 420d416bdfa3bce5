"""`sihlai up -d`, `sihlai down` and `sihlai ps`: an `up` without a terminal, its end, and what belongs to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.chassis.endpoints import data_folder, is_held, read_endpoints
from services.cli.error import CommandError
from services.cli.machine.folder import DataFolder, read_processes
from services.cli.machine.process import PYTHON
from services.cli.session import environment, reported
from services.cli.view.listing import Column, Listing
from services.cli.view.output import Output

DETACHED_WORDS = frozenset({"-d", "--detach"})
STOP_SECONDS_MAX = 300.0
POLL_SECONDS = 0.1
LOG_LINES = 5
Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The data folder; default $SIHLAI_DATA or ~/.local/share/sihlai.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs: one object a line.")]


def start_detached(output: Output, folder: DataFolder) -> None:
    """Start the same command in a session of its own, and return when everything serves. It writes into `up.log`."""
    if is_held(folder.root):
        raise CommandError(f"something is up in {folder.root} already: `sihlai ps` shows it")
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_file = folder.log("up")
    log_file.parent.mkdir(exist_ok=True)
    words = [word for word in sys.argv[1:] if word not in DETACHED_WORDS]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*PYTHON, "-m", "services.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not read_endpoints(folder.root):
        if process.poll() is not None:
            last = log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise CommandError("\n".join(["it ended while it started:", *last]))
        time.sleep(POLL_SECONDS)
    output.line(f"up in {folder.root}, process {process.pid}; `sihlai down` stops it, its log is {log_file}")


def down(
    context: typer.Context,
    data: Data = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for checkpoints.")] = False,
) -> None:
    """Stop the `sihlai up` of this machine in order, and wait until it has ended.

    Example: sihlai down
    """
    output = Output()
    with reported(output):
        folder = _folder(context, data)
        process_id = _holder(folder)
        output.note(f"stopping what is up in {folder.root}, process {process_id}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGTERM)
            if now:
                time.sleep(POLL_SECONDS)
                os.kill(process_id, signal.SIGTERM)  # the second one hurries
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while is_held(folder.root):
            if time.monotonic() > deadline:
                raise CommandError(f"process {process_id} has not ended after {STOP_SECONDS_MAX:.0f} s")
            time.sleep(POLL_SECONDS)
        output.line("stopped")


def show_processes(context: typer.Context, data: Data = None, as_json: AsJson = False) -> None:
    """Show the processes of the `sihlai up` of this machine.

    Example: sihlai ps
    """
    output = Output(as_json=as_json)
    with reported(output):
        folder = _folder(context, data)
        _holder(folder)
        table = Listing(
            Column(name="process"),
            Column(name="address"),
            Column(name="process id", goes=2),
            Column(name="starts", goes=3),
            Column(name="log", goes=1, breaks=True),
        )
        for found in read_processes(folder):
            if as_json:
                output.json(found)
            table.add_row(*(Text(str(found[name])) for name in ("process", "address", "process_id", "starts", "log")))
        if not as_json:
            output.show(table)


def _folder(context: typer.Context, data: Path | None) -> DataFolder:
    environ: Mapping[str, str] = environment(context)
    root = data or data_folder(environ)
    if root is None:
        raise CommandError("there is no home folder to look into: say --data FOLDER")
    return DataFolder(root=root.expanduser().resolve())


def _holder(folder: DataFolder) -> int:
    """The process that holds the folder."""
    if is_held(folder.root):
        with contextlib.suppress(OSError, ValueError):
            return int(folder.lock.read_text())
    raise CommandError(f"nothing is up in {folder.root}")
