"""A runner that waits once more as what it was known to be, while it has just become something else."""

from __future__ import annotations

from services.scheduler.domain.lease import Report
from services.scheduler.domain.request import Request
from tests.scheduler.conftest import CLASSIFIER

NOBODY = Request(request_id="", digest=b"")


def again(sequence: int) -> Report:
    """The next call of the idle runner `one`."""
    return Report(runner_id="one", session="one-first", sequence=sequence, capabilities=CLASSIFIER, wait_seconds=8.0)


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
