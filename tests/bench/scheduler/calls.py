"""What callers and runners see, over gRPC."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from functools import partial

from tests.bench.result import Result
from tests.bench.scheduler.stage import Client, Place, Runner, percentile, processor_seconds, rate, serve

GROUP, EMPTY_GROUP, GROUPS = 500, 1_500, 9
TOKEN_GROUPS = 15
LATENCIES = 200
RUNNERS = 1_000
STOPS = 300


async def submits(place: Place) -> AsyncIterator[Result]:
    """Durable submits, one job a call, and empty calls, group after group: what else this machine does meets both."""
    async with serve(place, "submits") as client:
        for number in range(8):
            await client.create_project(f"p{number}")
        turn = iter(range(10**9))
        await rate(lambda: client.submit(f"p{next(turn) % 8}"), number=200)
        empty, found = [], []
        for _ in range(GROUPS):
            empty.append(await rate(client.empty_call, number=EMPTY_GROUP))
            found.append(await rate(lambda: client.submit(f"p{next(turn) % 8}"), number=GROUP))
        ratio = statistics.median(one / other for one, other in zip(found, empty, strict=True))
        name = f"{place.kind}: submits, durable, 64 callers"
        submitted = statistics.median(found)
        yield Result(name=name, value=submitted, unit="1/s", bar=">= 500")
        yield Result(name=f"{name}, of an empty call", value=submitted, unit="1/s", bar="ratio >= 0.3", ratio=ratio)
        yield Result(name=f"{place.kind}: empty calls, 64 callers", value=statistics.median(empty), unit="1/s")


async def token_cost(place: Place) -> AsyncIterator[Result]:
    """Processor time of the scheduler for submits with a token each, beside those of one that asks for none, group
    after group: what else this machine does meets both.
    """
    async with (
        serve(place, "with_tokens") as asked,
        serve(place, "without_tokens", program="tests.bench.scheduler.without_tokens", has_tokens=False) as open_to_all,
    ):
        costs: dict[Client, list[float]] = {asked: [], open_to_all: []}
        for client in costs:
            await client.create_project("digits")
            await rate(partial(client.submit, "digits"), number=GROUP)
        for _ in range(TOKEN_GROUPS):
            for client, found in costs.items():
                before = processor_seconds(client.process)
                await rate(partial(client.submit, "digits"), number=GROUP)
                found.append((processor_seconds(client.process) - before) / GROUP)
        with_tokens, without = (statistics.median(found) for found in costs.values())
        share = statistics.median(one / other - 1 for one, other in zip(*costs.values(), strict=True))
        name = f"{place.kind}: submits_token_cost, more processor time than without tokens"
        yield Result(name=name, value=share, unit="of it", bar="<= 0.15")
        name = f"{place.kind}: processor time of a submit"
        yield Result(name=f"{name}, with a token", value=with_tokens * 1_000, unit="ms")
        yield Result(name=f"{name}, without", value=without * 1_000, unit="ms")


async def hand_overs(place: Place) -> AsyncIterator[Result]:
    """From a submit to the moment when a waiting runner has the job."""
    async with serve(place, "handovers") as client:
        await client.create_project("digits")
        for share, seconds in (await hand_over_seconds(client, "digits", LATENCIES)).items():
            bar = {0.5: "< 10", 0.99: "< 50"}[share]
            name = f"{place.kind}: submit to the runner has the job, p{share * 100:g}"
            yield Result(name=name, value=seconds * 1_000, unit="ms", bar=bar)


async def hand_over_seconds(client: Client, project_id: str, number: int) -> dict[float, float]:
    """By share of the hand-overs the seconds that they do not take longer than."""
    runner, taken = Runner(client, "one"), []
    for _ in range(number):
        waiting = asyncio.ensure_future(runner.until_assigned())
        await asyncio.sleep(0.02)  # its call is there: what is measured begins with the submit
        began = time.perf_counter()
        await client.submit(project_id)
        await waiting
        taken.append(time.perf_counter() - began)
        await runner.end()
    return {share: percentile(taken, share) for share in (0.5, 0.99)}


async def burst_and_stops(place: Place) -> AsyncIterator[Result]:
    """A thousand waiting runners and a thousand projects that submit at once; then stops among them."""
    async with serve(place, "burst") as client:
        for number in range(0, RUNNERS, 50):
            await asyncio.gather(*(client.create_project(f"p{each}") for each in range(number, number + 50)))
        runners = [Runner(client, f"r{number}") for number in range(RUNNERS)]
        waiting = [asyncio.ensure_future(runner.until_assigned()) for runner in runners]
        await asyncio.sleep(5)  # all of them wait
        before = await rate(client.empty_call, number=2 * RUNNERS)
        began = time.perf_counter()
        numbers = iter(range(RUNNERS))
        await rate(lambda: client.submit(f"p{next(numbers)}"), number=RUNNERS)
        await asyncio.gather(*waiting)
        value = time.perf_counter() - began
        empty_seconds = RUNNERS / before + RUNNERS / await rate(client.empty_call, number=2 * RUNNERS)
        name = f"{place.kind}: burst, {RUNNERS} waiting runners, as many submits: all at work, of as many empty calls"
        yield Result(name=name, value=value, unit="s", bar="<= 2", ratio=value / empty_seconds)
        working = {runner.runner_id: asyncio.ensure_future(runner.until_stopped()) for runner in runners}
        await asyncio.sleep(10)
        taken = []
        for runner in runners[:STOPS]:
            assert runner.assignment is not None, "it has a job"
            began = time.perf_counter()
            await client.stop(runner.assignment.job)
            await working[runner.runner_id]
            taken.append(time.perf_counter() - began)
        for task in working.values():
            task.cancel()
        await asyncio.gather(*working.values(), return_exceptions=True)
        name = f"{place.kind}: stop to the runner is told, among {RUNNERS} runners"
        yield Result(name=f"{name}, p50", value=percentile(taken, 0.5) * 1_000, unit="ms")
        yield Result(name=f"{name}, p99", value=percentile(taken, 0.99) * 1_000, unit="ms", bar="< 100")


async def lost_runner(place: Place) -> AsyncIterator[Result]:
    """A runner that goes silent, with every setting as it is by default."""
    async with serve(place, "lost") as client:
        await client.create_project("digits")
        runner = Runner(client, "one")
        job = await client.submit("digits")
        await runner.until_assigned()
        await runner.work(wait=0.0)
        began = time.perf_counter()
        other = Runner(client, "other")
        await other.until_assigned()
        assert other.assignment is not None, "it waited for a job"
        assert other.assignment.job_uid == job.uid
        name = f"{place.kind}: silence of a runner to another has its job"
        yield Result(name=name, value=time.perf_counter() - began, unit="s", bar="<= 30")
