from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from services.chassis.auth.principal import Principal, set_current_principal
from services.chassis.errors import ResourceExhausted
from services.conversion.conveyor.work import (
    RATE_SECONDS,
    Meter,
    Progress,
    SlotLimits,
    Slots,
    Tell,
    Works,
    in_thread,
)


def slots_of(**limits: int) -> Slots:
    """One works at a time, and many may wait, but for these limits."""
    many = {"user_running_max": 1, "waiting_max": 100, "user_waiting_max": 100, "principal_waiting_max": 100}
    return Slots(SlotLimits(**{"running_max": 1, **many, **limits}))


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    now = 100.0
    meter = Meter(lambda: now)
    assert meter.measure("index", 0, 1_000) == Progress(phase="index", total=1_000)
    now += 2
    progress = meter.measure("index", 20, 1_000, warnings=3)
    assert (progress.rate, progress.seconds_left, progress.warnings) == (10, 98, 3)
    for _ in range(20):
        now += 1
        progress = meter.measure("index", progress.done + 40, 1_000)
    assert progress.rate == pytest.approx(40)
    assert progress.seconds_left == pytest.approx((1_000 - progress.done) / 40)
    assert now > 100 + RATE_SECONDS


def test_another_phase_starts_anew() -> None:
    now = 0.0
    meter = Meter(lambda: now)
    meter.measure("index", 0, 10)
    now = 1.0
    meter.measure("index", 10, 10)
    now = 2.0
    assert meter.measure("convert", 5, 10) == Progress(phase="convert", done=5, total=10)


def test_work_that_fails_fails_for_all_who_follow_and_the_key_is_free_again() -> None:
    async def main() -> None:
        works: Works[int] = Works(progress_seconds=0.01)
        begun = 0

        async def fail(tell: Tell) -> int:
            nonlocal begun
            begun += 1
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def succeed(tell: Tell) -> int:
            return 7

        ends = await asyncio.gather(
            *(works.result("key", fail, lambda _: None) for _ in range(3)), return_exceptions=True
        )
        assert [type(end) for end in ends] == [ZeroDivisionError] * 3
        assert begun == 1
        assert await works.result("key", succeed, lambda _: None) == 7

    asyncio.run(main())


def test_a_cancelled_call_waits_for_its_thread() -> None:
    async def main() -> None:
        begun, may_end, ended = Event(), Event(), Event()

        def work() -> None:
            begun.set()
            may_end.wait(20)
            ended.set()

        with ThreadPoolExecutor(1) as executor:
            call = asyncio.create_task(in_thread(executor, work))
            while not begun.is_set():  # noqa: ASYNC110 — a thread's event
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.sleep(0)
            assert not call.done()
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert ended.is_set()

    asyncio.run(main())


def test_who_comes_when_too_many_wait_is_sent_away_and_a_place_is_free_again_when_one_leaves() -> None:
    async def main() -> None:
        slots = slots_of(waiting_max=1)

        async def wait() -> str:
            async with slots.taken():
                return "had its turn"

        async with slots.taken():
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="1 calls wait for their turn already") as refused:
                await wait()
            assert refused.value.metadata == {"what": "works_waiting_max", "limit": "1"}
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            following = asyncio.create_task(wait())
            await asyncio.sleep(0)
            assert not slots.idle
        assert await following == "had its turn"
        assert slots.idle

    asyncio.run(main())


def test_who_asks_for_much_waits_behind_himself() -> None:
    async def main() -> None:
        slots = slots_of()
        served = []

        async def work(subject: str) -> None:
            set_current_principal(Principal(subject=subject))
            async with slots.taken():
                served.append(subject)

        async with slots.taken():
            flood = [asyncio.create_task(work("users/flood")) for _ in range(50)]
            await asyncio.sleep(0)
            others = [asyncio.create_task(work(subject)) for subject in ("users/ada", "users/ben")]
            await asyncio.sleep(0)
            flood[0].cancel()
        await asyncio.gather(*flood[1:], *others)
        assert served[:3] == ["users/flood", "users/ada", "users/ben"]
        assert (len(served), slots.idle) == (51, True)

    asyncio.run(main())


def test_users_who_ask_for_all_there_is_leave_room_for_runners() -> None:
    async def main() -> None:
        slots = slots_of(running_max=2, waiting_max=4, user_waiting_max=3, principal_waiting_max=2)
        may_end = asyncio.Event()

        def call(subject: str) -> asyncio.Task[None]:
            async def work() -> None:
                set_current_principal(Principal(subject=subject))
                async with slots.taken():
                    working.append(subject)
                    await may_end.wait()

            return asyncio.create_task(work())

        async def refusal_of(task: asyncio.Task[None]) -> dict[str, str]:
            with pytest.raises(ResourceExhausted) as refused:
                await task
            return dict(refused.value.metadata)

        working: list[str] = []
        calls = [call("users/flood") for _ in range(3)]
        await asyncio.sleep(0)
        assert await refusal_of(call("users/flood")) == {"what": "principal_works_waiting_max", "limit": "2"}
        calls.append(call("users/ada"))
        await asyncio.sleep(0)
        assert await refusal_of(call("users/ben")) == {"what": "user_works_waiting_max", "limit": "3"}
        calls.append(call("runners/one"))
        await asyncio.sleep(0)
        assert working == ["users/flood", "runners/one"], "a user's second call waits, and the runner's works at once"
        calls.append(call("runners/two"))
        await asyncio.sleep(0)
        assert await refusal_of(call("runners/three")) == {"what": "works_waiting_max", "limit": "4"}
        may_end.set()
        await asyncio.gather(*calls)
        assert sorted(working[2:]) == ["runners/two", "users/ada", "users/flood", "users/flood"]
        assert slots.idle

    asyncio.run(main())


def test_a_turn_that_is_passed_to_who_leaves_at_that_moment_is_passed_on() -> None:
    async def main() -> None:
        slots = slots_of()

        async def work() -> str:
            async with slots.taken():
                return "had its turn"

        async with slots.taken():
            leaving, staying = asyncio.create_task(work()), asyncio.create_task(work())
            await asyncio.sleep(0)
        leaving.cancel()  # its turn has come, but it has not run yet
        assert await staying == "had its turn"
        assert leaving.cancelled()
        assert slots.idle

    asyncio.run(main())


def test_work_goes_on_for_who_follows_when_who_began_it_leaves() -> None:
    async def main() -> None:
        works: Works[int] = Works(progress_seconds=0.01)
        may_end, ends = asyncio.Event(), list[str]()

        async def work(tell: Tell) -> int:
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
            return 7

        first, second, third = (asyncio.create_task(works.result("key", work, lambda _: None)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        may_end.set()
        assert (await second, await third, ends) == (7, 7, [])
        assert not works.under_way("key")
        may_end.clear()
        last = asyncio.create_task(works.result("key", work, lambda _: None))
        await asyncio.sleep(0)
        last.cancel()
        await asyncio.wait({last})
        assert (ends, works.under_way("key")) == (["cancelled"], False)

    asyncio.run(main())
