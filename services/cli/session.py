"""One command: its shared options, the services that it talks to, how it speaks, and how it ends.

`command` turns an async function over a Session into a command of typer. An error at the terminal is one sentence on
standard error, with a list where several fields are wrong; there is never a stack trace, except for our own mistakes.

Exit codes: 0 done; 1 refused or failed (for `--follow`: the job failed); 2 not understood (typer's own too); 3 a
service does not answer; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import grpc
import typer
from rich.markup import escape

from services.chassis.errors import DeadlineExceeded, InvalidArgument, Reason, SihlaiError, Unavailable
from services.chassis.rpc import error_from_rpc
from services.cli.endpoints import Endpoints, NoEndpointError, Services, resolve
from services.cli.folder import SERVICES, FolderInUseError
from services.cli.name import NameFormatError
from services.cli.output import Output
from services.cli.specification import SpecificationError
from services.cli.supervisor import StackError

EXIT_FAILED = 1
EXIT_NOT_UNDERSTOOD = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

AS_TYPED = {
    "ValidateDataset tells all": "`sihlai dataset validate` tells all",
    "copy_images: is off": "--copy-images is off",
    "split: is ": "--split is ",
    "(copy_images)": "(--copy-images)",
    "with `lenient`": "with --lenient",
    "the folders that the configuration allows (": "the folders that the configuration allows, --allow-root adds one (",
}
"""What services call by the names of their RPCs and fields, as a person types it."""

P = ParamSpec("P")


class CommandError(Exception):
    """A command cannot be done; the message is one sentence for a person."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command works with."""

    services: Services
    output: Output
    environ: Mapping[str, str]
    """The environment as `__main__` passed it on."""


SHARED: Mapping[str, Any] = {
    "context": typer.Context,
    "scheduler": Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The scheduler's address.", rich_help_panel="Where the services are"),
    ],
    "metrics": Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The address of metrics.", rich_help_panel="Where the services are"),
    ],
    "conversion": Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The address of conversion.", rich_help_panel="Where the services are"),
    ],
    "data": Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The data folder of the `sihlai up` to talk to.",
            rich_help_panel="Where the services are",
        ),
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="JSON for programs: one object, or one a line.")],
}
"""The options of every command that talks to services, by parameter."""


def command(function: Callable[Concatenate[Session, P], Awaitable[None]]) -> Callable[..., None]:
    """The function as a command: without its first parameter, with the shared options."""
    signature = inspect.signature(function, eval_str=True)
    act: Callable[..., Awaitable[None]] = function
    own = list(signature.parameters.values())[1:]
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if name == "context" else False if name == "as_json" else None,
        )
        for name, annotation in SHARED.items()
    ]

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in SHARED}
        output = Output(as_json=options["as_json"])
        environ = environment(options["context"])

        async def with_services() -> None:
            flags = {service: options[service] for service in SERVICES}
            endpoints = resolve(flags=flags, data=options["data"], environ=environ)
            async with Services(endpoints) as services:
                try:
                    await act(Session(services=services, output=output, environ=environ), **arguments)
                except (grpc.RpcError, BaseExceptionGroup) as error:
                    first = _first(error)
                    known = _known(error_from_rpc(first), endpoints) if isinstance(first, grpc.RpcError) else first
                    raise known from error

        with reported(output):
            asyncio.run(with_services())

    # typer reads both; functools.wraps has set them to those of the function.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def environment(context: typer.Context) -> Mapping[str, str]:
    """The environment as `__main__` passed it on."""
    environ: Mapping[str, str] = context.obj or {}
    return environ


@contextlib.contextmanager
def reported(output: Output) -> Iterator[None]:
    """Turn what a command raises into a sentence and an exit code. Our own mistakes pass, with their stack trace."""
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        exit_code = _reported_exit_code(output, _first(error))
        if exit_code is None:
            raise
        raise typer.Exit(exit_code) from None


def _reported_exit_code(output: Output, error: BaseException) -> int | None:
    """Say what happened; return the exit code, or None for what has no sentence."""
    match error:
        case KeyboardInterrupt() | asyncio.CancelledError():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            # Who read our output has gone, as `head` does. Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILED
        case grpc.RpcError():
            return _report(output, error_from_rpc(error))
        case SihlaiError():
            return _report(output, error)
        case CommandError():
            return _say(output, str(error), error.exit_code)
        case NameFormatError() | SpecificationError():
            return _say(output, str(error), EXIT_NOT_UNDERSTOOD)
        case FolderInUseError() | StackError():
            return _say(output, str(error), EXIT_FAILED)
        case NoEndpointError():
            return _say(output, str(error), EXIT_UNREACHABLE)
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return _say(output, f"{place}{error.strerror or error}", EXIT_FAILED)
        case _:
            return None


def _first(error: BaseException) -> BaseException:
    """The first of what several tasks raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _known(error: SihlaiError, endpoints: Endpoints) -> SihlaiError | CommandError:
    """The error, or which service cannot be reached where gRPC itself says so, in words that help nobody."""
    if not isinstance(error, Unavailable) or error.reason is not Reason.SERVICE_UNAVAILABLE or error.metadata:
        return error
    places = [f"{service} at {address}" for service, address in endpoints.addresses.items() if address]
    away = [place for place in places if place.rpartition(" ")[2] in error.message] or places
    return CommandError(
        f"no answer from {', '.join(away)}: is it running? `sihlai up` starts everything on this machine",
        exit_code=EXIT_UNREACHABLE,
    )


def _report(output: Output, error: SihlaiError) -> int:
    """Say what a service answered; return the exit code."""
    exit_code = EXIT_UNREACHABLE if isinstance(error, (Unavailable, DeadlineExceeded)) else EXIT_FAILED
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    if output.as_json:
        return _say_json(output, error, exit_code)
    if len(violations) < 2:
        message = error.message
        for words, typed in AS_TYPED.items():
            message = message.replace(words, typed)
        return _say(output, message, exit_code)
    _say(output, f"{len(violations)} fields are wrong:", exit_code)
    for violation in violations:
        output.errors.print(f"  {violation.field}: {violation.description}", markup=False)
    return exit_code


def _say(output: Output, message: str, exit_code: int) -> int:
    if output.as_json:
        output.errors.print_json(data={"error": {"message": message}}, indent=None)
    else:
        output.errors.print(f"[red]error:[/red] {escape(message)}")
    return exit_code


def _say_json(output: Output, error: SihlaiError, exit_code: int) -> int:
    described: dict[str, Any] = {
        "reason": error.reason.value,
        "message": error.message,
        "metadata": dict(error.metadata),
    }
    if isinstance(error, InvalidArgument):
        described["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    output.errors.print_json(data={"error": described}, indent=None)
    return exit_code
