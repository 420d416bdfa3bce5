"""The same with a million jobs queued, and with ten thousand runners: minutes each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
from sihlai.runner.v1 import runner_admin_service_pb2, runner_admin_service_pb2_grpc
from sihlai.scheduler.v1 import job_service_pb2
from sqlalchemy import create_engine, insert, select, text

from services.scheduler.store import tables
from tests.bench.result import Result
from tests.bench.scheduler.calls import hand_over_seconds
from tests.bench.scheduler.stage import Client, Place, Runner, percentile, serve

JOBS = 1_000_000
JOBS_TOGETHER = 5_000
PROJECTS = 50
HAND_OVERS = 150
LISTS = 10
STOPS = 100
RUNNERS = 10_000
RUNNERS_TOGETHER = 100
SUBMITS_A_SECOND = 500
SECONDS = 60


async def million_jobs(place: Place) -> AsyncIterator[Result]:
    """Hand-overs with a million jobs queued, beside the same with none; stops beside ten lists of them."""
    async with serve(place, "million") as client:
        await client.create_project("digits")
        before = await hand_over_seconds(client, "digits", HAND_OVERS)
        for number in range(PROJECTS):
            await client.create_project(f"full{number}")
            await client.submit(f"full{number}")
        await asyncio.to_thread(_fill, client.database_url)
    async with serve(place, "million", keeps=True) as client:
        after = await hand_over_seconds(client, "digits", HAND_OVERS)
        for share, seconds in after.items():
            name = f"{place.kind}: the same with {JOBS} jobs queued, p{share * 100:g}, of without"
            ratio = seconds / before[share]
            yield Result(name=name, value=seconds * 1_000, unit="ms", bar="ratio <= 1.5", ratio=ratio)
        yield await _stops_beside_lists(place, client)


def _fill(url: str) -> None:
    """Queued jobs of the first one's kind, spread over the projects. No runner of the benchmark could serve them."""
    engine = create_engine(url)
    jobs, counters = tables.jobs, tables.counters
    with engine.connect() as connection:
        query = select(jobs).where(jobs.c.project_id.like("full%"))
        samples = [dict(row._mapping) for row in connection.execute(query)]
        revision = connection.execute(select(counters.c.value).where(counters.c.name == "revision")).scalar_one()
    numbers = iter(range(JOBS))
    while rows := [
        {
            **samples[number % len(samples)],
            "uid": f"{number:032x}",
            "job_id": f"filled-{number}",
            "sequence": revision + number + 1,
            "revision": revision + number + 1,
            "needs_key": "8/80/NEVER",
        }
        for number, _ in zip(numbers, range(JOBS_TOGETHER), strict=False)
    ]:
        with engine.begin() as connection:
            connection.execute(insert(jobs), rows)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE counters SET value = :last WHERE name = 'revision'"), {"last": revision + JOBS + 1}
        )
    engine.dispose()


async def _stops_beside_lists(place: Place, client: Client) -> Result:
    listing = [asyncio.ensure_future(_list_for_ever(client, by_label=number % 2 == 0)) for number in range(LISTS)]
    runner, taken = Runner(client, "one"), []
    try:
        for _ in range(STOPS):
            waiting = asyncio.ensure_future(runner.until_assigned())
            await client.submit("digits")
            await waiting
            working = asyncio.ensure_future(runner.until_stopped())
            await asyncio.sleep(0.05)
            assert runner.assignment is not None, "it has a job"
            began = time.perf_counter()
            await client.stop(runner.assignment.job)
            await working
            taken.append(time.perf_counter() - began)
            await runner.end("ATTEMPT_OUTCOME_STOPPED")
    finally:
        for each in listing:
            each.cancel()
        await asyncio.gather(*listing, return_exceptions=True)
    name = f"{place.kind}: stop to the runner is told, beside {LISTS} lists of {JOBS} jobs, p99"
    return Result(name=name, value=percentile(taken, 0.99) * 1_000, unit="ms", bar="< 100")


async def _list_for_ever(client: Client, *, by_label: bool) -> None:
    """Page after page of all jobs; or by a label that none has, so that every one of them is looked at."""
    request = job_service_pb2.ListJobsRequest(parent="projects/-", page_size=1_000)
    if by_label:
        request.filter.labels["team"] = "nobody"
    while True:
        request.page_token = (await client.jobs.ListJobs(request)).next_page_token


async def many_runners(place: Place) -> AsyncIterator[Result]:
    """So many idle runners for a minute, beside submits: none may be lost."""
    async with serve(place, "many") as client:
        for number in range(8):
            await client.create_project(f"p{number}")
        runners = [Runner(client, f"r{number}") for number in range(RUNNERS)]
        calls = [0]
        running = []
        for start in range(0, RUNNERS, RUNNERS_TOGETHER):
            part = runners[start : start + RUNNERS_TOGETHER]
            running += [asyncio.ensure_future(_idle_for_ever(runner, calls)) for runner in part]
            await asyncio.sleep(0.2)
        began, submitted, calls[0] = time.perf_counter(), 0, 0
        lost = 0
        while (passed := time.perf_counter() - began) < SECONDS:
            wanted = min(round(passed * SUBMITS_A_SECOND) - submitted, 64)
            if wanted > 0:
                await asyncio.gather(*(client.submit(f"p{n % 8}") for n in range(wanted)))
                submitted += wanted
            else:
                await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
        lost = await _lost(client)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        name = f"{place.kind}: {RUNNERS} runners beside submits"
        yield Result(name=f"{name}, falsely lost", value=lost, unit="runners", bar="<= 0")
        yield Result(name=f"{name}, submits", value=submitted / seconds, unit="1/s", bar=">= 475")
        yield Result(name=f"{name}, calls of runners", value=calls[0] / seconds, unit="1/s")


async def _idle_for_ever(runner: Runner, calls: list[int]) -> None:
    """Idle, or at work on what it got, call after call, as an agent does it."""
    pause_seconds = 1.0
    while True:
        try:
            if runner.assignment is None:
                answer = await runner.call(idle={}, wait=17.5)
                if answer.run.HasField("assignment"):
                    runner.assignment = answer.run.assignment
            else:
                await runner.work(wait=8.0)
            calls[0] += 1
        except grpc.aio.AioRpcError:
            await asyncio.sleep(pause_seconds)


async def _lost(client: Client) -> int:
    stub = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(client.channel)
    lost, token = 0, ""
    while True:
        request = runner_admin_service_pb2.ListRunnersRequest(page_size=1_000, page_token=token)
        page = await stub.ListRunners(request)
        lost += sum(runner.state == runner_admin_service_pb2.RUNNER_STATE_LOST for runner in page.runners)
        token = page.next_page_token
        if not token:
            return lost
