"""A thread for calls that may never return: a disk that stands still, a driver that hangs.

Whoever waits for it does so with a deadline, and the process ends without it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from services.chassis.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")


class WorkerThread:
    """Makes calls one after the other, in the order in which they were asked for."""

    def __init__(self, name: str) -> None:
        self.moved_at = time.monotonic()
        """When the last call returned, by the monotonic clock."""
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def waiting_bytes(self) -> int:
        """The sizes of what was posted and is not done, together."""
        return self._waiting_bytes

    def post(self, call: Callable[[], None], size_bytes: int = 0) -> None:
        """Make this call without anybody waiting for it; what it raises is logged. Who posts bounds what waits."""
        with self._lock:
            if self._waiting_bytes == 0:
                self.moved_at = time.monotonic()
            self._waiting_bytes += size_bytes
        self._calls.put((call, size_bytes))

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Make this call; its result."""
        future: Future[T] = Future()

        def resolve() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  # it is raised where the result is asked for
                future.set_exception(error)

        self.post(resolve)
        return future

    async def run(self, call: Callable[[], T], *, seconds_max: float | None = None) -> T:
        """The call's result. Raises TimeoutError where it is not there in time; the call may still come to be made."""
        async with asyncio.timeout(seconds_max):
            return await asyncio.wrap_future(self.submit(call))

    def _work(self) -> None:
        while True:
            call, size_bytes = self._calls.get()
            try:
                call()
            except Exception:
                log.exception("worker_call_failed", thread=self._name)
            with self._lock:
                self._waiting_bytes -= size_bytes
                self.moved_at = time.monotonic()
