"""One process of somebody who floods: `python -m tests.bench.flood.flooder FORM ADDRESS` with his token in the
environment; it ends with its standard input, and prints what it was answered as JSON.

`spin` in place of a form floods nobody: its second word is the share of a core that it takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
from google.rpc import error_details_pb2, status_pb2
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc

from tests.bench.scheduler.stage import SPEC
from tests.tokens import aio_carrying

TOKEN_VARIABLE = "FLOOD_TOKEN"
CONNECTIONS = 4
CALLS_EACH = 100
"""At once on each connection."""
NICENESS = 9
"""Whoever floods from another machine takes no core from the server and the others; here he would."""
IMPATIENT_SECONDS = 0.05
SPIN_SECONDS = 0.002

FIRST = job_service_pb2.GetJobRequest(name="projects/flooded/jobs/first")
Jobs = job_service_pb2_grpc.JobServiceStub


async def unary(jobs: Jobs, turn: int) -> None:
    """Reads, lists and submits."""
    if turn % 3 == 0:
        await jobs.SubmitJob(job_service_pb2.SubmitJobRequest(parent="projects/flooded", spec=SPEC))
    elif turn % 3 == 1:
        await jobs.ListJobs(job_service_pb2.ListJobsRequest(parent="projects/flooded"))
    else:
        await jobs.GetJob(FIRST)


async def streams(jobs: Jobs, turn: int) -> None:
    """Watches that are opened, and left with the first answer."""
    call = jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/flooded"))
    try:
        await call.read()
    finally:
        call.cancel()


async def impatient(jobs: Jobs, turn: int) -> None:
    """Reads whose caller does not wait for the answer."""
    await jobs.GetJob(FIRST, timeout=IMPATIENT_SECONDS)


async def mixed(jobs: Jobs, turn: int) -> None:
    """Calls and streams."""
    await (streams if turn % 2 else unary)(jobs, turn // 2)


FORMS: dict[str, Callable[[Jobs, int], Awaitable[None]]] = {
    each.__name__: each for each in (unary, streams, impatient, mixed)
}


async def flood(form: str, address: str) -> Counter[str]:
    """Call as fast as it goes until standard input ends; what came of it, by word."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    text = os.environ[TOKEN_VARIABLE]
    opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    channels = [aio_carrying(channel, text) for channel in opened]
    call, came_of, turns = FORMS[form], Counter[str](), iter(range(10**12))

    async def calling(jobs: Jobs) -> None:
        for turn in turns:
            try:
                await call(jobs, turn)
                came_of["answered"] += 1
            except grpc.aio.AioRpcError as error:
                came_of[_word(error)] += 1

    await asyncio.gather(*(channel.channel_ready() for channel in opened))
    print("ready", flush=True)
    tasks = [asyncio.create_task(calling(Jobs(channel))) for channel in channels for _ in range(CALLS_EACH)]
    await asyncio.to_thread(sys.stdin.read)
    found = Counter(came_of)
    for task in tasks:
        task.cancel()
    return found


def _word(error: grpc.aio.AioRpcError) -> str:
    """The code; of refusals also whether they say when to come back."""
    code = error.code().name
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return code
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    told = any(
        detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status_pb2.Status.FromString(details).details
    )
    return "refused" if told else f"{code} without RetryInfo"


def spin(share: float) -> None:
    """Take so much of a core, and call nobody."""
    print("ready", flush=True)
    began, taken = time.monotonic(), time.process_time()
    while True:
        while time.process_time() - taken < share * (time.monotonic() - began):
            pass
        time.sleep(SPIN_SECONDS)


def main() -> None:
    os.nice(NICENESS)
    form, word = sys.argv[1:]
    if form == "spin":
        spin(float(word))
    came_of = asyncio.run(flood(form, word))
    print(json.dumps(came_of), flush=True)
    os._exit(0)  # thousands of calls are not waited for


if __name__ == "__main__":
    main()
