"""Processes that read and write maps, behind concurrent.futures.Executor, so that a cluster's can take their place.

None is started before it is needed, none outlives the service, however that ends, and none knows a dataset: it gets
bytes and gives bytes. A worker that dies takes the calls that ran with it; the next call gets new workers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from services.chassis.leash import hold
from services.chassis.machine import keep_memory

HEAP_KEPT_BYTES = 256 * 2**20
"""A worker gives back what it has unused above this."""
HEAP_ARRAY_BYTES_MAX = 32 * 2**20
"""Larger arrays are the kernel's at once."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class WorkerPool(Executor):
    """At most `workers_max` processes. Submit from a thread that lives as long as they are to live."""

    def __init__(self, workers_max: int) -> None:
        self._workers_max = workers_max
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    @property
    def workers_max(self) -> int:
        """Chunks that are worked on at once."""
        return self._workers_max

    def submit(
        self, function: Callable[Parameters, Result], /, *arguments: Parameters.args, **keywords: Parameters.kwargs
    ) -> Future[Result]:
        """As Executor says. The future raises BrokenProcessPool where its worker died."""
        with self._lock:
            if self._pool is not None:
                try:
                    return self._pool.submit(function, *arguments, **keywords)
                except BrokenProcessPool:  # by an earlier call, which knows
                    self._pool.shutdown(wait=False)
            self._pool = self._start()
            return self._pool.submit(function, *arguments, **keywords)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor says."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait, cancel_futures=cancel_futures)
                self._pool = None

    def _start(self) -> ProcessPoolExecutor:
        # Not forked: gRPC and obstore have threads, and a fork would take their locks along.
        return ProcessPoolExecutor(
            self._workers_max, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )


def one_worker() -> WorkerPool:
    """A pool of one process, for work that nothing else may die with."""
    return WorkerPool(1)


def _begin(starter: int) -> None:
    """In a new worker: it dies with its starter, and only then. A terminal's Ctrl-C goes to the whole group."""
    hold(starter)
    # Every image takes and gives back the same megabytes.
    keep_memory(kept_bytes=HEAP_KEPT_BYTES, array_bytes_max=HEAP_ARRAY_BYTES_MAX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
