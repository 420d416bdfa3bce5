"""What followers do to a service: they come in thousands and go away in every way, break off and come back, or stall.

The tests do it in short, `make chaos-metrics` at length.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc

from services.chassis.errors import SihlaiError
from tests.metrics.client import CHANNEL_OPTIONS, LINES, WAIT_SECONDS, IngestClient, Metrics, until
from tests.metrics.job_book import Job, JobBook, submit
from tests.relay import Relay, relay_to
from tests.tokens import aio_carrying, carrying

MANY_SECONDS = 120.0
IN_FLIGHT_MAX = 20
LINES_A_MESSAGE = 5


def resident_bytes(server: Metrics) -> int:
    """The memory of the service's process."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) * 1024


async def come_and_go(server: Metrics, job: Job, followers: int) -> None:
    """So many followers of a log come; a third cancel, a third close their connection, and of a third it is cut."""
    async with relay_to(int(server.address.rpartition(":")[2])) as relay:
        addresses = [server.address, server.address, f"127.0.0.1:{relay.port}"]
        opened = [grpc.aio.insecure_channel(address, options=_alone(n)) for n, address in enumerate(addresses)]
        channels = [aio_carrying(channel, server.access) for channel in opened]
        all_caught_up = asyncio.Event()
        calls, here = [], []

        async def read(channel: grpc.aio.Channel) -> None:
            request = log_service_pb2.TailLogsRequest(job=job.name, follow=True)
            call = log_service_pb2_grpc.LogServiceStub(channel).TailLogs(request, wait_for_ready=True)
            calls.append((channel, call))
            async for response in call:
                if response.HasField("caught_up"):
                    here.append(call)
                    if len(here) == followers:
                        all_caught_up.set()

        readers = [asyncio.create_task(read(channels[number % 3])) for number in range(followers)]
        caught_up = asyncio.create_task(all_caught_up.wait())
        done, _ = await asyncio.wait({caught_up, *readers}, timeout=MANY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert done == {caught_up}, f"{len(here)} are here, {len(done - {caught_up})} were refused"
        for channel, call in calls:
            if channel is channels[0]:
                call.cancel()
        await channels[1].close()
        await relay.cut()
        await asyncio.wait(readers, timeout=WAIT_SECONDS)
        for channel in channels:
            await channel.close()
        await asyncio.gather(*readers, return_exceptions=True)


def memory_comes_back(server: Metrics, book: JobBook, *, followers: int, rounds: int, share: float = 1.1) -> None:
    """Fail where the service needs more than `share` of the memory that it had after the first followers had gone."""
    job = submit(book)
    client = server.ingest()
    client.open(1, server.token(job.uid), kind=LINES)
    client.lines(1, 1, 1, ["one"])
    client.wait_stored(1, 1)
    asyncio.run(come_and_go(server, job, followers))
    before = resident_bytes(server)
    for _ in range(rounds):
        asyncio.run(come_and_go(server, job, followers))
    until(
        lambda: resident_bytes(server) <= share * before,
        f"{before} bytes again, {resident_bytes(server)} are in use",
        WAIT_SECONDS,
    )
    client.close()


class LineWriter:
    """A runner in short: numbers lines, sends them until they are stored, goes on after every outage, in a thread."""

    def __init__(self, server: Metrics, job: Job) -> None:
        self.last: int | None = None
        """The last message; unknown while it still writes."""
        self.stored = 0
        self._server = server
        self._job = job
        self.thread = threading.Thread(target=self._ship, daemon=True)
        self.thread.start()

    def lines(self) -> list[str]:
        """All that were written."""
        assert self.last is not None
        return [f"line {number}" for number in range(1, self.last * LINES_A_MESSAGE + 1)]

    def _ship(self) -> None:
        while True:
            client = self._server.ingest()
            try:
                self._write(client)
            except SihlaiError:
                continue
            finally:
                client.close()
            return

    def _write(self, client: IngestClient) -> None:
        sequence = client.open(1, self._server.token(self._job.uid), first_sequence=self.stored + 1, kind=LINES)
        while self.last is None or sequence < self.last:
            sequence += 1
            first = (sequence - 1) * LINES_A_MESSAGE + 1
            client.lines(1, sequence, first, [f"line {first + i}" for i in range(LINES_A_MESSAGE)])
            # Never far ahead of what is stored: the test shall end some time.
            client.wait(lambda sequence=sequence: sequence - client.stored[1] < IN_FLIGHT_MAX, "room")
            self.stored = client.stored[1]
        client.wait_stored(1, self.last)
        self.stored = self.last
        client.finish(1, self.last)


async def break_off_and_come_back(server: Metrics, book: JobBook, *, breaks: int, kills: int, seed: int) -> None:
    """Fail unless a tail that is broken off so often, in every way, sees each line once, in order, to the end.

    While it reads, lines are written, and the service is killed and started again so often.
    """
    chance = random.Random(seed)
    job = submit(book)
    writer = LineWriter(server, job)
    found: list[str] = []
    ended: list[log_service_pb2.LogEnded] = []
    kills_at = set(range(breaks // (kills + 1), breaks, breaks // (kills + 1))) if kills else set()
    async with relay_to(int(server.address.rpartition(":")[2])) as relay:
        cursor = ""
        for turn in itertools.count():
            if turn == breaks:
                writer.last = writer.stored + IN_FLIGHT_MAX + 1
            patience = chance.randrange(1, 4) if turn < breaks else None
            cursor = await _read(
                relay, job, cursor, patience, found, ended, access=server.access, cut=chance.random() < 0.5
            )
            if turn >= breaks and writer.stored == writer.last:
                await asyncio.to_thread(writer.thread.join, WAIT_SECONDS)
                book.end(job.uid)
            if ended:
                break
            if turn in kills_at:
                server.kill()
                # Not in a thread: the process would end with it.
                server.start()
    assert ended[0].logs_complete
    assert found == writer.lines()


async def _read(
    relay: Relay,
    job: Job,
    cursor: str,
    patience: int | None,
    found: list[str],
    ended: list[log_service_pb2.LogEnded],
    *,
    access: str,
    cut: bool,
) -> str:
    """Read on from a cursor until `patience` messages with lines have come; the cursor after what came."""
    opened = grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}", options=_alone(0))
    async with aio_carrying(opened, access) as channel:
        request = log_service_pb2.TailLogsRequest(job=job.name, follow=True, cursor=cursor)
        call = log_service_pb2_grpc.LogServiceStub(channel).TailLogs(request, timeout=WAIT_SECONDS)
        with contextlib.suppress(grpc.RpcError):
            async for response in call:
                cursor = response.cursor
                found += [line.line for line in response.batch.lines]
                if response.HasField("ended"):
                    ended.append(response.ended)
                if patience is None:
                    if response.HasField("heartbeat"):
                        break
                elif response.HasField("batch"):
                    patience -= 1
                    if patience == 0:
                        break
        if cut:
            await relay.cut()
            await relay.open()
        else:
            call.cancel()
    return cursor


@contextlib.contextmanager
def stalled(server: Metrics, job: Job, followers: int) -> Iterator[None]:
    """So many followers that read nothing after they have caught up, each with a filter of its own."""
    channels, calls = [], []
    for number in range(followers):
        channel = carrying(grpc.insecure_channel(server.address, options=_alone(number)), server.access)
        wanted = log_service_pb2.LogFilter(ranks=[0, number + 1])
        request = log_service_pb2.TailLogsRequest(job=job.name, follow=True, filter=wanted)
        call = log_service_pb2_grpc.LogServiceStub(channel).TailLogs(request)
        assert next(call).HasField("caught_up")
        channels.append(channel)
        calls.append(call)
    try:
        yield
    finally:
        for call, channel in zip(calls, channels, strict=True):
            call.cancel()
            channel.close()


def _alone(number: int) -> list[tuple[str, object]]:
    """Options of a channel that shares no connection with others of this process."""
    return [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("sihlai.number", number)]
