"""A machine that is up in somebody's home, for all tests of a process that want to type commands there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.home import Home, write_datasets

UP = "sihlai up -d --runners 2"
CREATE = "sihlai project create digits --training ~/data/digits"
TRAIN = "sihlai job submit digits/first spec.yaml --name 'squares and bars' --label team=a --follow"
TRAIN_ON = "sihlai job resume digits/first --id second --set trainer.iterations_max=50 --follow"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """With a runner, and nothing in it."""
    home = Home(tmp_path_factory.mktemp("home"))
    write_datasets(home.folder)
    up = home.ask_once(UP)
    assert up.returncode == 0, up.stderr
    try:
        yield home
    finally:
        down = home.ask("sihlai down")
    assert (down.returncode, down.stdout) == (0, "stopped\n"), down.stderr


@pytest.fixture(scope="session")
def home(machine: Home) -> Home:
    """With a project, digits, and two jobs in it that have ended."""
    for line in (CREATE, TRAIN, TRAIN_ON):
        told = machine.ask_once(line)
        assert told.returncode == 0, told.stderr
    return machine
