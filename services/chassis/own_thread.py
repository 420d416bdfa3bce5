"""Work in a thread of its own, for what must not wait for others, or may hang for longer than others can wait.

Those threads that `asyncio.to_thread` takes are few, and all share them; and the end of the process waits for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(name: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Begin the work at once; what comes of it. The process may end meanwhile."""
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
