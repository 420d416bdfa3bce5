"""`sihlai up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.chassis.endpoints import data_folder, usual_roots
from services.cli.command.background import start_detached
from services.cli.error import EXIT_FAILED, EXIT_INTERRUPTED
from services.cli.machine.folder import DataFolder
from services.cli.machine.process import FREE_PORT
from services.cli.machine.supervisor import Change, Stack, StackConfig, StackError, StackEvent
from services.cli.machine.transport import Transport
from services.cli.session import environment, reported
from services.cli.view.listing import Column, Listing
from services.cli.view.output import Output

END_OF_LISTENING = b"\0"
RUNNERS_MAX = 1_000
Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it listens; port 0 takes a free one.")]


def up(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where everything lies; default $SIHLAI_DATA or ~/.local/share/sihlai."),
    ] = None,
    runners: Annotated[
        int,
        typer.Option(
            min=0, max=RUNNERS_MAX, help="How many runners; several divide the GPUs of the machine among them."
        ),
    ] = 1,
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
    oidc: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take the tokens of an OpenID Connect issuer too, which this YAML names."),
    ] = None,
    listen_scheduler: Listen = FREE_PORT,
    listen_metrics: Listen = FREE_PORT,
    listen_conversion: Listen = FREE_PORT,
    listen_nats: Listen = FREE_PORT,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="The name of this machine for others, which its certificate bears.")
    ] = "",
    tls_certificate_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate that all services show (PEM, with its chain).")
    ] = None,
    tls_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The authority of the certificate, which this machine's processes and commands check it with.",
        ),
    ] = None,
    plaintext_allowed: Annotated[
        bool, typer.Option("--plaintext-allowed", help="Listen without TLS also where other machines reach it.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when everything serves; `sihlai down` stops it.")
    ] = False,
) -> None:
    """Start everything on this machine, and stop it in order with Ctrl-C (a second one hurries).

    Every process is a real one; its log is a file in the data folder. What dies is started again at its address.

    Where others reach it, it wants a certificate that bears its name, and the authority of that; `sihlai context add`
    takes the same authority.

    Examples: sihlai up; sihlai up -d --runners 2
    """
    output = Output(as_json=False)
    environ = environment(context)
    default = data_folder(environ)
    folder = data or default
    if folder is None:
        raise typer.BadParameter("there is no home folder for it: give one", param_hint="--data")
    config = StackConfig(
        data=folder.expanduser().resolve(),
        runners=runners,
        device=device,
        allowed_roots=tuple(allow_root or usual_roots(environ)),
        allowed_endpoint_hosts=tuple(allow_endpoint_host or ()),
        oidc_file=oidc.expanduser() if oidc is not None else None,
        listen_nats=listen_nats,
        listen_conversion=listen_conversion,
        listen_scheduler=listen_scheduler,
        listen_metrics=listen_metrics,
        transport=Transport(
            host=host,
            certificate_file=_absolute(tls_certificate_file),
            key_file=_absolute(tls_key_file),
            ca_file=_absolute(tls_ca_file),
            plaintext_allowed=plaintext_allowed,
        ),
    )
    if detach:
        with reported(output):
            start_detached(output, DataFolder(root=config.data))
        return
    stack = Stack(config, environ=environ, tell=lambda event: _tell(output, event))
    with reported(output), signals(stack) as stop:
        output.note(f"starting in {config.data}")
        try:
            stack.start()
        except StackError:
            if not stop.is_set():
                raise
            raise typer.Exit(EXIT_INTERRUPTED) from None
        output.show(_table(stack))
        output.line(_how_to_go_on(config, default, on_gpu=stack.trains_on_gpu()))
        stop.wait()
        output.note("stopping in order; Ctrl-C once more hurries")
        killed = stack.stop()
    if killed:
        output.errors.print(f"had to be killed: {', '.join(killed)}", markup=False)
        raise typer.Exit(EXIT_FAILED)


def _absolute(path: Path | None) -> Path | None:
    return path.expanduser().resolve() if path is not None else None


@contextlib.contextmanager
def signals(stack: Stack) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second hurries the stop.

    The handlers do nothing: what a signal interrupts may hold any lock. The system writes its number into a pipe, and a
    thread that holds none reads it.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while (number := os.read(reader, 1)) != END_OF_LISTENING:
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if stop.is_set():
                stack.hurry()
            stack.cancel()
            stop.set()

    listener = threading.Thread(target=listen, name="signals")
    listener.start()
    before_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_writer)
        os.write(writer, END_OF_LISTENING)
        listener.join()
        os.close(reader)
        os.close(writer)


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


def _table(stack: Stack) -> Listing:
    table = Listing(
        Column(name="process"),
        Column(name="address"),
        Column(name="process id", goes=2),
        Column(name="log", goes=1, breaks=True),
    )
    for name in stack.names:
        table.add_row(name, stack.address(name), str(stack.process_id(name)), Text(str(stack.log(name))))
    return table


def _how_to_go_on(config: StackConfig, default: Path | None, *, on_gpu: bool) -> str:
    # Without the flag commands look into the default folder.
    found_without = default is not None and config.data == default.expanduser().resolve()
    flag = "" if found_without else f" --data {shlex.quote(str(config.data))}"
    # What a GPU learns in minutes keeps a processor busy for hours: small images and a small model there.
    small = "" if on_gpu else " --backbone tiny --resolution 64"
    return "\n".join(
        [
            "",
            "go on in another terminal:",
            f"  sihlai project create digits --training FOLDER{flag}",
            f"  sihlai job submit digits/first --task multiclass-classification{small} --follow{flag}",
            f"  sihlai metrics watch digits/first{flag}",
            "",
        ]
    )
