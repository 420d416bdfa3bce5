"""The agent's threads for its own disk, which may stand still: event loop and process then go on, and end, without it.

What must be done in order, or for a deadline, has a thread of its own instead (`telemetry/worker_thread`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from services.chassis.threads import Threads

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

THREADS_MAX = 32
"""So many calls may hang before others wait for them."""
CALLS_WAITING_MAX = 10_000
DISK_THREADS = Threads("disk", threads_max=THREADS_MAX, waiting_max=CALLS_WAITING_MAX)


async def on_disk(
    call: Callable[Parameters, Result], /, *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """The result of a call that may wait for the disk. Who is cancelled waits no longer."""
    return await DISK_THREADS.run(functools.partial(call, *arguments, **options))
