"""One command: its shared options, the services that it talks to, how it speaks, and how it ends.

`command` turns an async function over a Session into a command of typer. An error at the terminal is one sentence on
standard error, with a list where several fields are wrong; there is never a stack trace, except for our own mistakes.

Exit codes: 0 done; 1 refused or failed; 2 not understood (typer's own too); 3 a service does not answer; 4 the job that
was followed or waited for failed; 130 ended by Ctrl-C; 141 whoever read the output has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from services.chassis.context import NoContextError
from services.chassis.endpoints import SERVICES, Endpoints, NoEndpointError, resolve
from services.chassis.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidArgument,
    Reason,
    SihlaiError,
    Unavailable,
)
from services.cli import completion
from services.cli.error import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_NOT_UNDERSTOOD,
    EXIT_UNREACHABLE,
    EXIT_UNREAD,
    CommandError,
)
from services.cli.view.output import Format, Output
from services.cli.view.text import safe, shown
from services.client.face import AsyncClient
from services.client.job import JobFailed, listed
from services.client.name import NameFormatError, short
from services.client.specification import SpecificationError

AS_TYPED = {
    "ValidateDataset tells all": "`sihlai dataset validate` tells all",
    "copy_images: is off": "--copy-images is off",
    "split: is ": "--split is ",
    ": say which": ": say which, before the source",
    "(copy_images)": "(--copy-images)",
    "with `lenient`": "with --lenient",
    "the folders that the configuration allows (": "the folders that the configuration allows, --allow-root adds one (",
}
"""What services call by the names of their RPCs and fields, as a person types it."""

LAST_JOB = "@last"
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command works with."""

    client: AsyncClient
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
    "installation": Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="NAME",
            autocompletion=completion.contexts,
            help="The installation, as `sihlai context add` named it; else SIHLAI_CONTEXT, or the one in use.",
            rich_help_panel="Where the services are",
        ),
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
    "output_format": Annotated[
        Format,
        typer.Option(
            "--output",
            "-o",
            metavar="FORMAT",
            help="table, json, or yaml; or, by the items of a list, jsonl, csv or name.",
        ),
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No remarks and no progress.")],
}
"""The options of every command that talks to services, by parameter."""
DEFAULTS: Mapping[str, Any] = {
    "context": inspect.Parameter.empty,
    "as_json": False,
    "output_format": Format.TABLE,
    "quiet": False,
}


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
            default=DEFAULTS.get(name),
        )
        for name, annotation in SHARED.items()
    ]

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in SHARED}
        output = Output(as_json=options["as_json"], format=options["output_format"], quiet=options["quiet"])
        environ = environment(options["context"])

        async def with_services() -> None:
            flags = {service: options[service] for service in SERVICES}
            endpoints = resolve(flags=flags, context=options["installation"], data=options["data"], environ=environ)
            async with AsyncClient(endpoints) as client:
                try:
                    named = {name: await _named(client, value) for name, value in arguments.items()}
                    await act(Session(client=client, output=output, environ=environ), **named)
                except (Unavailable, BaseExceptionGroup) as error:
                    first = first_of(error)
                    raise (_known(first, endpoints) if isinstance(first, Unavailable) else first) from error

        with reported(output):
            asyncio.run(with_services())

    # typer reads both; functools.wraps has set them to those of the function.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


async def _named(client: AsyncClient, value: Any) -> Any:
    """The argument, with the newest job in place of `@last`, or of a project's in place of `digits/@last`."""
    if isinstance(value, list):
        return [await _named(client, each) for each in value]
    if isinstance(value, str):
        value = _text(value)
    if not isinstance(value, str) or (value.partition("/")[0] != LAST_JOB and value.rpartition("/")[2] != LAST_JOB):
        return value
    before, _, after = value.partition(LAST_JOB)
    found = await client.run(listed, before.rstrip("/") or "-", limit=1)
    if not found:
        raise CommandError(f"there is no job yet, so {value} is none")
    return f"{short(found[0].name)}{after}"


def _text(typed: str) -> str:
    """What was typed, in UTF-8 also where the locale knows less. An option of a set of words stays what it is."""
    if typed.isascii():
        return typed
    try:
        return os.fsencode(typed).decode()
    except UnicodeError:
        raise CommandError(
            f"{shown(typed)!r} is no text in UTF-8, or has letters that the locale does not know",
            exit_code=EXIT_NOT_UNDERSTOOD,
        ) from None


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
        exit_code = _reported_exit_code(output, first_of(error))
        if exit_code is None:
            raise
        raise typer.Exit(exit_code) from None


def _reported_exit_code(output: Output, error: BaseException) -> int | None:
    """Say what happened; return the exit code, or None for what has no sentence."""
    match error:
        case KeyboardInterrupt() | asyncio.CancelledError():
            return EXIT_INTERRUPTED
        case typer.Abort() if isinstance(error.__context__, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        case typer.Abort() if isinstance(error.__context__, EOFError):
            return _say(output, "the question has no answer: nobody is there to type it", EXIT_NOT_UNDERSTOOD)
        case BrokenPipeError():
            return EXIT_UNREAD
        case SihlaiError():
            return _report(output, error)
        case CommandError():
            return _say(output, str(error), error.exit_code)
        case NameFormatError() | SpecificationError() | NoContextError() | ConfigurationError():
            return _say(output, str(error), EXIT_NOT_UNDERSTOOD)
        case NoEndpointError():
            return _say(output, str(error), EXIT_UNREACHABLE)
        case JobFailed():
            return _say(output, str(error), EXIT_JOB_FAILED)
        case TimeoutError():
            return _say(output, str(error) or "it took longer than it may: is the machine busy?", EXIT_FAILED)
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return _say(output, f"{place}{error.strerror or error}", EXIT_FAILED)
        case _:
            return None


def first_of(error: BaseException) -> BaseException:
    """The first of what several tasks raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _known(error: Unavailable, endpoints: Endpoints) -> SihlaiError | CommandError:
    """The error, or which service cannot be reached where gRPC itself says so, in words that help nobody."""
    if error.reason is not Reason.SERVICE_UNAVAILABLE or error.metadata:
        return error
    places = [f"{service} at {address}" for service, address in (endpoints.known | dict(endpoints.given)).items()]
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
        output.errors.print(shown(f"  {violation.field}: {violation.description}"), markup=False)
    return exit_code


def _say(output: Output, message: str, exit_code: int) -> int:
    if output.as_json:
        output.errors.print_json(data={"error": {"message": message}}, indent=None)
    else:
        output.errors.print(f"[red]error:[/red] {safe(message)}")
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
