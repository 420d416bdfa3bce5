"""How many threads and how much memory a trainer takes."""

from pathlib import Path

import psutil
import torch

from runner.trainer.machine import free_memory_bytes, loader_threads
from services.chassis.machine import cores


def test_what_is_asked_for_is_taken_and_beside_a_gpu_the_cores_are_free() -> None:
    assert loader_threads(0, torch.device("cuda")) == 0
    assert loader_threads(7, torch.device("cpu")) == 7
    assert loader_threads(None, torch.device("cpu")) == 1
    assert loader_threads(None, torch.device("cuda")) == max(1, cores() - 1)


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path) -> None:
    assert 0 < free_memory_bytes(tmp_path / "none") <= psutil.virtual_memory().total
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert free_memory_bytes(tmp_path) == 7_000
    (tmp_path / "memory.current").write_text("30000\n")
    assert free_memory_bytes(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) > 10_000
