"""Trainers for the agent's tests: real processes that speak runner/report.py."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runner.agent.scripted_trainer import TRAINER_HEAD
from tests.runner.agent.system import System


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[[str], list[str]]:
    """Writes a trainer that speaks runner/report.py and does what the given lines say; its command."""

    def make(body: str) -> list[str]:
        path = tmp_path / "trainer.py"
        path.write_text(TRAINER_HEAD + body)
        return [sys.executable, str(path)]

    return make


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Conversion, scheduler and metrics, each a process of its own."""
    system = System(folder=tmp_path_factory.mktemp("system"))
    try:
        system.start()
        yield system
    finally:
        system.stop()
