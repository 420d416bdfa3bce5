"""Who takes more than his share of the processor waits, and nobody with him."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.chassis.share import (
    BURST_SECONDS,
    CALL_SECONDS,
    COMPANY_SECONDS,
    DEBT_SECONDS_MAX,
    Shares,
    Stepped,
    SteppedItems,
    Turns,
    charged,
    set_current_spending,
)

WORK_SECONDS = 0.02


class Clock:
    """Says what it is told."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def work() -> None:
    began = time.thread_time()
    while time.thread_time() - began < WORK_SECONDS:
        pass


async def waits(turns: Turns, subject: str, seconds: float) -> bool:
    """Whether the next turn has to be waited for."""
    task = asyncio.ensure_future(turns.turn(subject, lambda: seconds))
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        return False
    task.cancel()
    await asyncio.wait({task})
    return True


def test_a_rest_saves_up_a_second_and_no_more_and_others_have_their_own() -> None:
    async def scenario() -> None:
        clock = Clock()
        turns = Turns(clock=clock)
        assert [await waits(turns, "users/flood", 0.4) for _ in range(4)] == [False, False, False, True]
        assert not await waits(turns, "users/ada", 0.4)
        clock.now += 0.25
        assert [await waits(turns, "users/flood", 0.4) for _ in range(2)] == [False, True]
        clock.now += 100 * BURST_SECONDS
        assert [await waits(turns, "users/flood", 0.4) for _ in range(4)] == [False, False, False, True]

    asyncio.run(scenario())


def test_who_goes_away_before_its_turn_takes_none_and_no_debt_lasts_for_ever() -> None:
    async def scenario() -> None:
        clock = Clock()
        turns = Turns(clock=clock)
        turns.charge("users/flood", 1.5)
        for _ in range(1_000):
            assert await waits(turns, "users/flood", 100.0)
        clock.now += 0.5
        assert not await waits(turns, "users/flood", 1_000.0)
        clock.now += DEBT_SECONDS_MAX
        assert not await waits(turns, "users/flood", 0.1)

    asyncio.run(scenario())


def test_who_has_not_called_for_long_is_forgotten() -> None:
    async def scenario() -> None:
        clock = Clock()
        turns = Turns(clock=clock)
        for number in range(100):
            turns.charge(f"users/{number}", 0.1)
        clock.now += 2 * BURST_SECONDS
        for _ in range(200):
            turns.charge("users/ada", 0.0)
        assert list(turns._accounts) == ["users/ada"]

    asyncio.run(scenario())


async def on_the_loop() -> None:
    await asyncio.sleep(0)
    work()


async def in_a_thread() -> None:
    await asyncio.get_running_loop().run_in_executor(None, charged(work))


async def failing() -> None:
    work()
    raise ValueError


@pytest.mark.parametrize("call", [on_the_loop, in_a_thread, failing])
def test_a_call_is_charged_what_it_took_and_waiting_is_free(call: Callable) -> None:
    async def scenario() -> None:
        clock = Clock()
        shares = Shares(1.0, clock=clock)
        spending = await shares.begin("users/flood", "Get")
        set_current_spending(spending)
        try:
            await Stepped(call(), spending)
        except ValueError:
            assert call is failing
        await Stepped(asyncio.sleep(1.0), spending)
        shares.end(spending)
        owed = shares._turns._accounts["users/flood"].free_at - (clock.now - BURST_SECONDS)
        assert WORK_SECONDS <= owed < 1.0
        assert WORK_SECONDS <= shares._usual["Get"] < 1.0

    asyncio.run(scenario())


def test_items_of_a_stream_are_charged_and_those_who_wait_can_be_cancelled() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(2):
            work()
            yield number
        await asyncio.Event().wait()

    async def scenario() -> None:
        shares = Shares(0.1, clock=Clock())
        spending = await shares.begin("users/flood", "Watch")
        stepped = SteppedItems(items(), spending)
        assert [await anext(stepped), await anext(stepped)] == [0, 1]
        last = asyncio.ensure_future(anext(stepped))  # type: ignore[arg-type]  # it is awaitable
        await asyncio.sleep(0.01)
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        shares.end(spending)
        assert shares._usual["Watch"] >= 2 * WORK_SECONDS

    asyncio.run(scenario())


def test_who_is_alone_waits_for_nothing_and_owes_nothing_when_somebody_comes() -> None:
    async def scenario() -> None:
        clock = Clock()
        shares = Shares(0.001, clock=clock)

        async def called(subject: str) -> bool:
            """Whether the call's turn came at once."""
            task = asyncio.ensure_future(shares.begin(subject, "Get"))
            for _ in range(3):
                await asyncio.sleep(0)
            if task.done():
                spending = task.result()
                spending.add(1.0)
                shares.end(spending)
                return True
            task.cancel()
            await asyncio.wait({task})
            return False

        assert [await called("users/flood") for _ in range(5)] == [True] * 5
        assert await called("users/ada")
        assert [await called("users/flood") for _ in range(2)] == [True, False]
        clock.now += COMPANY_SECONDS / 2
        assert [await called("users/flood") for _ in range(2)] == [True, False]
        clock.now += COMPANY_SECONDS / 2 + 0.1
        assert [await called("users/flood") for _ in range(5)] == [True] * 5

    asyncio.run(scenario())


@given(
    rest=st.floats(-1.0, 0.0),
    usual=st.floats(0.0, 10.0),
    steps=st.lists(st.floats(0.0, 3.0), max_size=5),
    share=st.floats(0.01, 1.0),
    alone=st.booleans(),
)
@example(rest=0.0, usual=1.0, steps=[0.0006], share=0.001, alone=False)
def test_a_guess_costs_what_it_would_have_had_it_been_right(
    rest: float, usual: float, steps: list[float], share: float, alone: bool
) -> None:
    """A call has cost what it took, at most the debt's limit, once it has ended, also where such calls were dear."""

    async def scenario() -> None:
        clock = Clock()
        shares = Shares(share, clock=clock)
        if not alone:
            shares.end(await shares.begin("users/ada", "Other"))
        shares._usual["Get"] = usual
        account = shares._turns._account("users/flood")
        account.free_at = clock.now + rest
        spending = await shares.begin("users/flood", "Get")
        for step in steps:
            spending.add(step)
        shares.end(spending)
        owed = min(rest + (CALL_SECONDS + sum(steps)) / share, 0.0 if alone else DEBT_SECONDS_MAX)
        assert account.free_at - clock.now == pytest.approx(owed, abs=1e-6)

    asyncio.run(scenario())
