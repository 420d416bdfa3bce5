"""Batches made by threads some steps ahead of the training, in the order in which they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import torch

from runner.trainer.batch import Batch

BATCHES_AHEAD = 4
"""How many batches are made or being made while one is used."""


class Assembly(Protocol):
    """A batch in the making."""

    def parts(self) -> Sequence[Callable[[], None]]:
        """What is to do first, one thing at least, in any order and in any threads."""

    def finish(self) -> Batch:
        """The batch, once all parts are done."""


class Loader:
    """Makes one batch after another, some ahead of what is asked for. A context manager; use it from one thread.

    `assemblies` are drawn in the thread that uses the loader; their parts run in the loader's threads, with 0 threads
    in the same one when the batch is asked for.
    """

    def __init__(self, assemblies: Iterator[Assembly], threads: int) -> None:
        self._assemblies = assemblies
        self._waiting: deque[Future[Batch]] = deque()
        self._threads = _executor(threads) if threads else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, as soon as it is made. Raises what making it raised."""
        if self._threads is None:
            assembly = next(self._assemblies)
            for part in assembly.parts():
                part()
            return assembly.finish()
        while len(self._waiting) <= BATCHES_AHEAD and (following := next(self._assemblies, None)) is not None:
            self._waiting.append(self._submit(self._threads, following))
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft().result()

    def _submit(self, threads: ThreadPoolExecutor, assembly: Assembly) -> Future[Batch]:
        first, *more = assembly.parts()
        parts = [threads.submit(part) for part in more]

        def finish() -> Batch:
            first()
            # Threads take what was submitted first, so that all parts have begun by now: this waits, but not for ever.
            for part in parts:
                part.result()
            return assembly.finish()

        return threads.submit(finish)


def _executor(threads: int) -> ThreadPoolExecutor:
    # Each with one core: a team of torch's own in every thread would spin on the cores that the model computes on
    # (a step of a small model took two thirds longer). The setting is the thread's own.
    return ThreadPoolExecutor(threads, "loader", initializer=torch.set_num_threads, initargs=(1,))
