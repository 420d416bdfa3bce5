"""Tails and watches of a job that is written to, cut again and again: each goes on with its cursor."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.stand import SETTLE_SECONDS, Stand, stand
from tests.metrics.client import CHANNEL_OPTIONS, until
from tests.metrics.followers import break_off_and_come_back
from tests.metrics.job_book import Job
from tests.relay import Relay
from tests.tokens import carrying

FOLLOWERS = 10
RECONNECTS_A_FOLLOWER = 10
CUTS_BETWEEN_KILLS = 3
LIFE_SECONDS = (0.02, 0.4)
"""How long a connection of a follower is left alone."""
PAUSE_SECONDS = 0.02
CALL_SECONDS = 30.0
T = TypeVar("T")


class Cutter:
    """A relay before the service, in a loop of its own thread."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._relay = Relay(port)
        self._do(self._relay.open())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._relay.port}"

    def cut(self) -> None:
        """Every connection ends now."""
        self._do(self._relay.cut())
        self._do(self._relay.open())

    def close(self) -> None:
        self._do(self._relay.cut())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


class Follower:
    """One tail of lines, or one watch of points. Its calls are broken off by itself, by a cut, or by a death."""

    def __init__(self, address: str, job: Job, chance: random.Random, *, lines: bool, access: str) -> None:
        self.rows: list[int] = []
        self.reconnects = 0
        self.complete: bool | None = None
        self._address = address
        self._access = access
        self._job = job
        self._random = chance
        self._lines = lines
        self._cursor = ""
        self._answered = False
        """Whether this call was answered at all: only what was connected can be cut."""
        self._pause = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        while self.complete is None:
            self._answered = False
            with (
                carrying(grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS), self._access) as channel,
                contextlib.suppress(grpc.RpcError),
            ):
                self._read(channel)
            if self.complete is None:
                self.reconnects += self._answered
                self._pause.wait(PAUSE_SECONDS)

    def _read(self, channel: grpc.Channel) -> None:
        call = (self._tail if self._lines else self._watch)(channel)
        timer: threading.Timer | None = None
        if self.reconnects < RECONNECTS_A_FOLLOWER:
            timer = threading.Timer(self._random.uniform(*LIFE_SECONDS), call.cancel)
            timer.start()
        try:
            for response in call:
                self._answered = True
                self.rows += self._rows(response)
                self._cursor = response.cursor
                if response.HasField("ended"):
                    ended = response.ended
                    self.complete = ended.logs_complete if self._lines else ended.points_complete
        finally:
            if timer is not None:
                timer.cancel()

    def _tail(self, channel: grpc.Channel) -> Any:
        request = log_service_pb2.TailLogsRequest(job=self._job.name, follow=True, cursor=self._cursor)
        return log_service_pb2_grpc.LogServiceStub(channel).TailLogs(request, timeout=CALL_SECONDS)

    def _watch(self, channel: grpc.Channel) -> Any:
        request = metrics_service_pb2.WatchMetricsRequest(job=self._job.name, cursor=self._cursor)
        return metrics_service_pb2_grpc.MetricsServiceStub(channel).WatchMetrics(request, timeout=CALL_SECONDS)

    def _rows(self, response: Any) -> list[int]:
        if self._lines:
            return [int(line.line.removeprefix("row ")) for line in response.batch.lines]
        return [step for columns in response.points.columns for step in columns.steps]


@contextmanager
def open_stand(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=False) as made:
        yield made


def play(stand: Stand, folder: Path) -> Played:
    """A hundred reconnects and more while a job is written to, the service is killed and connections are cut."""
    (job,) = stand.write(clients=1)
    cutter = Cutter(int(stand.server.address.rpartition(":")[2]))
    chance = stand.random
    followers = [
        Follower(
            cutter.address,
            job,
            random.Random(chance.random()),
            lines=number % 2 == 0,
            access=stand.server.access,
        )
        for number in range(FOLLOWERS)
    ]
    goals = [FOLLOWERS * RECONNECTS_A_FOLLOWER * part // 3 for part in (1, 2, 3)]
    for goal in goals:
        for _ in range(CUTS_BETWEEN_KILLS):
            stand.wait(chance.uniform(*LIFE_SECONDS))
            cutter.cut()
        if goal != goals[-1]:
            stand.server.kill()
            stand.server.start()
        until(_reconnected(followers, goal), f"{goal} reconnects", SETTLE_SECONDS)
    findings, _ = settle(stand, [job])
    wanted = list(range(stand.wire_writers[0].rows)), list(range(stand.wire_writers[1].rows))
    for number, follower in enumerate(followers):
        name = f"follower {number} of {'points' if number % 2 else 'lines'}"
        if not follower.join(SETTLE_SECONDS):
            findings.append(f"{name} has not ended {SETTLE_SECONDS:.0f} s after its job")
        rows = wanted[0] if number % 2 else wanted[1]
        missing, twice = len(set(rows) - set(follower.rows)), len(follower.rows) - len(set(follower.rows))
        if follower.rows != rows:
            findings.append(
                f"{name}: of {len(rows)} rows {missing} are missing and {twice} came twice, or not in order"
            )
        if follower.complete is False:
            findings.append(f"{name} has everything, but is not told that it is complete")
    cutter.close()
    figures = {"reconnects": float(sum(follower.reconnects for follower in followers))}
    return Played(findings=findings, figures={**wire_figures(stand), **figures})


def _reconnected(followers: list[Follower], goal: int) -> Callable[[], bool]:
    return lambda: sum(follower.reconnects for follower in followers) >= goal


def break_off(stand: Stand, folder: Path) -> Played:
    """One tail that is broken off again and again, after every few messages, while the service is killed too."""
    breaks, kills = (12, 1) if stand.brief else (100, 8)
    seed = stand.random.randrange(2**32)
    asyncio.run(break_off_and_come_back(stand.server, stand.scheduler.book, breaks=breaks, kills=kills, seed=seed))
    return Played(findings=[], figures={"breaks": breaks, "kills": kills})


KIND = Kind(
    name="reconnecting",
    says="100 forced reconnects of tails and watches: cancelled, cut, and by SIGKILL of the service",
    share=0.06,
    stand=open_stand,
    play=play,
)
BREAKING_OFF = Kind(
    name="breaking-off",
    says="one tail, broken off 100 times after a few messages, cut or cancelled, over 8 SIGKILLs of the service",
    share=0,
    stand=open_stand,
    play=break_off,
)
