"""What followers cost the service in memory: one that reads nothing, and thousands that come and go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc

from tests import tokens
from tests.bench.metrics.process import memory_bytes, peak_memory
from tests.chaos.killing import over_http
from tests.chaos.memory import MIB, embedded, warm, within
from tests.chaos.round import Kind, Played
from tests.chaos.stand import Stand
from tests.metrics.client import CHANNEL_OPTIONS, LINES, Metrics, until
from tests.metrics.followers import memory_comes_back
from tests.metrics.job_book import submit

STALLED_FOLLOWER_BYTES_MAX = 64 * MIB
"""`follower_bytes_max` (1 MiB) of live rows, and a page of storage on its way in all its forms."""
LINE_BYTES = 10_000
LINES_A_MESSAGE = 50
AHEAD = 8
"""Messages that are sent and not stored."""
WAIT_SECONDS = 120.0
CHANNELS = 10
GROWTH_MAX = 1.1
SETTLE_SECONDS = 180.0


def stalled_follower(stand: Stand, folder: Path) -> Played:
    """Long lines for a follower that takes none of them; when it reads at last, it gets all of them in order.

    The same lines are written and read once before without it. The engine is a process of its own here: its peaks
    would hide what a follower takes.
    """
    messages = 160 if stand.brief else 600
    warm(stand)
    with peak_memory(stand.server) as without:
        _write_and_read(stand, messages, follow=False)
    with peak_memory(stand.server) as highest:
        read = _write_and_read(stand, messages, follow=True)
    played = within("a stalled follower", without[0], highest[0], STALLED_FOLLOWER_BYTES_MAX)
    findings = list(played.findings)
    if read != list(range(1, messages * LINES_A_MESSAGE + 1)):
        findings.append(f"a stalled follower got {len(read)} of {messages * LINES_A_MESSAGE} lines, or not in order")
    size = messages * LINES_A_MESSAGE * LINE_BYTES / MIB
    return Played(findings=findings, figures={**played.figures, "MiB of lines": size})


def _write_and_read(stand: Stand, messages: int, *, follow: bool) -> list[int]:
    """Line numbers as a tail has them, which is opened before the lines are written and read when all are stored."""
    job = submit(stand.scheduler.book)
    client = stand.server.ingest()
    client.open(1, stand.server.token(job.uid), kind=LINES)
    opened = grpc.insecure_channel(stand.server.address, options=CHANNEL_OPTIONS)
    with tokens.carrying(opened, stand.server.access) as channel:
        stub = log_service_pb2_grpc.LogServiceStub(channel)
        request = log_service_pb2.TailLogsRequest(job=job.name, follow=follow)
        tail = stub.TailLogs(request)
        until(lambda: next(tail).HasField("caught_up"), "the tail to be live")
        for sequence in range(1, messages + 1):
            first = (sequence - 1) * LINES_A_MESSAGE + 1
            texts = [f"{number:08d} ".ljust(LINE_BYTES, "x") for number in range(first, first + LINES_A_MESSAGE)]
            client.lines(1, sequence, first, texts)
            client.wait_stored(1, max(0, sequence - AHEAD), WAIT_SECONDS)
        client.wait_stored(1, messages, WAIT_SECONDS)
        read: list[int] = []
        deadline = time.monotonic() + WAIT_SECONDS
        for response in tail if follow else stub.TailLogs(request):
            read += [int(line.line[:8]) for line in response.batch.lines]
            if len(read) >= messages * LINES_A_MESSAGE or time.monotonic() > deadline:
                break
        tail.cancel()
    client.close()
    return read


def come_and_go(stand: Stand, folder: Path) -> Played:
    """Followers open; half of them cancel, the connections of the others are cut. What they took is given back."""
    followers = 300 if stand.brief else 5_000
    warm(stand)
    job = submit(stand.scheduler.book)
    client = stand.server.ingest()
    client.open(1, stand.server.token(job.uid), kind=LINES)
    client.lines(1, 1, 1, ["a line"])
    client.wait_stored(1, 1)
    asyncio.run(_open_and_leave(stand.server, job.name, max(50, followers // 20)))
    before = memory_bytes(stand.server)
    with peak_memory(stand.server) as highest:
        asyncio.run(_open_and_leave(stand.server, job.name, followers))
    bound = int(before * GROWTH_MAX)
    deadline = time.monotonic() + SETTLE_SECONDS
    until(lambda: memory_bytes(stand.server) <= bound or time.monotonic() > deadline, "memory", SETTLE_SECONDS + 10)
    client.close()
    played = within(f"{followers} followers that are gone", before, memory_bytes(stand.server), bound - before)
    figures = {**played.figures, "MiB before": before / MIB, "MiB with all": highest[0] / MIB, "followers": followers}
    return Played(findings=played.findings, figures=figures)


def waves(stand: Stand, folder: Path) -> Played:
    """Five times as many followers come and go, each time in every way: the last wave needs no more than the first."""
    followers, rounds = (300, 2) if stand.brief else (5_000, 4)
    memory_comes_back(stand.server, stand.scheduler.book, followers=followers, rounds=rounds, share=GROWTH_MAX)
    after = memory_bytes(stand.server) / MIB
    return Played(findings=[], figures={"MiB after": after, "followers": followers * (rounds + 1)})


async def _open_and_leave(server: Metrics, job: str, followers: int) -> None:
    # A pool of its own for each channel: else gRPC would share one connection, and none could be cut alone.
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    opened = [grpc.aio.insecure_channel(server.address, options=options) for _ in range(CHANNELS)]
    channels = [tokens.aio_carrying(channel, server.access) for channel in opened]
    request = log_service_pb2.TailLogsRequest(job=job, follow=True)
    calls = []
    for number in range(followers):
        stub = log_service_pb2_grpc.LogServiceStub(channels[number % CHANNELS])
        calls.append(stub.TailLogs(request, wait_for_ready=True))
        if len(calls) % 250 == 0:  # all at once would be a test of accepting
            await asyncio.gather(*(_until_caught_up(call) for call in calls[-250:]))
    await asyncio.gather(*(_until_caught_up(call) for call in calls[followers - followers % 250 :]))
    for number, call in enumerate(calls):
        if number % CHANNELS < CHANNELS // 2:
            call.cancel()
    for channel in channels:
        await channel.close(grace=None)


async def _until_caught_up(call: object) -> None:
    async for response in call:  # type: ignore[attr-defined]  # a call of grpc.aio
        if response.HasField("caught_up"):
            return
    raise AssertionError("the tail ended before it was live")


STALLED = Kind(
    name="stalled-tail",
    says="memory while a follower reads nothing",
    share=0,
    stand=over_http,
    play=stalled_follower,
)
COME_AND_GO = Kind(
    name="come-and-go",
    says="memory after 5,000 followers were opened, cancelled and cut",
    share=0,
    stand=embedded(),
    play=come_and_go,
)
WAVES = Kind(
    name="waves",
    says="memory after 5,000 followers have come and gone, and after four times as many more",
    share=0,
    stand=embedded(),
    play=waves,
)
