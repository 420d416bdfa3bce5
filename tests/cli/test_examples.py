"""Each command's help has an example, and each is run as it stands there, in the home of somebody who has such data.

A machine of processes and trainings take the time. What an example needs, such as a job that has ended, is made before
it by the lines that `AFTER` names, most of them examples themselves. Those that stand in the transcript's session are
run there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from services.cli.commands import PLACES, _loaded, app
from tests.cli.conftest import CREATE, UP
from tests.cli.home import Home, plain
from tests.cli.transcript import STORY

CREATE_TOKEN = "sihlai token create ada --role digits=editor --days 90"

TOLD = {line.command for chapter in STORY for line in chapter.lines}
"""What tests/cli/test_transcript.py runs, as it stands there."""
NOT_RUN = {
    "sihlai up": "stays until Ctrl-C: a test of its own below",
    "sihlai demo --keep": "takes minutes (`make demo`): its first job is run by a test of its own below",
}
"""Examples that are not run like the others, and why."""
ENDLESS = {"sihlai job watch"}
"""What goes on until Ctrl-C."""
SILENT = {"sihlai logs @last -f --level warning"}
"""What may have nothing to say: no line was so grave."""
AFTER = {"sihlai token revoke 4f0c4e2b5d6a4c7e9a1b2c3d4e5f6a7b": [CREATE_TOKEN]}
"""Lines that must have been asked before."""
INSTEAD = {
    "sihlai context add team gpu-farm:50051 --token-file ~/team.token --use": (" --use", ""),
    "sihlai runner drain gpu-1": ("gpu-1", "local-2"),
    "sihlai runner undrain gpu-1": ("gpu-1", "local-2"),
}
"""What something else stands for here, as others use the same home."""

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


@pytest.mark.parametrize("example", [example for example in ALL if example not in TOLD | {*NOT_RUN}])
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


def test_an_up_at_a_terminal_says_how_to_go_on_and_stops_in_order_with_ctrl_c(tmp_path: Path) -> None:
    shown, exit_code = Home(tmp_path).on_terminal("sihlai up", columns=100, until="sihlai metrics watch digits/first")
    assert exit_code == 0, shown
    told = plain(shown)
    for words in ("go on in another terminal", "stopping in order", "nats stopped"):
        assert words in told, told


def test_a_demo_trains_its_first_job_and_leaves_nothing_behind_after_ctrl_c(tmp_path: Path) -> None:
    home = Home(tmp_path)
    shown, exit_code = home.on_terminal(
        "sihlai demo --keep", columns=100, until="A second job with other settings", TMPDIR=str(tmp_path)
    )
    told = plain(shown)
    assert exit_code == 130, told
    assert "reached iterations_max after step 300" in told, told
    assert not list(tmp_path.glob("sihlai-demo-*")), "the processes have ended, and their folder is gone"


def only_token(home: Home) -> str:
    """The token that was made."""
    return home.ask("sihlai token list -o name | head -1").stdout.strip()


def test_what_is_not_run_or_needs_others_is_an_example_still() -> None:
    assert {*NOT_RUN, *ENDLESS, *SILENT, *AFTER, *INSTEAD} <= set(ALL) - TOLD
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
