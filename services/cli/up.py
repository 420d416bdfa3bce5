"""`sihlai up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services.cli.endpoints import default_data_folder
from services.cli.machine import FREE_PORT
from services.cli.output import Output
from services.cli.session import EXIT_FAILED, EXIT_INTERRUPTED, environment, reported
from services.cli.supervisor import Change, Stack, StackConfig, StackError, StackEvent

Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it listens; port 0 takes a free one.")]


def up(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where everything lies; default $SIHLAI_DATA or ~/.local/share/sihlai."),
    ] = None,
    runners: Annotated[int, typer.Option(min=0, help="How many runners.")] = 1,
    device: Annotated[str, typer.Option(help="What runners train on: auto, cpu or cuda.")] = "auto",
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Datasets may lie in it, and be written to it; default your home and the current folder.",
        ),
    ] = None,
    allow_endpoint_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="An S3-compatible server that may be asked.")
    ] = None,
    listen_scheduler: Listen = FREE_PORT,
    listen_metrics: Listen = FREE_PORT,
    listen_conversion: Listen = FREE_PORT,
    listen_nats: Listen = FREE_PORT,
) -> None:
    """Start everything on this machine, and stop it in order with Ctrl-C (a second one hurries).

    Every process is a real one; its log is a file in the data folder. What dies is started again at its address.
    """
    output = Output(as_json=False)
    environ = environment(context)
    config = StackConfig(
        data=(data or default_data_folder(environ)).expanduser().resolve(),
        runners=runners,
        device=device,
        allowed_roots=tuple(allow_root) if allow_root else (Path.home(), Path.cwd()),
        allowed_endpoint_hosts=tuple(allow_endpoint_host or ()),
        listen_nats=listen_nats,
        listen_conversion=listen_conversion,
        listen_scheduler=listen_scheduler,
        listen_metrics=listen_metrics,
    )
    stack = Stack(config, environ=environ, tell=lambda event: _tell(output, event))
    with reported(output), _signals(stack) as stop:
        output.note(f"starting in {config.data}")
        try:
            stack.start()
        except StackError:
            if not stop.is_set():
                raise
            raise typer.Exit(EXIT_INTERRUPTED) from None
        output.show(_table(stack))
        output.line(_how_to_go_on(config, default_data_folder(environ)))
        stop.wait()
        output.note("stopping in order; Ctrl-C once more hurries")
        killed = stack.stop()
    if killed:
        output.errors.print(f"had to be killed: {', '.join(killed)}", markup=False)
        raise typer.Exit(EXIT_FAILED)


@contextlib.contextmanager
def _signals(stack: Stack) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second hurries the stop."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            stack.hurry()
        stop.set()
        stack.cancel()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(output: Output, event: StackEvent) -> None:
    words = {
        Change.SERVING: "serves",
        Change.DIED: "died",
        Change.RESTARTED: "is started again",
        Change.STOPPED: "stopped",
        Change.KILLED: "was killed",
    }
    style = {Change.DIED: "bold red", Change.KILLED: "bold red", Change.RESTARTED: "yellow"}.get(event.change, "dim")
    detail = f" {event.detail}" if event.detail else ""
    # A death's detail begins with the name itself.
    text = event.detail if event.change is Change.DIED else f"{event.name} {words[event.change]}{detail}"
    output.errors.print(text, style=style, markup=False)


def _table(stack: Stack) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("process", "address", "process id", "log"):
        table.add_column(column, overflow="fold")
    for name in stack.names:
        table.add_row(name, stack.address(name), str(stack.process_id(name)), str(stack.log(name)))
    return table


def _how_to_go_on(config: StackConfig, default: Path) -> str:
    # Without the flag commands look into the default folder.
    flag = "" if config.data == default.expanduser().resolve() else f" --data {config.data}"
    return "\n".join(
        [
            "",
            "go on in another terminal:",
            f"  sihlai project create digits --training FOLDER{flag}",
            f"  sihlai job submit digits/first --task multiclass-classification --follow{flag}",
            f"  sihlai metrics watch digits/first{flag}",
            "",
        ]
    )
