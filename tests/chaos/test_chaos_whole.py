"""Some seconds of disasters over a whole installation; `make chaos` plays ten minutes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.whole.__main__ import play
from tests.chaos.whole.world import missing

SECONDS = 8.0
JOBS_MAX = 4


def test_no_job_is_lost_no_stop_forgotten_and_every_event_comes_once(tmp_path: Path) -> None:
    if problem := missing():
        pytest.skip(problem)
    outcome = play(tmp_path / "round", seed=2, number=0, seconds=SECONDS, on_postgresql=False, unfinished_max=JOBS_MAX)
    assert outcome.findings == []
    assert outcome.faults.total() >= 1
    assert outcome.jobs.total() >= 1
