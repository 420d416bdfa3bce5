"""Processes that read and write maps, behind concurrent.futures.Executor, so that a cluster's can take their place.

None is started before it is needed, none outlives the service, however that ends, and none knows a dataset: it gets
bytes and gives bytes. A worker that dies takes the call along that it ran, and no other; the next call gets a new one.

`concurrent.futures.ProcessPoolExecutor` is not used, as it waits for ever where a worker is killed while it writes an
answer: the pipe is shared by all and open in the service itself, so its end is never seen. Memory runs out at such
moments. Here each worker has a pipe of its own, of which it alone holds the other end.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from services.chassis.leash import hold
from services.chassis.machine import keep_memory

HEAP_KEPT_BYTES = 256 * 2**20
"""A worker gives back what it has unused above this."""
HEAP_ARRAY_BYTES_MAX = 32 * 2**20
"""Larger arrays are the kernel's at once."""

END_SECONDS_MAX = 5.0
"""A worker that has nothing to do ends by itself; after so long it is killed."""
SPAWN = get_context("spawn")
"""Not forked: gRPC and obstore have threads, and a fork would take their locks along."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class WorkerPool(Executor):
    """At most `workers_max` processes, each with a thread that starts it, gives it work and waits: a worker dies with
    the thread that started it.
    """

    def __init__(self, workers_max: int) -> None:
        self._workers_max = workers_max
        self._threads = ThreadPoolExecutor(workers_max, thread_name_prefix="worker")
        self._own = threading.local()
        self._workers: set[_Worker] = set()

    @property
    def workers_max(self) -> int:
        """Chunks that are worked on at once."""
        return self._workers_max

    def submit(
        self, function: Callable[Parameters, Result], /, *arguments: Parameters.args, **keywords: Parameters.kwargs
    ) -> Future[Result]:
        """As Executor says. The future raises BrokenProcessPool where its worker died."""
        return self._threads.submit(self._run, partial(function, *arguments, **keywords))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor says."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            while self._workers:
                self._workers.pop().end()
        else:
            threading.Thread(target=self.shutdown, name="worker-ending", daemon=True).start()

    def _run(self, work: Callable[[], Result]) -> Result:
        """In one of the threads: let its worker do it."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.is_alive:
            self._forget(worker)
            worker = self._own.worker = _Worker()
            self._workers.add(worker)
        try:
            result: Result = worker.run(work)
        except BrokenProcessPool:
            self._own.worker = None
            self._forget(worker)
            raise
        return result

    def _forget(self, worker: _Worker | None) -> None:
        if worker is not None:
            worker.end()
            self._workers.discard(worker)


class _Worker:
    """One process, for the thread that makes it."""

    def __init__(self) -> None:
        self._connection, its_end = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(its_end, os.getpid()), daemon=True)
        self._process.start()
        its_end.close()  # so that its death is an end of the pipe, wherever in an answer it comes

    @property
    def is_alive(self) -> bool:
        """Whether it can be given work."""
        return self._process.is_alive()

    def run(self, work: Callable[[], Any]) -> Any:
        """The result of the work, or what it raised. BrokenProcessPool where the process dies of it."""
        sent = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(sent)
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self._process.join(END_SECONDS_MAX)
            code = self._process.exitcode
            raise BrokenProcessPool(f"a worker ended while it had work (exit code {code})") from error
        result, raised = pickle.loads(answer)  # noqa: S301  # it comes from our own process
        if raised is not None:
            raise raised
        return result

    def end(self) -> None:
        """Let it go: it ends when it finds the pipe closed."""
        self._connection.close()
        self._process.join(END_SECONDS_MAX)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()


def one_worker() -> WorkerPool:
    """A pool of one process, for work that nothing else may die with."""
    return WorkerPool(1)


def _serve(connection: Connection, starter: int) -> None:
    """A worker: dies with its starter, and only then. A terminal's Ctrl-C goes to the whole group."""
    hold(starter)
    # Every image takes and gives back the same megabytes.
    keep_memory(kept_bytes=HEAP_KEPT_BYTES, array_bytes_max=HEAP_ARRAY_BYTES_MAX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(sent: bytes) -> bytes:
    """What the work gives, or what it raised, with where it did as a note."""
    try:
        return pickle.dumps((pickle.loads(sent)(), None), pickle.HIGHEST_PROTOCOL)  # noqa: S301  # our own service's
    except Exception as error:  # noqa: BLE001  # its caller gets it
        error.add_note(traceback.format_exc())
        with contextlib.suppress(Exception):
            return pickle.dumps((None, error), pickle.HIGHEST_PROTOCOL)
        unsendable = RuntimeError(f"{type(error).__name__}: {error}")
        unsendable.add_note(traceback.format_exc())
        return pickle.dumps((None, unsendable), pickle.HIGHEST_PROTOCOL)
