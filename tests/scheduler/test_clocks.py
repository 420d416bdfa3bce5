"""What clocks that are set, machines that sleep and a slow writer do to leases and to all that waits for a time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.chassis.errors import Unavailable
from services.scheduler.config import SchedulerConfig
from services.scheduler.domain.lease import AttemptKey
from services.scheduler.domain.timekeeping import ClockLimits, Look, outage
from services.scheduler.limits import clock_limits
from services.scheduler.store.upkeep import Upkeep
from tests.scheduler.silence import at_work, expire, put_aside
from tests.scheduler.stores import failing_commits

LIMITS = ClockLimits(outage_seconds=8.0, step_seconds=3.0)


@pytest.mark.parametrize("seconds", [3_600.0, -3_600.0])
def test_clock_that_is_set_or_a_machine_that_sleeps_expires_nothing(with_stores, seconds):
    async def test(stores):
        await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stores.clock.step(seconds)
        assert await expire(stores, 1) == []
        assert len(await expire(stores)) == 1

    with_stores(test)


def test_an_outage_that_was_seen_by_a_look_that_failed_is_seen_by_the_next_one(with_stores):
    """The look after it comes in time, and found the leases as old as they were."""

    async def test(stores):
        await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stores.clock.pass_seconds(60)
        with failing_commits(stores.database), pytest.raises(Unavailable):
            await stores.upkeep.renew_and_expire([])
        assert await expire(stores, 1) == []
        assert len(await expire(stores, 7)) == 0
        for _ in range(3):
            closed = await expire(stores, 7)
        assert len(closed) == 1

    with_stores(test, outage_seconds=8.0)


@pytest.mark.parametrize("sees_it", [True, False])
def test_a_clock_that_is_set_back_holds_up_nothing_that_waits_for_a_time(with_stores, sees_it):
    """Where the scheduler saw it happen by that much, else for no longer than may be waited at all."""

    async def test(stores):
        await put_aside(stores)
        await stores.upkeep.renew_and_expire([])
        stores.clock.step(-3_600)
        if sees_it:
            await stores.upkeep.renew_and_expire([])
        else:  # a new process
            stores.upkeep = Upkeep(
                stores.database, stores.placing, stores.upkeep._limits, monotonic=stores.clock.monotonic
            )
            await stores.upkeep.restart_clocks()
        await stores.adopt_all()
        stores.clock.pass_seconds(11 if sees_it else stores.RETRY.retry_seconds_max)
        await stores.upkeep.renew_and_expire([])
        assert await stores.count("jobs", "retry_time_us IS NOT NULL") == 0
        stores.clock.pass_seconds(300 if sees_it else stores.ASIDE.seconds_max)
        await stores.upkeep.renew_and_expire([])
        assert await stores.count("runners", "put_aside_until_us IS NOT NULL") == 0

    with_stores(test)


def test_a_clock_that_is_set_forward_makes_nothing_old(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", request_id="one", digest=b"")
        key = AttemptKey(job_uid=uid, epoch=1)
        await stores.end("r0", await stores.report("r0"), "COMPLETED")
        await stores.upkeep.renew_and_expire([])
        events = await stores.count("outbox")
        stores.clock.step(1_000_000_000)
        await stores.upkeep.renew_and_expire([])
        await stores.upkeep.forget()
        assert (await stores.count("request_ids"), await stores.count("outbox")) == (1, events)
        assert await stores.runners.attempts([key], ended_hours_max=1.0), "its spool is wanted still"
        [orphan] = await stores.orphans.due(10)
        assert orphan.ended_seconds < 3_600
        stores.clock.step(-1_000_000_000)
        await stores.upkeep.renew_and_expire([])
        stores.clock.pass_seconds(2 * 3_600)
        await stores.upkeep.forget()
        assert await stores.count("request_ids") == 0

    with_stores(test)


def test_look_that_waited_in_the_writers_queue_expires_nothing(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await stores.upkeep.renew_and_expire([])
        stalls, goes_on = threading.Event(), threading.Event()

        def stall(_transaction) -> None:
            stalls.set()
            goes_on.wait(60)

        stalled = asyncio.ensure_future(stores.database.write(stall))
        await asyncio.to_thread(stalls.wait, 60)
        look = asyncio.ensure_future(stores.upkeep.renew_and_expire([]))
        await asyncio.sleep(0)  # it waits behind the stall
        stores.clock.pass_seconds(26)
        goes_on.set()
        assert await look == []
        await stalled
        assert (await stores.job(standings["r0"].job.uid)).attempts[0].active

    with_stores(test, outage_seconds=8.0)


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (Look(asked_seconds=101.0, taken_seconds=101.1, now_us=1_100_000), ""),
        (Look(asked_seconds=101.0, taken_seconds=110.0, now_us=10_000_000), "the database's writer was held up"),
        (Look(asked_seconds=120.0, taken_seconds=120.0, now_us=20_000_000), "nobody looked"),
        (Look(asked_seconds=101.0, taken_seconds=101.0, now_us=61_000_000), "the clock was set by +60.0 s"),
        (Look(asked_seconds=101.0, taken_seconds=101.0, now_us=-59_000_000), "the clock was set by -60.0 s"),
    ],
)
def test_clocks_that_disagree_are_an_outage(look, found):
    before = Look(asked_seconds=100.0, taken_seconds=100.0, now_us=0)
    assert outage(before, look, LIMITS).startswith(found)
    assert bool(outage(before, look, LIMITS)) is bool(found)


@pytest.mark.parametrize(("lease_seconds", "outage_seconds"), [(25.0, 8.0), (6.0, 2.0)])
def test_an_outage_is_noticed_before_it_can_cost_a_lease(tmp_path, lease_seconds: float, outage_seconds: float):
    """A scheduler that stood still for seven of a lease's six seconds once judged its healthy runners lost."""
    config = SchedulerConfig(
        database_url="sqlite:///x",
        checkpoint_root="file:///x",
        token_key_file=tmp_path / "token",
        credentials_key_file=tmp_path / "seal",
        lease_seconds=lease_seconds,
    )
    assert clock_limits(config).outage_seconds == outage_seconds
