"""How the agent waits: never without limit for what may hang, and never for ever for what broke by our own mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from services.chassis.log import get_logger

log = get_logger(__name__)


async def happens_within(seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set; whether the first is."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return events[0].is_set()


async def ends_within(seconds: float, work: asyncio.Task[None], *, since: asyncio.Event) -> bool:
    """Wait for the end of work, and from an event on for so long at most; whether it came to an end."""
    waits = asyncio.create_task(since.wait())
    await asyncio.wait({work, waits}, return_when=asyncio.FIRST_COMPLETED)
    waits.cancel()
    await asyncio.wait({work}, timeout=seconds)
    return work.done()


async def restarted(work: Callable[[], Coroutine[Any, Any, None]], *, pause_seconds: float) -> NoReturn:
    """Our own mistake in it must not end a healthy training: it is logged and begun again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("agent_task_crashed", task=work.__qualname__)
        await asyncio.sleep(pause_seconds)
