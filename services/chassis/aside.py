"""Work of many small parts, done beside the event loop: a page of a thousand jobs takes a tenth of a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.chassis.share import charged

Result = TypeVar("Result")

AT_ONCE_MAX = 20
"""So few parts are done by the event loop itself: another thread costs as much."""
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="aside")
"""One, so that the event loop shares Python with one more at most, however many lists are asked for."""


async def aside(work: Callable[[], Result], *, parts: int) -> Result:
    """What the work of so many parts gives, or what it raises."""
    if parts <= AT_ONCE_MAX:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_THREAD, charged(work))
