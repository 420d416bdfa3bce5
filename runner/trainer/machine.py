"""What the trainer may take of its machine: cores for its loader, memory for decoded images."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from services.chassis.machine import CGROUP, cores, keep_memory

HEAP_BYTES = 2**30
"""Of memory that a step gives back so much is kept for the next one."""


def keep_memory_of_steps() -> None:
    """Let each step use the memory of the one before: of changing large pictures on the CPU a third was page faults."""
    keep_memory(kept_bytes=HEAP_BYTES, array_bytes_max=HEAP_BYTES)


def loader_threads(wanted: int | None, device: torch.device) -> int:
    """Threads that prepare batches. Beside a GPU the cores have nothing else to do; a CPU computes the model too."""
    if wanted is not None:
        return wanted
    return 1 if device.type == "cpu" else max(1, cores() - 1)


def free_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be taken without anything else having to go, as far as a container's limit lets one."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return int(free)
    return int(free) if limit == "max" else min(int(free), max(0, int(limit) - used))
