"""`sihlai context`: installations by name. No service is asked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.text import Text

from services.chassis.address import service_address
from services.chassis.context import (
    LOCAL,
    VARIABLE,
    Context,
    Contexts,
    NoContextError,
    contexts_file,
    read_contexts,
    write_contexts,
)
from services.cli import completion
from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError
from services.cli.session import environment, reported
from services.cli.view.listing import Column, Listing
from services.cli.view.output import Output
from services.client.name import ID

app = typer.Typer(no_args_is_help=True, help="Installations by name: added, used, listed.")

Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.contexts, help="Such as `team`.")]
Write: TypeAlias = Callable[[Contexts], None]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs: one object a line.")]


@app.command("add")
def add_context(
    context: typer.Context,
    name: Name,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The scheduler's address: it knows the others.")],
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the token, read with each use. `-` asks for it, and keeps it."),
    ] = None,
    token_command: Annotated[
        str, typer.Option(metavar="COMMAND", help="Prints the token, such as one of your own login; run when needed.")
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The authorities that certificates are checked with (PEM): it speaks TLS."),
    ] = None,
    client_certificate_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own certificate (PEM), where services want one (mTLS).")
    ] = None,
    client_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of your own certificate, for nobody else to read.")
    ] = None,
    use: Annotated[bool, typer.Option("--use", help="Use it from now on.")] = False,
) -> None:
    """Add an installation, or change it. Its token is kept in a file that nobody else can read.

    Example: sihlai context add team gpu-farm:50051 --token-file ~/team.token --use
    """
    with _edited(context) as (output, contexts, write):
        if name == LOCAL:
            raise _not_understood(f"{LOCAL} is the `sihlai up` of this machine: choose another name")
        if re.fullmatch(ID, name) is None:
            raise _not_understood(f"{name!r} is no name: lower-case letters, digits and dashes were wanted")
        service_address(address, "the address")
        if token_command and token_file is not None:
            raise _not_understood("give either --token-file or --token-command")
        token = typer.prompt("token", hide_input=True, err=True) if str(token_file) == "-" else ""
        made = Context(
            address=address,
            token=token,
            token_file=None if token else _whole(token_file),
            token_command=token_command,
            ca_file=_whole(ca_file),
            client_certificate_file=_whole(client_certificate_file),
            client_key_file=_whole(client_key_file),
        )
        made.current_token()  # a file that cannot be read, or a command that fails, is told now
        if made.tls is not None:
            made.tls.credentials()
        used = name if use else contexts.used
        write(Contexts(by_name={**contexts.by_name, name: made}, used=used))
        output.line(f"{'uses' if used == name else 'added'} {name}")


@app.command("use")
def use_context(context: typer.Context, name: Name) -> None:
    """Use an installation from now on; `local` is the `sihlai up` of this machine.

    Example: sihlai context use local
    """
    with _edited(context) as (output, contexts, write):
        _known(contexts, name)
        write(dataclasses.replace(contexts, used=name))
        output.line(f"uses {name}")


@app.command("remove")
def remove_context(context: typer.Context, name: Name) -> None:
    """Forget an installation and its token.

    Example: sihlai context remove team
    """
    with _edited(context) as (output, contexts, write):
        _known(contexts, name)
        left = {other: found for other, found in contexts.by_name.items() if other != name}
        write(Contexts(by_name=left, used=LOCAL if contexts.used == name else contexts.used))
        output.line(f"removed {name}")


@app.command("list")
def list_contexts(context: typer.Context, as_json: AsJson = False) -> None:
    """List installations; a star marks the one in use. Tokens are not shown.

    Example: sihlai context list
    """
    with _edited(context, as_json=as_json) as (output, contexts, _):
        used = environment(context).get(VARIABLE) or contexts.used
        table = Listing(
            Column(name=""),
            Column(name="context"),
            Column(name="scheduler", breaks=True),
            Column(name="token", goes=1, breaks=True),
        )
        for name, found in {LOCAL: None, **contexts.by_name}.items():
            address = found.address if found else "the `sihlai up` of this machine"
            token = (
                ""
                if found is None
                else str(found.token_file or found.token_command or ("kept" if found.token else "none"))
            )
            if as_json:
                output.json({"context": name, "scheduler": address if found else "", "used": name == used})
            table.add_row("*" if name == used else "", Text(name), Text(address), Text(token))
        if not as_json:
            output.show(table)


@contextmanager
def _edited(context: typer.Context, *, as_json: bool = False) -> Iterator[tuple[Output, Contexts, Write]]:
    """The contexts, and what replaces them."""
    output = Output(as_json=as_json)
    environ: Mapping[str, str] = environment(context)
    with reported(output):
        file = contexts_file(environ)
        yield output, read_contexts(file), lambda contexts: write_contexts(file, contexts)


def _whole(file: Path | None) -> Path | None:
    """The file from wherever one stands."""
    return file.expanduser().resolve() if file is not None else None


def _known(contexts: Contexts, name: str) -> None:
    if name != LOCAL and name not in contexts.by_name:
        known = ", ".join([LOCAL, *contexts.by_name])
        raise NoContextError(f"there is no context {name}: there are {known}")


def _not_understood(message: str) -> CommandError:
    return CommandError(message, exit_code=EXIT_NOT_UNDERSTOOD)
