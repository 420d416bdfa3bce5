"""A runner that waits once more as what it was known to be, while it has just become something else."""

from __future__ import annotations

import asyncio
import threading

import pytest
from msgspec.structs import replace

from services.chassis.errors import Unavailable
from services.scheduler.desk import DeskLimits, RunnerDesk
from services.scheduler.domain.job import AttemptPhase, StopMode
from services.scheduler.domain.lease import ActiveReport, BeIdle, Report, RunAttempt, key_of
from services.scheduler.domain.request import Request
from tests.scheduler.stores import CLASSIFIER, one_commit_without_an_answer

NOBODY = Request(request_id="", digest=b"")


def again(sequence: int) -> Report:
    """The next call of the idle runner `one`."""
    return Report(runner_id="one", session="one-first", sequence=sequence, capabilities=CLASSIFIER, wait_seconds=8.0)


def desk_of(
    stores, *, idle_calls_per_second: float = 500.0, wait_seconds_max: float = 0.05, gap_seconds: float = 20.0
) -> RunnerDesk:
    """With waits of a moment, and a gap that a test's steps fit into."""
    limits = DeskLimits(
        wait_seconds_max=wait_seconds_max,
        idle_wait_seconds_max=0.5,
        idle_calls_per_second=idle_calls_per_second,
        resend_seconds=1.0,
        stop_grace_seconds=60.0,
        forget_seconds=50.0,
        gap_seconds=gap_seconds,
    )
    desk = RunnerDesk(stores.runners, limits=limits, monotonic=asyncio.get_running_loop().time)
    stores.database.after_commit.append(desk.on_committed)
    return desk


def test_idle_runner_keeps_its_place_between_calls_which_cost_no_transaction(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        desk = desk_of(stores)
        assert (await desk.synchronize(again(1))).desired == BeIdle()
        before = await stores.database.write(lambda transaction: transaction.number)
        for sequence in range(2, 6):
            assert (await desk.synchronize(again(sequence))).desired == BeIdle()
        assert await stores.database.write(lambda transaction: transaction.number) == before + 1
        assert [renewal.runner_id for renewal in desk.take_renewals()] == ["one"]
        uid = await stores.submit("digits")
        answer = await desk.synchronize(again(6))
        assert isinstance(answer.desired, RunAttempt)
        assert answer.standing.job.uid == uid

    with_stores(test)


def test_runner_is_told_to_stop_while_every_reader_hangs(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        desk, goes_on = desk_of(stores, wait_seconds_max=45.0), threading.Event()
        uid = await stores.submit("digits")
        given = (await desk.synchronize(again(1))).standing.attempt
        active = ActiveReport(key=key_of(given), number=given.number, phase=AttemptPhase.TRAINING)
        await desk.synchronize(replace(again(2), active=active, wait_seconds=0.0))
        waiting = asyncio.ensure_future(desk.synchronize(replace(again(3), active=active)))
        readers = [asyncio.ensure_future(stores.database.read(lambda _: goes_on.wait(60))) for _ in range(4)]
        try:
            job_id = f"job-{uid[-12:]}"
            await stores.jobs.stop(
                NOBODY,
                lambda _: b"",
                project_id="digits",
                job_id=job_id,
                mode=StopMode.CHECKPOINT,
                grace_seconds=60.0,
                margin_seconds=10.0,
                reason="enough",
            )
            told = await asyncio.wait_for(waiting, 20)
            assert told.desired.key == key_of(given)
            assert told.desired.mode is StopMode.CHECKPOINT
        finally:
            goes_on.set()
            await asyncio.gather(*readers)

    with_stores(test)


def test_idle_runners_wait_longer_where_there_are_very_many(with_stores):
    async def test(stores):
        desk, loop = desk_of(stores, idle_calls_per_second=10.0), asyncio.get_running_loop()
        for number in range(30):
            await desk.synchronize(replace(again(1), runner_id=f"r{number}", session=f"r{number}", wait_seconds=0.0))
        for asked, wanted in ((8.0, 0.5), (0.1, 0.1)):
            began = loop.time()
            await desk.synchronize(replace(again(1), session=f"asks for {asked}", wait_seconds=asked))
            assert loop.time() - began >= wanted

    with_stores(test)


def test_idle_runner_whose_place_was_never_written_takes_one_with_its_next_call(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        desk = desk_of(stores)
        await desk.synchronize(replace(again(1), wait_seconds=0.0))
        with one_commit_without_an_answer(stores.database), pytest.raises(Unavailable):
            await desk.synchronize(again(2))
        assert (await desk.synchronize(again(3))).desired == BeIdle()
        await stores.submit("digits")
        assert await stores.count("attempts") == 1

    with_stores(test)


def test_idle_runner_that_a_transaction_concerned_takes_its_place_anew(with_stores):
    async def test(stores):
        desk = desk_of(stores)
        await desk.synchronize(again(1))
        await stores.runners.drain(NOBODY, lambda _: b"", runner_id="one")
        await stores.runners.undrain(NOBODY, lambda _: b"", runner_id="one")
        before = await stores.database.write(lambda transaction: transaction.number)
        await desk.synchronize(again(2))
        await desk.synchronize(again(3))
        assert await stores.database.write(lambda transaction: transaction.number) == before + 2

    with_stores(test)


@pytest.mark.parametrize("goes", ["its call is cancelled", "it calls no more", "another session comes"])
def test_idle_runner_that_has_gone_gets_no_job(with_stores, goes):
    async def test(stores):
        await stores.create_project("digits")
        desk = desk_of(stores, gap_seconds=0.2 if goes == "it calls no more" else 20.0)
        await desk.synchronize(again(1))
        if goes == "its call is cancelled":
            call = asyncio.ensure_future(desk.synchronize(again(2)))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait({call})
        elif goes == "it calls no more":
            await asyncio.sleep(0.3)
        else:
            other = replace(again(1), session="one-second", wait_seconds=0.0)
            assert (await desk.synchronize(other)).desired == BeIdle()
        await stores.submit("digits")
        assert await stores.count("attempts") == 0

    with_stores(test)


def test_runner_that_was_lost_in_the_moment_of_its_call_is_back(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        known = await stores.report("one", call=waiting_call())
        stores.clock.pass_seconds(26)
        await stores.upkeep.renew_and_expire([])
        assert await stores.count("runners", "lost") == 1
        await stores.runners.wait_again(known, again(2), waiting_call())
        assert await stores.count("runners", "lost") == 0
        assert (await stores.facts())[-2:] == ["lost", "joined"]
        await stores.submit("digits")
        assert (await stores.runners.standing("one")).attempt is not None

    with_stores(test)


def test_runner_that_was_drained_in_the_moment_of_its_call_gets_no_job(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        known = await stores.report("one", call=waiting_call())
        await stores.runners.drain(NOBODY, lambda _: b"", runner_id="one")
        await stores.submit("digits")
        after = await stores.runners.wait_again(known, again(2), waiting_call())
        assert (after.attempt, after.runner.drain_asked) == (None, True)
        await stores.runners.undrain(NOBODY, lambda _: b"", runner_id="one")
        assert (await stores.runners.standing("one")).attempt is not None

    with_stores(test)


def test_runner_that_was_given_a_job_in_the_moment_of_its_call_is_told_of_it(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.create_project("streets")
        known = await stores.report("one", call=waiting_call())
        uid = await stores.submit("digits")  # given to the call before, whose answer is not there yet
        after = await stores.runners.wait_again(known, again(2), waiting_call())
        assert (after.attempt.job_uid, after.job.uid) == (uid, uid)
        await stores.submit("streets")
        assert await stores.count("attempts") == 1

    with_stores(test)


def test_runner_that_is_undrained_after_the_rows_were_read_anew_still_waits(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one", call=waiting_call())
        await stores.runners.drain(NOBODY, lambda _: b"", runner_id="one")
        with one_commit_without_an_answer(stores.database), pytest.raises(Unavailable):
            await stores.submit("digits")
        await stores.runners.undrain(NOBODY, lambda _: b"", runner_id="one")
        assert (await stores.runners.standing("one")).attempt is not None

    with_stores(test)
