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
"""So few items are done by the event loop itself: another thread costs as much."""
ITEMS_A_TURN = 50
"""Some milliseconds."""
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="aside")
_TURN = threading.Lock()


async def aside(items: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> list[Result]:
    """What the work makes of the items, some at a time, or what it raises.

    Few are done by the event loop at once, which waits for no turn.
    """
    if len(items) <= AT_ONCE_MAX:
        return [work(items)]
    done = charged(lambda: list(in_turns(items, work)))
    return await asyncio.get_running_loop().run_in_executor(_THREAD, done)


def in_turns(items: Iterable[Item], work: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
    """The same in a thread that is there already. Of all threads that call this one works at a time."""
    left = iter(items)
    while some := list(itertools.islice(left, ITEMS_A_TURN)):
        with _TURN:
            result = work(some)
        yield result
