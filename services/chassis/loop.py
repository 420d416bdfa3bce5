"""A background loop that supervises itself: what fails is logged and tried again after a pause, and nothing ends it.

A loop that let an exception out would end its process, and would do so again after each restart where the cause lies in
a row. So a turn may raise anything; the next one comes all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.chassis.backoff import Backoff
from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopLimits:
    """How long a loop pauses after a turn that failed."""

    retry_seconds_first: float = 1.0
    retry_seconds_max: float = 30.0


async def keep_turning(name: str, turn: Callable[[], Awaitable[None]], *, limits: LoopLimits | None = None) -> None:
    """Take one turn after the other until cancelled. A turn waits by itself for whatever it waits for.

    What a turn raises is logged under `name` (a stack trace where it is no error of ours), and the next turn comes
    after a pause that grows with each failure in a row.
    """
    limits = limits or LoopLimits()
    backoff = Backoff(
        seconds_first=limits.retry_seconds_first,
        seconds_max=limits.retry_seconds_max,
        randomness=random.Random(),  # noqa: S311  # spreads pauses, guards no secret
    )
    while True:
        try:
            await turn()
        except SihlaiError as error:
            log.warning("turn_failed", loop=name, reason=error.reason.value, problem=error.message)
        except Exception:
            log.exception("turn_failed", loop=name)
        else:
            backoff.reset()
            continue
        await asyncio.sleep(backoff.next_seconds())
