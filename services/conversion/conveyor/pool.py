"""Processes that read and write maps, behind concurrent.futures.Executor, so that a cluster's can take their place.

None is started before it is needed, none outlives the service, however that ends, and none knows a dataset: it gets
bytes and gives bytes. A worker that dies takes the call along that it ran, and no other; the next call gets a new one.

`concurrent.futures.ProcessPoolExecutor` is not used, as it waits for ever where a worker is killed while it writes an
answer: the pipe is shared by all and open in the service itself, so its end is never seen. Memory runs out at such
moments. Here each worker has a pipe of its own, of which it alone holds the other end. Nor is
`multiprocessing.Process`: it looks at all of its children wherever one is started, and where two threads look at once
one of them takes an end for none. `subprocess` has a lock there.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import Pipe
from typing import Any, ParamSpec, TypeVar

WORKER = "services.conversion.conveyor.worker"
END_SECONDS_MAX = 5.0
"""A worker that has nothing to do ends by itself; after so long it is killed."""

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
        # Not forked: gRPC and obstore have threads, and a fork would take their locks along.
        self._connection, its_end = Pipe()
        with its_end:  # ours is closed, so that its death is an end of the pipe, wherever in an answer it comes
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, str(its_end.fileno()), str(os.getpid())],
                pass_fds=(its_end.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can be given work."""
        return self._process.poll() is None

    def run(self, work: Callable[[], Any]) -> Any:
        """The result of the work, or what it raised. BrokenProcessPool where the process dies of it."""
        sent = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(sent)
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise BrokenProcessPool(f"a worker ended while it had work (exit code {self._ended()})") from error
        result, raised = pickle.loads(answer)  # noqa: S301  # it comes from our own process
        if raised is not None:
            raise raised
        return result

    def end(self) -> None:
        """Let it go: it ends when it finds the pipe closed."""
        self._connection.close()
        self._ended()

    def _ended(self) -> int:
        """Its exit code. It is about to end; where it does not, it is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_SECONDS_MAX)
        self._process.kill()
        return self._process.wait()


def one_worker() -> WorkerPool:
    """A pool of one process, for work that nothing else may die with."""
    return WorkerPool(1)
