"""A round of each kind, with less of everything; `make chaos-metrics` plays many, and whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.metrics import DISASTERS, Campaign
from tests.chaos.round import Kind


@pytest.mark.parametrize("kind", DISASTERS, ids=lambda kind: kind.name)
def test_nothing_acknowledged_is_lost_doubled_or_out_of_order(kind: Kind, tmp_path: Path) -> None:
    (outcome,) = Campaign(seed=1, folder=tmp_path, brief=True).run([(kind, [0])])
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.rounds == 1
    assert outcome.figures
    assert outcome.findings == 0, "the output tells them"
