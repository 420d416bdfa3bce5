"""Work of many small parts, done beside the event loop: a page of a thousand jobs takes a tenth of a second.

Python runs one thread at a time, so many that work are no faster than one; but whoever else wants to run, the event
loop before all, waits for each of them. So they take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.chassis.share import charged

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE_MAX = 20
"""So few parts are done by the event loop itself: another thread costs as much."""
TOGETHER = 50
"""Parts that one turn takes, some milliseconds."""
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="aside")
_TURN = threading.Lock()


async def aside(work: Callable[[], Result], *, parts: int) -> Result:
    """What the work of so many parts gives, or what it raises. It takes its turns by `in_turns`."""
    if parts <= AT_ONCE_MAX:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_THREAD, charged(work))


def in_turns(items: Iterable[Item], work: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
    """What the work makes of the items, some at a time; of other threads that call this none works meanwhile."""
    left = iter(items)
    while some := list(itertools.islice(left, TOGETHER)):
        with _TURN:
            result = work(some)
        yield result
