"""What the service holds in memory while somebody does too much; `make chaos-metrics` does more of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.metrics import HOARDS, Campaign
from tests.chaos.round import Kind


@pytest.mark.parametrize("kind", HOARDS, ids=lambda kind: kind.name)
def test_memory_stays_under_its_bound(kind: Kind, tmp_path: Path) -> None:
    (outcome,) = Campaign(seed=1, folder=tmp_path, brief=True).run([(kind, [0])])
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.rounds == 1
    assert outcome.figures
    assert outcome.findings == 0, "the output tells them"
