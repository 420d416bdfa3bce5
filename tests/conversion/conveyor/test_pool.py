from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
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


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until_gone(pids: set[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.005)  # what is waited for has no event


def test_no_worker_starts_before_there_is_work_and_none_stays_after() -> None:
    before = children()
    with WorkerPool(2) as pool:
        assert children() <= before
        worker = pool.submit(os.getpid).result(60)
        assert worker in children() - before
    until_gone({worker})


def test_a_worker_that_dies_fails_its_call_and_the_next_one_gets_new_workers() -> None:
    with WorkerPool(1) as pool:
        first = pool.submit(os.getpid).result(60)
        with pytest.raises(BrokenProcessPool):
            pool.submit(os.kill, first, signal.SIGKILL).result(60)
        assert pool.submit(os.getpid).result(60) != first


def begin_an_answer_and_die() -> None:
    """As when memory runs out while it is written: what the pipe gets says that a thousand bytes follow."""
    (pipe,) = (each for each in gc.get_objects() if isinstance(each, Connection))
    os.write(pipe.fileno(), struct.pack("!i", 1_000) + b"the first of them")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_it_writes_its_answer_takes_nothing_else_along() -> None:
    with WorkerPool(2) as pool:
        other = pool.submit(time.sleep, 2.0)
        with pytest.raises(BrokenProcessPool, match="exit code -9"):
            pool.submit(begin_an_answer_and_die).result(60)
        other.result(60)
        assert pool.submit(os.getpid).result(60) > 0


def failing() -> None:
    raise ValueError("of the work")


def giving_what_cannot_be_sent() -> object:
    return threading.Lock()


def failing_with_what_cannot_be_sent() -> None:
    raise ValueError(threading.Lock())


def test_what_the_work_raises_comes_with_the_place_where_it_did() -> None:
    with WorkerPool(1) as pool:
        worker = pool.submit(os.getpid).result(60)
        with pytest.raises(ValueError, match="of the work") as caught:
            pool.submit(failing).result(60)
        assert "in failing" in caught.value.__notes__[0]
        with pytest.raises(TypeError, match="pickle"):
            pool.submit(giving_what_cannot_be_sent).result(60)
        with pytest.raises(RuntimeError, match=r"ValueError: .*lock"):
            pool.submit(failing_with_what_cannot_be_sent).result(60)
        assert pool.submit(os.getpid).result(60) == worker


def test_a_pool_that_ends_waits_for_what_runs_and_drops_the_rest_where_it_is_told_to() -> None:
    before = children()
    with WorkerPool(1) as pool:
        running = pool.submit(time.sleep, 0.5)
        while not running.running():
            time.sleep(0.005)  # what is waited for has no event
        waiting = pool.submit(os.getpid)
        pool.shutdown(wait=False, cancel_futures=True)
        assert waiting.cancelled()
        running.result(60)
    until_gone(children() - before)


def test_workers_outlive_the_threads_that_gave_them_work() -> None:
    with WorkerPool(1) as pool:
        with ThreadPoolExecutor(1) as executor:
            worker = executor.submit(lambda: pool.submit(os.getpid).result(60)).result(60)
        time.sleep(0.2)  # a process dies with the thread that started it, at once
        assert pool.submit(os.getpid).result(60) == worker


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
