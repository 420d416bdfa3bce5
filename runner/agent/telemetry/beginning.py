"""The begin of an attempt's spool, and its recorder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from sihlai.runner.v1 import runner_service_pb2 as wire

from runner.agent.disk import Disk
from runner.agent.ledger import key_of
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk


async def begin_recording(
    assignment: wire.Assignment,
    folder: Path,
    *,
    spool_disk: SpoolDisk,
    disk: Disk,
    disk_seconds_max: float,
    now_unix_us: Callable[[], int],
    on_append: Callable[[], None],
) -> Recorder:
    """The recorder of an attempt whose spool lies in `folder` from now on; `on_append` is called in the event loop.

    Raises OSError where the disk does not let it, or takes longer than `disk_seconds_max`.
    """

    def begin_spool() -> Spool:
        key, number = key_of(assignment), assignment.attempt
        return Spool(folder, job=assignment.job, key=key, attempt=number, disk=spool_disk)

    spool = await disk.answer(spool_disk.writing.run(begin_spool), seconds_max=disk_seconds_max)
    loop = asyncio.get_running_loop()
    return Recorder(spool, now_unix_us=now_unix_us, on_append=lambda: notify_from_thread(loop, on_append))


def notify_from_thread(loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> None:
    """Call `notify` in the loop, if it still runs."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(notify)
