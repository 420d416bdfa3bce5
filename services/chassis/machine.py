"""What a process may take of its machine: how many cores, and how Python and the C library keep memory for it."""

from __future__ import annotations

import ctypes
import gc
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of malloc.h."""
ARRAY_BYTES_SURE = 32 * 2**20
"""The largest M_MMAP_THRESHOLD that every glibc takes."""


def cores(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use, as far as a container's limit lets one; at least one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        allowed = math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return there
    return there if there <= allowed else max(1, math.ceil(allowed))


def keep_memory(*, kept_bytes: int, array_bytes_max: int) -> None:
    """Let the C library keep what arrays give back, instead of handing it to the kernel and asking for it again.

    Work that takes and gives back the same megabytes again and again spends half of its time in the kernel's page
    faults otherwise. What is unused above `kept_bytes` is given back all the same; arrays larger than `array_bytes_max`
    are the kernel's at once. Each at most 2 GiB - 1. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_TRIM_THRESHOLD, kept_bytes)
    if not mallopt(M_MMAP_THRESHOLD, array_bytes_max):
        mallopt(M_MMAP_THRESHOLD, min(array_bytes_max, ARRAY_BYTES_SURE))


def collect_seldom(*thresholds: int) -> None:
    """Let Python look for garbage in cycles seldom, as gc.set_threshold has it, and never among what is there now: the
    modules and all that a service is made of, which a full collection would go through each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
