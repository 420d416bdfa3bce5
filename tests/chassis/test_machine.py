"""Cores as far as a container lets one, and memory that is kept."""

import subprocess
import sys
from pathlib import Path

from services.chassis.machine import cores

FAULTS = """
import resource, sys
from services.chassis.machine import keep_memory
if sys.argv[1] == "kept":
    keep_memory(kept_bytes=256 * 2**20, array_bytes_max=256 * 2**20)
import numpy
numpy.ones(4 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    numpy.ones(4 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_containers_share_of_the_cores_counts_where_it_is_lower(tmp_path: Path) -> None:
    there = cores(tmp_path / "none")
    assert there >= 1
    for content, wanted in (
        ("max 100000\n", there),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("900000000 100000\n", there),
        ("150000 100000\n", min(2, there)),
        ("nonsense\n", there),
        ("1 0\n", there),
    ):
        (tmp_path / "cpu.max").write_text(content)
        assert cores(tmp_path) == wanted, content


def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    kept, handed_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "handed back")
    )
    assert kept < handed_back / 5
