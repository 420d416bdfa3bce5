from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from services.conversion.conveyor.pool import WorkerPool

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, sys, time
from services.conversion.conveyor.pool import WorkerPool
if __name__ == "__main__":
    pool = WorkerPool(2)
    print(*{each.result() for each in [pool.submit(os.getpid), pool.submit(os.getpid)]}, flush=True)
    futures = [pool.submit(time.sleep, 600) for _ in range(2)]
    time.sleep(600)
"""


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def until_gone(pids: set[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while alive := {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.005)  # what is waited for has no event


def test_no_worker_starts_before_there_is_work_and_none_stays_after() -> None:
    before = children()
    with WorkerPool(2) as pool:
        assert children() == before
        worker = pool.submit(os.getpid).result(60)
        assert worker in children() - before
    until_gone({worker})


def test_a_worker_that_dies_fails_its_call_and_the_next_one_gets_new_workers() -> None:
    with WorkerPool(1) as pool:
        first = pool.submit(os.getpid).result(60)
        with pytest.raises(BrokenProcessPool):
            pool.submit(os.kill, first, signal.SIGKILL).result(60)
        assert pool.submit(os.getpid).result(60) != first


def test_workers_die_with_a_service_that_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        workers = {int(pid) for pid in process.stdout.readline().split()}
        workers |= {child.pid for child in psutil.Process(process.pid).children()}
        assert workers
        process.kill()
        process.wait(20)
        until_gone(workers)
    finally:
        process.kill()
        process.communicate()
