"""Half a minute of fuzzing, split over the readers: nothing but our errors comes out, in bounded time and memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.campaign import run
from tests.fuzz.case import case_from_bytes, case_to_bytes
from tests.fuzz.mutation import mutated
from tests.fuzz.target import TARGETS, signature

SECONDS = 3.0
"""For each of the targets."""
EXECUTIONS_MIN = 20
"""Less than a hundredth of what it does on a machine that has nothing else to do."""
PEAK_MB_MAX = 400


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_file_holds_only_findings_and_our_errors_come_out(name: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    (outcome,) = run([name], seconds=SECONDS, seed=seed, folder=tmp_path, workers=1)
    print(f"seed {seed}: {outcome.figures}")
    assert outcome.problems == []
    assert outcome.figures["executions"] > EXECUTIONS_MIN
    assert outcome.figures["peak_mb"] < PEAK_MB_MAX


@pytest.mark.parametrize("name", TARGETS)
def test_every_valid_file_is_read_and_every_change_to_it_is_another_file(name: str) -> None:
    target, source = TARGETS[name], random.Random(1)
    seeds = list(target.seeds())
    for case in seeds:
        assert signature(target, case)
        assert case_from_bytes(case_to_bytes(case)) == case
    changed = [mutated(source.choice(seeds), seeds, source) for _ in range(200)]
    assert sum(case not in seeds for case in changed) > 100
