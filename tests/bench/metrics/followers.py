"""How long a line that is stored takes to its followers, beside a bare stream that sends as many messages.

Followers look at as little as they can: they share the machine with the server.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from sihlai.logs.v1 import log_service_pb2

from services.chassis.leash import on_leash
from tests.bench.metrics.fan_out import SERVICE
from tests.bench.metrics.load import Sender, line_request, requests_of
from tests.bench.metrics.process import cpu_seconds, half_the_processor
from tests.bench.metrics.stage import Stage
from tests.bench.result import Result
from tests.metrics.client import CHANNEL_OPTIONS, Metrics, until
from tests.metrics.job_book import Job, submit
from tests.tokens import aio_carrying

FOLLOW_SECONDS = 8.0
BATCHES_PER_SECOND = 5
FEW = 10
CHANNELS = 4
CAUGHT_UP = b"\x1a\x00"
"""Field 3 of TailLogsResponse, empty."""
SEQUENCE = re.compile(rb"sequence (\d{6})")
Readers = list["asyncio.Task[None]"]


def run(stage: Stage) -> Iterator[Result]:
    """Ten, a thousand, a thousand with half of the processor gone, and ten while points come in at full speed."""
    server, many = stage.server, stage.followers
    few_bare, many_bare = bare(stage.folder, FEW), bare(stage.folder, many)
    yield _result(f"bare stream to {FEW} followers, p99", few_bare, None, None)
    yield _result(f"bare stream to {many} followers, p99", many_bare, None, None)
    few = asyncio.run(follow(server, submit(stage.book), FEW))
    yield _result(f"line stored to follower, {FEW} followers, p99", few, "< 0.05", few_bare)
    began, cpu = time.perf_counter(), cpu_seconds(server)
    found = asyncio.run(follow(server, submit(stage.book), many))
    share = (cpu_seconds(server) - cpu) / (time.perf_counter() - began)
    yield _result(f"line stored to follower, {many} followers, p99", found, "< 0.5", many_bare)
    yield Result(name="the same, share of one core that the server took", value=share, unit="1")
    with half_the_processor():
        half_bare = bare(stage.folder, many)
        half = asyncio.run(follow(server, submit(stage.book), many))
    yield _result(f"bare stream to {many} followers, half of the processor gone, p99", half_bare, None, None)
    yield _result(f"line stored to follower, {many} followers, half gone, p99", half, "< 1", half_bare)
    with full_ingest(stage):
        busy = asyncio.run(follow(server, submit(stage.book), FEW))
    yield _result(f"line stored to follower, {FEW} followers, while ingesting, p99", busy, None, few_bare)


def _result(name: str, seconds: Sequence[float], bar: str | None, beside: Sequence[float] | None) -> Result:
    p99 = float(np.quantile(seconds, 0.99))
    ratio = None if beside is None else p99 / float(np.quantile(beside, 0.99))
    return Result(name=name, value=p99, unit="s", bar=bar, ratio=ratio)


async def follow(server: Metrics, job: Job, followers: int) -> list[float]:
    """Seconds from the acknowledgement of a line to its arrival at each follower."""
    request = log_service_pb2.TailLogsRequest(job=job.name, follow=True).SerializeToString()
    senders: list[Sender] = []

    async def begin() -> None:
        sender = await asyncio.to_thread(Sender, server)
        senders.append(sender)
        await asyncio.to_thread(sender.open, server, 1, job, lines=True)

    async def send(sequence: int) -> None:
        senders[0].send([line_request(sequence, 1, text=f"sequence {sequence:06d}")])

    arrivals = await _arrivals(
        server.address,
        "/sihlai.logs.v1.LogService/TailLogs",
        request,
        CAUGHT_UP,
        followers,
        begin,
        send,
        token=server.access,
    )
    sender = senders[0]
    sender.close()
    # One acknowledgement can stand for several messages.
    acknowledged = sender.stored_at.items()
    stored_at = {s: min(at for (_, last), at in acknowledged if last >= s) for s, _ in arrivals}
    return [max(0.0, at - stored_at[sequence]) for sequence, at in arrivals]


def bare(folder: Path, followers: int) -> list[float]:
    """The same from a server that does nothing but send: seconds from the call that tells a message to its arrivals."""
    address_file = folder / "fan-out-address"
    address_file.unlink(missing_ok=True)
    process = subprocess.Popen(on_leash([sys.executable, "-m", "tests.bench.metrics.fan_out", str(address_file)]))
    try:
        until(address_file.exists, "the bare server's address", 30)
        return asyncio.run(_bare(address_file.read_text(), followers))
    finally:
        process.kill()
        process.wait()


async def _bare(address: str, followers: int) -> list[float]:
    told_at: dict[int, float] = {}
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        tell = channel.unary_unary(f"/{SERVICE}/Tell", request_serializer=bytes, response_deserializer=bytes)

        async def begin() -> None:
            await channel.channel_ready()

        async def send(sequence: int) -> None:
            told_at[sequence] = time.perf_counter()
            await tell(b"sequence %06d" % sequence + bytes(80))

        arrivals = await _arrivals(address, f"/{SERVICE}/Follow", b"", b"", followers, begin, send)
    return [at - told_at[sequence] for sequence, at in arrivals]


async def _arrivals(
    address: str,
    method: str,
    request: bytes,
    ready: bytes,
    followers: int,
    begin: Callable[[], Awaitable[None]],
    send: Callable[[int], Awaitable[None]],
    *,
    token: str = "",
) -> list[tuple[int, float]]:
    """Which message arrived when, at any follower. A follower is there once it got an answer that ends with `ready`."""
    arrivals: list[tuple[int, float]] = []
    there = asyncio.Semaphore(0)
    opened = [grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for _ in range(CHANNELS)]
    channels = [aio_carrying(channel, token) for channel in opened]

    async def read(channel: grpc.aio.Channel) -> None:
        stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            method, request_serializer=bytes, response_deserializer=bytes
        )
        counted = False
        async for data in stream(request):
            now = time.perf_counter()
            arrivals.extend((int(sequence), now) for sequence in SEQUENCE.findall(data))
            if not counted and ready in data:
                counted = True
                there.release()

    readers = [asyncio.create_task(read(channels[number % CHANNELS])) for number in range(followers)]
    for _ in range(followers):
        await asyncio.wait_for(there.acquire(), 120)
    await begin()
    batches = int(FOLLOW_SECONDS * BATCHES_PER_SECOND)
    for sequence in range(1, batches + 1):
        await send(sequence)
        await asyncio.sleep(1 / BATCHES_PER_SECOND)
    await asyncio.to_thread(until, lambda: len(arrivals) == followers * batches, "all lines to arrive", 60)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for channel in channels:
        await channel.close()
    return arrivals


@contextmanager
def full_ingest(stage: Stage) -> Iterator[None]:
    """Points come in as fast as one stream can for as long as the context lasts."""
    sender, job = Sender(stage.server), submit(stage.book)
    sender.open(stage.server, 1, job)
    ended = threading.Event()

    def write() -> None:
        first, messages = 1, 400
        while not ended.is_set():
            sender.send(requests_of(1, job, first, messages, 2_000))
            sender.wait_stored(1, first + messages - messages // 4)
            first += messages

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sender.close()
