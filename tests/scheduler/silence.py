"""Runners at work that fall silent, or fail: what tests of leases, clocks and faults begin with."""

from __future__ import annotations

from services.scheduler.domain.job import JobReason


async def at_work(stores, number: int):
    """So many runners, each with a job of a project of its own that runs."""
    standings = {}
    for each in range(number):
        await stores.create_project(f"p{each}")
        await stores.submit(f"p{each}")
        standing = await stores.report(f"r{each}")
        standings[f"r{each}"] = await stores.hold(f"r{each}", standing)
    return standings


async def expire(stores, seconds: float = 26):
    stores.clock.pass_seconds(seconds)
    return await stores.upkeep.renew_and_expire([])


async def fail(stores, runner_id: str, standing, reason=JobReason.RUNNER_FAULT):
    return await stores.end(runner_id, standing, "FAILED", reason=reason, message="no space left on /data")


async def put_aside(stores) -> None:
    """A runner that fails three jobs at once, each of a project of its own, and is heard of all the time."""
    await stores.report("sound", session="sound")
    for each in range(4):
        await stores.create_project(f"p{each}")
        await stores.submit(f"p{each}")
    standing = await stores.report("broken")
    for _ in range(3):
        standing = await fail(stores, "broken", standing)
    assert standing.attempt is None
    assert (await stores.facts())[-1] == "put-aside"
