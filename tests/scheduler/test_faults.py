"""A runner that fails with a job: the job is tried elsewhere, and who fails again and again is put aside."""

from __future__ import annotations

from services.scheduler.domain.request import Request
from services.scheduler.wire.job import why_not_running
from tests.scheduler.silence import at_work, expire, fail, put_aside

NOBODY = Request(request_id="", digest=b"")


def test_fault_of_a_runner_is_tried_again_after_a_pause_and_elsewhere(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await stores.report("other")
        uid = standings["r0"].job.uid
        assert (await fail(stores, "r0", standings["r0"])).attempt is None
        await stores.adopt_all()
        assert (await stores.report("other")).attempt is None, "the pause is not over"
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt is None, "there is another runner"
        assert (await stores.report("other")).job.uid == uid

    with_stores(test)


def test_only_runner_there_is_gets_the_job_again_after_the_pause(with_stores):
    async def test(stores):
        standings = await at_work(stores, 1)
        await fail(stores, "r0", standings["r0"])
        await stores.adopt_all()
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt.number == 2

    with_stores(test)


def test_a_job_keeps_away_from_the_runner_that_failed_with_it_for_a_time_only(with_stores):
    """The only other one may be busy for days."""

    async def test(stores):
        standings = await at_work(stores, 2)
        uid = standings["r0"].job.uid
        assert (await fail(stores, "r0", standings["r0"])).attempt is None
        await stores.adopt_all()
        await expire(stores, 11)
        assert (await stores.report("r0")).attempt is None, "there is another runner"
        view, waits = await stores.jobs.get("p0", (await stores.job(uid)).job.job_id)
        assert why_not_running(view.job.needs, waits).startswith("it keeps away from runners/r0, which failed with it")
        for _ in range(16):
            await stores.hold("r1", standings["r1"])
            await expire(stores, 20)
            standing = await stores.report("r0")
        assert standing.job.uid == uid
        assert standing.job.needs.avoided == ()

    with_stores(test)


def test_runner_that_fails_fast_again_and_again_is_put_aside_with_its_reason(with_stores):
    async def test(stores):
        await put_aside(stores)
        assert await stores.count("jobs", "state = 'FAILED'") == 0
        [view] = [v for v in await stores.runners.page(after="", limit=10) if v.runner.runner_id == "broken"]
        assert not view.runner.takes_jobs
        assert "3 attempts in a row failed through its fault: no space left on /data" in view.runner.put_aside_reason
        assert (await stores.report("broken")).attempt is None
        assert (await stores.report("sound", session="sound")).job.project_id == "p3"

    with_stores(test)


def test_runner_that_was_put_aside_takes_jobs_again_after_its_time(with_stores):
    async def test(stores):
        await put_aside(stores)
        for _ in range(15):
            await expire(stores, 20)
            await stores.report("broken")
        await stores.adopt_all()
        assert (await stores.report("broken")).attempt is not None

    with_stores(test)


def test_runner_that_an_operator_takes_back_gets_a_job_at_once(with_stores):
    async def test(stores):
        await put_aside(stores)
        await stores.runners.undrain(NOBODY, lambda _: b"", runner_id="broken")
        assert (await stores.report("broken")).job.project_id == "p3"

    with_stores(test)
