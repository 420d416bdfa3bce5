"""Both ways to make buckets, summaries and pages say what a plain model says. SIHLAI_TEST_SERIES=10000 tries more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERIES = int(os.environ.get("SIHLAI_TEST_SERIES", "40"))


@pytest.mark.parametrize("seed", [1, 2])
def test_summaries_buckets_and_points_are_what_a_plain_model_says(tmp_path: Path, seed: int) -> None:
    program = [sys.executable, "-m", "tests.metrics.query.model_program", str(tmp_path), str(SERIES), str(seed)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == f"checked {SERIES} series"
