"""What others notice of one user who floods the scheduler: `python -m tests.bench.flood [--json]`.

Users with one connection each read and submit at a steady pace: alone, beside one user who calls as fast as several
processes can on several connections, and beside as many processes that take the same share of the cores and call
nobody. The last is the twin: on a few cores whoever floods takes them from everybody, however the server treats him.
The three are measured in turn, several times, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc

from tests import tokens
from tests.bench.flood.flooder import FORMS, TOKEN_VARIABLE
from tests.bench.result import Result
from tests.bench.scheduler.stage import SPEC, Client, Place, open_place, percentile, processor_seconds, serve

PROCESSES = 3
OTHERS = 5
PER_SECOND = 50
"""Reads, and as many submits, of the others together."""
SETTLE_SECONDS = 5.0
"""So long after its first call the flood has its place: its thousand calls have come in."""


@dataclass(kw_only=True)
class Noticed:
    """What the others noticed: seconds of each call, and what failed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"GetJob": [], "SubmitJob": []})
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Beside:
    """The processes beside: the share of a core that each took, and what the flood was answered."""

    share: float = 0.0
    came_of: Counter[str] = field(default_factory=Counter)


async def measured(
    stubs: list[job_service_pb2_grpc.JobServiceStub], seconds: float, per_second: float = PER_SECOND
) -> Noticed:
    """The others at their pace for so long. A call begins when its time has come, whatever became of those before."""
    noticed = Noticed()
    running: set[asyncio.Task[None]] = set()

    async def one(method: str, stub: job_service_pb2_grpc.JobServiceStub) -> None:
        began = time.perf_counter()
        try:
            if method == "GetJob":
                await stub.GetJob(job_service_pb2.GetJobRequest(name="projects/digits/jobs/first"), timeout=30)
            else:
                request = {"parent": "projects/digits", "spec": SPEC, "request_id": str(uuid.uuid4())}
                await stub.SubmitJob(job_service_pb2.SubmitJobRequest(**request), timeout=30)
        except grpc.aio.AioRpcError as error:
            noticed.failures[error.code().name] += 1
        noticed.seconds[method].append(time.perf_counter() - began)

    async def pace(method: str) -> None:
        began = time.perf_counter()
        for number in range(round(seconds * per_second)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.perf_counter()))
            task = asyncio.create_task(one(method, stubs[number % len(stubs)]))
            running.add(task)
            task.add_done_callback(running.discard)

    await asyncio.gather(pace("GetJob"), pace("SubmitJob"))
    await asyncio.gather(*running)
    return noticed


@contextlib.asynccontextmanager
async def processes(form: str, word: str, token: str) -> AsyncIterator[Beside]:
    """Processes beside the block; what became of them is known behind it."""
    command = [sys.executable, "-m", "tests.bench.flood.flooder", form, word]
    opened = [
        subprocess.Popen(  # noqa: ASYNC220 — it takes a moment
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {TOKEN_VARIABLE: token}, text=True
        )
        for _ in range(PROCESSES)
    ]
    beside = Beside()
    try:
        for each in opened:
            assert each.stdout is not None, "it is piped"
            await asyncio.to_thread(each.stdout.readline)  # it is ready
        await asyncio.sleep(SETTLE_SECONDS)
        began, before = time.monotonic(), sum(processor_seconds(each) for each in opened)
        yield beside
        taken = sum(processor_seconds(each) for each in opened) - before
        beside.share = taken / (time.monotonic() - began) / PROCESSES
        for each in opened:
            assert each.stdin is not None, "it is piped"
            each.stdin.close()
        if form != "spin":
            for each in opened:
                assert each.stdout is not None, "it is piped"
                beside.came_of += Counter(json.loads(await asyncio.to_thread(each.stdout.readline)))
    finally:
        for each in opened:
            each.kill()
            each.wait()


async def results(place: Place, form: str, *, seconds: float, rounds: int, per_second: float) -> AsyncIterator[Result]:
    """The others' median and 99th percentile, alone, beside the flood, and beside its twin."""
    async with (
        serve(place, f"flood_{form}", settings={}) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        stubs = await _others(client, stack)
        flooder = tokens.token(client.folder / "token.pem", "users/flooder")
        found: dict[str, list[Noticed]] = {"alone": [], "flood": [], "twin": []}
        came_of: Counter[str] = Counter()
        shares = []
        for _ in range(rounds):
            found["alone"].append(await measured(stubs, seconds, per_second))
            async with processes(form, client.address, flooder) as beside:
                found["flood"].append(await measured(stubs, seconds, per_second))
            came_of += beside.came_of
            shares.append(beside.share)
            async with processes("spin", str(beside.share), flooder):
                found["twin"].append(await measured(stubs, seconds, per_second))
    flooded = rounds * (seconds + SETTLE_SECONDS)
    for word, count in sorted(came_of.items()):
        yield Result(name=f"{form}: the flood is {word}", value=count / flooded, unit="1/s")
    yield Result(name=f"{form}: a process of the flood", value=statistics.mean(shares), unit="cores")
    for method in ("GetJob", "SubmitJob"):
        for share in (0.5, 0.99):
            times = {
                what: [percentile(each.seconds[method], share) * 1_000 for each in each_round]
                for what, each_round in found.items()
            }
            name = f"{form}: others' {method}, p{share * 100:g}"
            yield Result(name=f"{name}, alone", value=statistics.median(times["alone"]), unit="ms")
            twin = statistics.median(times["twin"])
            yield Result(name=f"{name}, beside the twin", value=twin, unit="ms")
            value = statistics.median(times["flood"])
            bar = "ratio <= 2" if share == 0.99 else None
            yield Result(name=f"{name}, of beside the twin", value=value, unit="ms", bar=bar, ratio=value / twin)
    failures = sum((each.failures for each in found["flood"]), Counter[str]())
    yield Result(name=f"{form}: others' calls that failed", value=failures.total(), unit="calls", bar="<= 0")


async def _others(client: Client, stack: contextlib.AsyncExitStack) -> list[job_service_pb2_grpc.JobServiceStub]:
    """Stubs of users with a connection each, and a job that all may read."""
    for project in ("digits", "flooded"):
        await client.create_project(project)
        request = {"parent": f"projects/{project}", "job_id": "first", "spec": SPEC}
        await client.jobs.SubmitJob(job_service_pb2.SubmitJobRequest(**request))
    stubs = []
    for number in range(OTHERS):
        text = tokens.token(client.folder / "token.pem", f"users/other{number}")
        opened = grpc.aio.insecure_channel(client.address, options=[("grpc.use_local_subchannel_pool", 1)])
        channel = await stack.enter_async_context(opened)
        stubs.append(job_service_pb2_grpc.JobServiceStub(tokens.aio_carrying(channel, text)))
    return stubs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line; else a table")
    parser.add_argument("--only", action="append", choices=list(FORMS), help="this form; may be given several times")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each of the three is measured a round")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    parser.add_argument(
        "--per-second", type=float, default=PER_SECOND, help="reads, and as many submits, of the others"
    )
    given = parser.parse_args()
    for form in given.only or FORMS:
        with tempfile.TemporaryDirectory() as folder, open_place("sqlite", Path(folder)) as place:
            for result in asyncio.run(_all(place, form, given)):
                print(result.line() if given.json else result.row(), flush=True)


async def _all(place: Place, form: str, given: argparse.Namespace) -> list[Result]:
    measuring = results(place, form, seconds=given.seconds, rounds=given.rounds, per_second=given.per_second)
    return [result async for result in measuring]


if __name__ == "__main__":
    main()
