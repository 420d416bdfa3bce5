"""A session with every command: each stands in the transcript, and ends there as it should."""

from __future__ import annotations

from pathlib import Path

from tests.cli.home import Home
from tests.cli.test_examples import all_leaves
from tests.cli.transcript import STORY, session, write_home

LINES = [line for chapter in STORY for line in chapter.lines]


def test_every_command_is_typed_in_the_session() -> None:
    typed = " ".join(f"{line.command} " for line in LINES)
    assert [name for name, _ in all_leaves() if f"sihlai {name} " not in typed] == []
    assert "sihlai --show-completion " in typed


def test_each_command_of_the_session_ends_as_it_should_and_shows_nothing_of_this_machine(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_home(home.folder)
    told = [each for _, found in session(home) for each in found]
    wrong = [(each.line.command, each.exit_code, each.text) for each in told if each.exit_code != each.line.exit_code]
    assert wrong == []
    assert [each.line for each in told] == LINES
    for each in told:
        assert "Traceback" not in each.text
        assert str(tmp_path) not in each.text
        assert each.text, f"{each.line.command}: a command that says nothing leaves its user wondering"
