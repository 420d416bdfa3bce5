"""The agent's disk, which may stand still: event loop, attempts and process go on, and end, without it.

`on_disk` is for who can be cancelled. Who must come to an end asks `Disk`, which gives up a disk that stands still.
What must be done in order has a thread of its own (`telemetry/worker_thread`), and who waits for that asks `Disk` too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

from services.chassis.threads import Threads

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Moved: TypeAlias = Callable[[], None]
"""Is told that something of a long call was done."""

THREADS_MAX = 32
"""So many calls may hang before others wait for them."""
CALLS_WAITING_MAX = 10_000
DISK_THREADS = Threads("disk", threads_max=THREADS_MAX, waiting_max=CALLS_WAITING_MAX)


async def on_disk(
    call: Callable[Parameters, Result], /, *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """The result of a call that may wait for the disk, without limit. Who is cancelled waits no longer."""
    return await DISK_THREADS.run(functools.partial(call, *arguments, **options))


class DiskStandsStill(TimeoutError):  # noqa: N818  # what it is; it is told in these words
    """The disk has not done in time what was asked of it. It may still come to do it."""

    def __init__(self) -> None:
        super().__init__("the disk stands still")


class Disk:
    """How long the disk is waited for: while something moves, and then for `still_seconds_max`.

    Once it was given up, and until it has answered, it is given only `again_seconds_max`, and so is every call once the
    agent hurries, whether something moves or not: what hangs costs an end its full time once.
    """

    def __init__(self, *, still_seconds_max: float, again_seconds_max: float) -> None:
        self._still_seconds_max = still_seconds_max
        self._again_seconds_max = again_seconds_max
        self._hurried = asyncio.Event()
        self._hurried_at = 0.0
        self.stands_still = False
        """Whether it was given up, and has not answered since."""

    def hurry(self) -> None:
        """The agent ends at once: nobody waits long any more."""
        self._hurried_at = time.monotonic()
        self._hurried.set()

    async def run(
        self, call: Callable[Parameters, Result], /, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Result:
        """The result of a short call. Raises DiskStandsStill."""
        return await self.answer(on_disk(call, *arguments, **options))

    async def run_long(
        self,
        call: Callable[Concatenate[Moved, Parameters], Result],
        /,
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        """The result of a call that may take long, and says whenever something moves. Raises DiskStandsStill."""
        moved_at = time.monotonic()

        def moved() -> None:
            nonlocal moved_at
            moved_at = time.monotonic()

        return await self.answer(on_disk(call, moved, *arguments, **options), moved_at=lambda: moved_at)

    async def answer(
        self,
        work: Awaitable[Result],
        *,
        seconds_max: float | None = None,
        afresh: bool = False,
        moved_at: Callable[[], float] = lambda: 0.0,
    ) -> Result:
        """What comes of work that waits for the disk. Raises DiskStandsStill, and then the work is cancelled.

        `seconds_max`: in place of `still_seconds_max`. `afresh`: also where it has stood still. `moved_at`: when
        something last moved, by the monotonic clock.
        """
        began = time.monotonic()
        still_seconds = self._still_seconds_max if seconds_max is None else seconds_max
        if self.stands_still and not afresh:
            still_seconds = min(still_seconds, self._again_seconds_max)
        working = asyncio.ensure_future(work)
        hurried = asyncio.ensure_future(self._hurried.wait())
        try:
            while not working.done():
                deadline = max(began, moved_at()) + still_seconds
                waits = {working, hurried}
                if self._hurried.is_set():
                    deadline = min(deadline, max(began, self._hurried_at) + self._again_seconds_max)
                    waits = {working}
                left_seconds = deadline - time.monotonic()
                if left_seconds <= 0:
                    self.stands_still = True
                    raise DiskStandsStill
                await asyncio.wait(waits, timeout=left_seconds, return_when=asyncio.FIRST_COMPLETED)
            return self._taken(working)
        finally:
            working.cancel()
            hurried.cancel()

    def _taken(self, working: asyncio.Future[Result]) -> Result:
        try:
            result = working.result()
        except TimeoutError as error:  # too many wait already
            self.stands_still = True
            raise DiskStandsStill from error
        except OSError:
            self.stands_still = False
            raise
        self.stands_still = False
        return result


def delete_tree(moved: Moved, folder: Path) -> bool:
    """Delete a folder with all that is in it, as far as that can be; whether it is gone. No link is followed."""
    with contextlib.suppress(OSError):
        for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
            for name in (*files, *folders):
                with contextlib.suppress(OSError):
                    _delete(name, descriptor)
                moved()
        folder.rmdir()
    return not os.path.lexists(folder)


def _delete(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):  # the second is what POSIX says for a folder
        os.rmdir(name, dir_fd=folder)
