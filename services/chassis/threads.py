"""Threads for calls that may never return: into a network file system that hangs, to a disk that stands still.

asyncio's own threads are few, everybody's, and waited for when the process ends, without limit. These are one owner's,
and the process ends without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(name: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Begin the work at once, in a thread that is made for it; what comes of it."""
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # raised by who waits for it
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(done)


class Threads:
    """Makes calls in threads of its own, which begin when they are needed; `waiting_max` calls may wait for one."""

    def __init__(self, name: str, *, threads_max: int, waiting_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._waiting_max = waiting_max
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._begun = 0

    async def run(self, call: Callable[[], Result], *, seconds_max: float | None = None) -> Result:
        """The call's result. TimeoutError where it is not there in time, or too many wait; it may still be made.

        Who is cancelled waits no longer.
        """
        return await self._result(self.begin(call), seconds_max)

    def begin(self, call: Callable[[], Result]) -> Future[Result]:
        """What will come of the call, for who waits in a thread. TimeoutError where too many wait."""
        if self._calls.qsize() >= self._waiting_max:
            raise TimeoutError(f"{self._waiting_max} calls wait for the threads of {self._name} already")
        return self._submit(call)

    @contextlib.asynccontextmanager
    async def entered(
        self, manager: AbstractContextManager[Result], *, seconds_max: float | None = None
    ) -> AsyncIterator[Result]:
        """The context, entered and left in threads, each within `seconds_max` as for `run`.

        Who has an error, or is cancelled, does not wait until it is left.
        """
        entering = self.begin(manager.__enter__)
        try:
            value = await self._result(entering, seconds_max)
        except BaseException:
            failure = sys.exc_info()
            entering.add_done_callback(lambda _: _has_result(entering) and manager.__exit__(*failure))
            raise
        try:
            yield value
        except BaseException:
            failure = sys.exc_info()
            self._submit(lambda: manager.__exit__(*failure))
            raise
        await self._result(self._submit(lambda: manager.__exit__(None, None, None)), seconds_max)

    async def _result(self, future: Future[Result], seconds_max: float | None) -> Result:
        limit = asyncio.timeout(seconds_max)
        try:
            async with limit:
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"there was no answer within {seconds_max:g} s") from error

    def _submit(self, call: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        context = contextvars.copy_context()

        def resolve() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(call))
            except BaseException as error:  # noqa: BLE001  # it is raised where the result is asked for
                future.set_exception(error)

        self._calls.put(resolve)
        self._begin_thread()
        return future

    def _begin_thread(self) -> None:
        if self._idle.acquire(blocking=False):
            return
        with self._lock:
            if self._begun == self._threads_max:
                return
            self._begun += 1
            number = self._begun
        threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._calls.get()()
            if self._calls.empty():
                self._idle.release()


def _has_result(future: Future[Result]) -> bool:
    return not future.cancelled() and future.exception() is None
