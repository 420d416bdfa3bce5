"""Each command's help has an example, and each is run as it stands there, in the home of somebody who has such data.

A machine of processes and trainings take the time. What an example needs, such as a job that has ended, is made before
it by the lines that `AFTER` names, most of them examples themselves.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from services.cli.commands import PLACES, _loaded, app
from tests.cli.conftest import CREATE, UP
from tests.cli.home import Home

ADD_TEAM = "sihlai context add team gpu-farm:50051 --token-file ~/team.token --use"
CREATE_TOKEN = "sihlai token create ada --role digits=editor --days 90"
LOOSE = "sihlai project create loose --training ~/data/digits"
LONG = "sihlai job submit loose/long spec.yaml --iterations 1000000"

NOT_RUN = {
    "sihlai up": "stays until Ctrl-C: tests/cli/test_supervisor.py; `up -d` runs the same",
    "sihlai down": "is what the machine of these tests ends with",
    "sihlai demo --keep": "trains for minutes: `make demo`",
    "sihlai top --seconds 5": "wants a terminal: tests/cli/test_terminals.py",
    "sihlai job submit digits/first --task multiclass-classification --backbone tiny --resolution 16": "trains 10,000 "
    "steps: tests/cli/test_commands.py submits like this with --iterations",
    "sihlai job submit digits spec.yaml --iterations 500 --follow": "trains for half a minute: the first job of "
    "the machine is submitted like this",
    "sihlai job resume digits/first --set trainer.iterations_max=2000 --follow": "trains for a minute: the second "
    "job of the machine is resumed like this",
    "sihlai job evaluate digits/first/best --dataset ~/data/harder --follow": "tests/cli/test_commands.py runs it",
    "sihlai model export digits/first/best --format onnx": "half a minute of torch: tests/runner exports",
    "sihlai predict digits/first/best photos --draw seen": "imports torch: tests/cli/test_commands.py runs it",
}
"""Examples that are only parsed, and why."""
ENDLESS = {"sihlai job watch", "sihlai job watch digits"}
"""What goes on until Ctrl-C."""
SILENT = {"sihlai logs @last -f --level warning"}
"""What may have nothing to say: no line was so grave."""
AFTER = {
    "sihlai context remove team": [ADD_TEAM],
    "sihlai context use local": [ADD_TEAM],
    "sihlai job stop digits/first --grace 60 --follow": [LOOSE, LONG],
    "sihlai project delete digits --yes": ["sihlai project create going --training ~/data/digits"],
    "sihlai job delete digits/first --yes": [
        LOOSE,
        "sihlai job submit loose/waits spec.yaml --set resources.gpus=1 && sihlai job stop loose/waits",
    ],
    "sihlai token revoke 4f0c4e2b5d6a4c7e9a1b2c3d4e5f6a7b": [CREATE_TOKEN],
}
"""Lines that must have been asked before."""
INSTEAD = {
    "sihlai job stop digits/first --grace 60 --follow": ("digits/first", "loose/long"),
    "sihlai job delete digits/first --yes": ("digits/first", "loose/waits"),
    "sihlai project delete digits --yes": ("delete digits", "delete going"),
    "sihlai runner drain gpu-1": ("gpu-1", "local-2"),
    "sihlai runner undrain gpu-1": ("gpu-1", "local-2"),
}
"""Names that another one stands for here: what other tests need is not deleted."""

EXAMPLE = re.compile(r"Examples?: (.*)\Z", re.DOTALL)


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command, or those below it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for each, found in below.items():
        yield from leaves(f"{name} {each}", found)


def all_leaves() -> list[tuple[str, Any]]:
    return [leaf for name in PLACES for leaf in leaves(name, _loaded(name))]


def examples(command: Any) -> list[str]:
    found = EXAMPLE.search(command.help or "")
    return [" ".join(text.split()) for text in found[1].split(";")] if found else []


@pytest.mark.parametrize(("name", "command"), all_leaves(), ids=[name for name, _ in all_leaves()])
def test_each_command_has_an_example_of_itself_that_is_understood(name: str, command: Any) -> None:
    found = examples(command)
    assert found, f"`sihlai {name} --help` shows no example"
    for example in found:
        words = shlex.split(example)
        assert " ".join(words[: 1 + len(name.split())]) == f"sihlai {name}", example
        understood(words[1:])


ALL = [example for _, command in all_leaves() for example in examples(command)]


@pytest.mark.parametrize("example", [example for example in ALL if example not in NOT_RUN])
def test_an_example_does_what_it_says_without_an_error(home: Home, example: str) -> None:
    for line in AFTER.get(example, ()):
        before = home.ask_once(line)
        assert before.returncode == 0, f"{line}: {before.stderr}"
    line = example.replace(*INSTEAD.get(example, ("", "")))
    if CREATE_TOKEN in AFTER.get(example, ()):
        line = f"{line.rpartition(' ')[0]} {only_token(home)}"
    if example in ENDLESS:
        said, exit_code = home.until_first_line(line)
        assert ("digits/" in said, exit_code) == (True, 130)
        return
    told = home.ask_once(line)
    assert told.returncode == 0, told.stderr
    assert "Traceback" not in told.stderr
    assert told.stdout or told.stderr or example in SILENT, "a command that says nothing leaves its user wondering"


def only_token(home: Home) -> str:
    """The token that was made."""
    return home.ask("sihlai token list -o name | head -1").stdout.strip()


def test_what_is_not_run_or_needs_others_is_an_example_still() -> None:
    assert {*NOT_RUN, *ENDLESS, *SILENT, *AFTER, *INSTEAD} <= set(ALL)
    assert {UP, CREATE} <= set(ALL), "the machine itself begins as the help says"


@pytest.mark.parametrize(("name", "command"), all_leaves(), ids=[name for name, _ in all_leaves()])
def test_no_two_options_of_a_command_are_written_alike(name: str, command: Any) -> None:
    """A command's own option would take the place of a shared one, such as --output, without a word."""
    written = [word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)]
    assert sorted(set(written)) == sorted(written), name


def understood(words: list[str]) -> None:
    """Parse the words as the command does; raises what the command would tell."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("sihlai", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
