"""A loop that nothing ends."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from services.chassis.errors import Reason, Unavailable
from services.chassis.loop import LoopLimits, keep_turning

QUICK = LoopLimits(retry_seconds_first=0.001, retry_seconds_max=0.002)


def test_loop_goes_on_after_whatever_a_turn_raises():
    turns, done = [], asyncio.Event()
    troubles = [OverflowError("too large"), Unavailable(Reason.BUS_UNAVAILABLE, "away"), TimeoutError(), KeyError("x")]

    async def turn() -> None:
        turns.append(len(turns))
        if len(turns) <= len(troubles):
            raise troubles[len(turns) - 1]
        done.set()
        await asyncio.sleep(3_600)

    async def test() -> None:
        loop = asyncio.create_task(keep_turning("test", turn, limits=QUICK))
        async with asyncio.timeout(30):
            await done.wait()
        loop.cancel()
        [ended] = await asyncio.gather(loop, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)

    with capture_logs() as lines:
        asyncio.run(test())
    assert [line["log_level"] for line in lines] == ["error", "warning", "error", "error"]
    assert {line["loop"] for line in lines} == {"test"}
