"""The tree of commands. A command's module is imported when it is called: help for all costs no more than this."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

EXITS = (
    "Exit codes: 0 done; 1 refused or failed; 2 not understood; 3 a service does not answer; 4 the job that was "
    "followed or waited for failed; 130 ended by Ctrl-C; 141 whoever read the output has gone."
)
PLACES = {
    "up": ("command.up:up", "Start everything on this machine, and stop it in order with Ctrl-C"),
    "down": ("command.background:down", "Stop the `sihlai up` of this machine in order"),
    "ps": ("command.background:show_processes", "Show the processes of the `sihlai up` of this machine."),
    "status": ("command.status:show_status", "Show what runs, what waits, and who trains, on one screen."),
    "top": ("command.status:show_top", "Show the same as `status`, drawn over again and again, until Ctrl-C."),
    "project": ("command.project:app", "What a team trains on: a dataset, described once."),
    "dataset": (
        "command.dataset.commands:app",
        "Datasets: looked into, validated, converted",
    ),
    "job": ("command.job:app", "Trainings: submitted, watched, stopped, resumed."),
    "token": ("command.token:app", "Who may do what: every call carries a token."),
    "runner": ("command.runner:app", "The machines that train, and parts of them."),
    "logs": ("command.log:show_logs", "Show a job's log."),
    "metrics": ("command.metric:app", "Series of jobs: shown, watched live, compared, exported."),
    "checkpoint": ("command.checkpoint:app", "Models of jobs: listed, downloaded."),
    "model": ("command.model:app", "Models of jobs: exported for other programs."),
    "predict": ("command.predict:predict_images", "Say what a model sees on images"),
    "api": ("command.api:call_api", "Call any method of the services and write its answers as data, a line each."),
    "context": ("command.context:app", "Installations by name: added, used, listed."),
    "version": ("command.version:show_versions", "Show the version of this command and of each service."),
    "demo": ("demo.run:run_demo", "Start everything, train on handwritten digits, stop, resume, compare"),
}
"""By name: where the command stands below services.cli, and a line about it."""


OURS = frozenset({"services", "runner", "sihlai"})


class LazyGroup(TyperGroup):
    """Knows its commands by their line of help, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, imported."""
        if args and args[0] in PLACES:
            try:
                self.commands[args[0]] = _loaded(args[0])
                _hide_types_of_flags(self.commands[args[0]], ctx)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] in OURS:
                    raise
                ctx.fail(f"`sihlai {args[0]}` needs {error.name}, which is not installed: pip install 'sihlai[up]'")
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> Any:
        """Its options; of flags without a type."""
        return _hide_types(super().get_params(ctx))


app = typer.Typer(
    name="sihlai",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trains computer-vision models: projects, jobs, live metrics and logs.\n\n"
    "Names may be short: digits/first is projects/digits/jobs/first. The installation is said by --context, by "
    "--scheduler, by SIHLAI_CONTEXT or SIHLAI_SCHEDULER_ADDRESS, is the one in use (`sihlai context use`), or the "
    "`sihlai up` of this machine.\n\n" + EXITS,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sihlai {version('sihlai')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version of this command.")
    ] = False,
) -> None: ...


def _named(line: str) -> Callable[[], None]:
    def stands_for_it() -> None: ...

    stands_for_it.__doc__ = line
    return stands_for_it


for _name, (_, _line) in PLACES.items():
    app.command(_name)(_named(_line))


def _loaded(name: str) -> Any:
    """The real command."""
    module, _, attribute = PLACES[name][0].partition(":")
    found = getattr(import_module(f"services.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        holder = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        holder.command(name)(found)
        return typer.main.get_command(holder)
    group = typer.main.get_group(found)
    group.name = name
    return group


def _hide_types_of_flags(command: Any, parent: Any) -> None:
    """A flag takes no value: help must not say `<bool>` of it."""
    context = typer.Context(command, info_name=command.name, parent=parent)
    _hide_types(command.get_params(context))
    for each in getattr(command, "commands", {}).values():
        _hide_types_of_flags(each, context)


def _hide_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
