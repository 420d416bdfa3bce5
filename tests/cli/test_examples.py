"""Each command's help has an example, and each example is understood: its words, its options, its values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from services.cli.commands import PLACES, _loaded, app

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
