"""What a server process has used: processor time and memory; and others that take the processor away."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.chassis.leash import on_leash
from tests.metrics.client import Metrics, until

CALM_SECONDS = 3.0
SAMPLE_SECONDS = 0.05
QUERIES = 60


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one call among many."""

    p50: float
    p99: float
    cpu_seconds: float


def measured(server: Metrics, call: Callable[[int], object], *, queries: int = QUERIES) -> Measured:
    """Call so many times, one after the other."""
    seconds = []
    call(0)
    cpu = cpu_seconds(server)
    for turn in range(queries):
        began = time.perf_counter()
        call(turn)
        seconds.append(time.perf_counter() - began)
    return Measured(
        p50=statistics.median(seconds),
        p99=float(np.quantile(seconds, 0.99)),
        cpu_seconds=(cpu_seconds(server) - cpu) / queries,
    )


def wait_calm(server: Metrics) -> None:
    """Wait until ClickHouse has put together what was written: queries are measured on an idle server."""
    used = [(time.monotonic(), cpu_seconds(server))]

    def is_calm() -> bool:
        now = time.monotonic()
        if now - used[-1][0] < CALM_SECONDS:
            return False
        used.append((now, cpu_seconds(server)))
        return used[-1][1] - used[-2][1] < 0.1 * CALM_SECONDS

    until(is_calm, "the server to be idle", 120)


def cpu_seconds(server: Metrics) -> float:
    """Processor time that the server process has used so far."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_bytes(server: Metrics) -> int:
    """What the server process holds in memory."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def peak_memory(server: Metrics) -> Iterator[list[int]]:
    """The highest that was seen, in bytes, once the context has ended."""
    highest = [memory_bytes(server)]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            highest[0] = max(highest[0], memory_bytes(server))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()


@contextmanager
def half_the_processor() -> Iterator[None]:
    """Every second core is busy with something else."""
    busy = [
        subprocess.Popen(on_leash([sys.executable, "-c", "while True: pass"]))
        for _ in range(max(1, (os.cpu_count() or 2) // 2))
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
