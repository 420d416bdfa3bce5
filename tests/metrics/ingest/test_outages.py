"""Outages: the server is killed midway, again and again, or stopped; the scheduler goes away and comes back.

What was acknowledged is there, nothing is there twice, and nothing that breaks off looks like an end.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import Reason, SihlaiError, Unavailable
from tests.metrics.client import (
    LINES,
    WAIT_SECONDS,
    IngestClient,
    Metrics,
    columns,
    definition,
    refused,
    tail_all,
    texts,
    until,
)
from tests.metrics.job_book import Job, Scheduler, submit

LOSS = "digits/train/loss"
KILLS = 3
IN_FLIGHT_MAX = 60
LINES_A_MESSAGE = 20
POINTS_A_MESSAGE = 500


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.fixture(scope="module")
def server(scheduler: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    flags = (
        *("--block-seconds", "0.05"),
        *("--block-rows", "3000"),
        *("--ended-wait-seconds", "5"),
        *("--job-fresh-seconds", "0"),
        *("--scheduler-seconds", "1"),
    )
    server = Metrics(tmp_path_factory.mktemp("killed"), scheduler.address, flags)
    server.start()
    yield server
    assert server.stop() == 0, server.log_text()[-3000:]


class Spool:
    """A runner in short: numbers messages, sends them until they are acknowledged, goes on after every outage."""

    def __init__(self, server: Metrics, job: Job) -> None:
        self._server = server
        self._job = job
        self.acknowledged = {1: 0, 2: 0}
        self.streams = 0
        self.last: int | None = None
        """The last message; unknown while it still writes."""

    def ship(self) -> None:
        """Send points (writer 1) and lines (writer 2) up to the last message, and their finish."""
        while True:
            client = self._server.ingest()
            self.streams += 1
            try:
                self._ship(client)
            except SihlaiError:
                continue
            finally:
                client.close()
            return

    def _ship(self, client: IngestClient) -> None:
        token = self._server.token(self._job.uid)
        series = [definition(self._job.uid, LOSS)]
        stored = {
            1: client.open(1, token, first_sequence=self.acknowledged[1] + 1, series=series),
            2: client.open(2, token, first_sequence=self.acknowledged[2] + 1, kind=LINES),
        }
        for writer, sequence in stored.items():
            assert sequence >= self.acknowledged[writer], "an acknowledged message is gone"
        sequence = min(stored.values())
        while self.last is None or sequence < self.last:
            sequence += 1
            self._send(client, sequence, stored)
            self.acknowledged |= client.stored
        for writer in (1, 2):
            client.wait_stored(writer, self.last)
            self.acknowledged[writer] = self.last
            client.finish(writer, self.last)

    def _send(self, client: IngestClient, sequence: int, stored: dict[int, int]) -> None:
        # Never more than this ahead of what is stored: the test shall end some time.
        client.wait(lambda: sequence - client.stored[1] < IN_FLIGHT_MAX, "room")
        if sequence > stored[1]:
            steps = range((sequence - 1) * POINTS_A_MESSAGE, sequence * POINTS_A_MESSAGE)
            client.points(1, sequence, columns(self._job.uid, LOSS, steps, [0.5] * len(steps)))
        if sequence > stored[2]:
            first = (sequence - 1) * LINES_A_MESSAGE + 1
            client.lines(2, sequence, first, [f"line {number}" for number in range(first, first + LINES_A_MESSAGE)])


class PatientTail:
    """Follows across restarts with its cursor."""

    def __init__(self, server: Metrics, job: Job) -> None:
        self.lines: list[str] = []
        self.ended: log_service_pb2.LogEnded | None = None
        self._server = server
        self._job = job
        self._cursor = ""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while self.ended is None:
            with contextlib.suppress(grpc.RpcError):
                request = log_service_pb2.TailLogsRequest(job=self._job.name, follow=True, cursor=self._cursor)
                for response in self._server.logs().TailLogs(request, timeout=60):
                    self.lines += [line.line for line in response.batch.lines]
                    self._cursor = response.cursor
                    if response.HasField("ended"):
                        self.ended = response.ended


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_nothing_is_lost_and_nothing_doubled_when_the_server_is_killed_midway(
    server: Metrics, scheduler: Scheduler
) -> None:
    job = submit(scheduler.book)
    spool = Spool(server, job)
    tail = PatientTail(server, job)
    shipping = in_background(spool.ship)
    chance = random.Random(7)
    for _ in range(KILLS):
        goal = spool.acknowledged[1] + IN_FLIGHT_MAX
        until(lambda goal=goal: spool.acknowledged[1] >= goal, f"message {goal}")
        # Not only between two acknowledgements, but anywhere in an insert.
        threading.Event().wait(chance.uniform(0, 0.05))
        server.kill()
        server.start()
    until(lambda: spool.streams > KILLS, "the last stream")
    spool.last = last = spool.acknowledged[1] + 2 * IN_FLIGHT_MAX
    shipping.join(WAIT_SECONDS)
    assert not shipping.is_alive()
    scheduler.book.end(job.uid)
    until(lambda: tail.ended is not None, "the tail to end")
    assert tail.ended is not None
    assert tail.ended.logs_complete
    every_line = [f"line {number}" for number in range(1, last * LINES_A_MESSAGE + 1)]
    assert tail.lines == every_line
    assert texts(tail_all(server.logs(), job)) == every_line
    assert stored_steps(server, job, last) == list(range(last * POINTS_A_MESSAGE))


def stored_steps(server: Metrics, job: Job, last: int) -> list[int]:
    found: list[int] = []
    for first in range(0, last * POINTS_A_MESSAGE, 100_000):
        request = metrics_service_pb2.QuerySeriesRequest(job=job.name, axis_min=first, axis_max=first + 99_999)
        (series,) = server.metrics().QuerySeries(request).series
        assert not series.truncated
        found += series.points.steps
    return found


def test_an_orderly_stop_acknowledges_what_it_has_and_says_that_it_goes(server: Metrics, scheduler: Scheduler) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    sent = itertools.count(1)
    for sequence in itertools.islice(sent, 50):
        client.points(1, sequence, columns(job.uid, LOSS, [sequence], [1.0]))
    client.wait_stored(1, 1)
    assert server.process is not None
    server.process.terminate()
    assert client.wait_error().reason is Reason.SERVER_STOPPING
    assert client.going_away
    assert server.process.wait(WAIT_SECONDS) == 0
    server.start()
    again = server.ingest()
    stored = again.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    assert stored == client.stored[1]
    again.close()


def test_a_tail_that_the_stop_breaks_off_has_not_ended(server: Metrics, scheduler: Scheduler) -> None:
    job = submit(scheduler.book)
    request = log_service_pb2.TailLogsRequest(job=job.name, follow=True)
    responses = iter(server.logs().TailLogs(request, timeout=WAIT_SECONDS))
    assert next(responses).HasField("caught_up")
    assert server.process is not None
    server.process.terminate()
    with pytest.raises(grpc.RpcError) as raised:
        list(responses)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(WAIT_SECONDS) == 0
    server.start()


def test_with_the_scheduler_away_a_tail_stays_open_and_ends_when_it_is_back(
    server: Metrics, scheduler: Scheduler
) -> None:
    job = submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), kind=LINES)
    client.lines(1, 1, 1, ["before"])
    client.wait_stored(1, 1)
    tail = PatientTail(server, job)
    until(lambda: tail.lines == ["before"], "the first line")
    scheduler.stop()
    client.lines(1, 2, 2, ["while it is away"])
    client.finish(1, 2)
    until(lambda: len(tail.lines) == 2, "the second line")
    scheduler.book.end(job.uid)
    assert tail.ended is None
    scheduler.start()
    until(lambda: tail.ended is not None, "the end")
    assert tail.lines == ["before", "while it is away"]
    client.close()


def test_with_the_scheduler_away_the_series_come_alone_and_names_hold_for_a_while(
    server: Metrics, scheduler: Scheduler
) -> None:
    job, other = submit(scheduler.book), submit(scheduler.book)
    client = server.ingest()
    client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
    client.points(1, 1, columns(job.uid, LOSS, range(10), [1.0] * 10))
    client.wait_stored(1, 1)
    until(lambda: answers(server, job), "the scheduler to be asked")
    scheduler.stop()
    response = compare(server, job)
    assert response.configurations_missing
    assert not response.differences
    assert response.jobs[0].state == job_pb2.JOB_STATE_UNSPECIFIED
    assert sum(response.jobs[0].curves[0].buckets.counts) == 10
    with refused() as errors:
        compare(server, other)
    assert isinstance(errors[0], Unavailable)
    assert errors[0].reason is Reason.SERVICE_UNAVAILABLE
    assert dict(errors[0].metadata) == {"service": "scheduler"}
    scheduler.start()
    until(lambda: answers(server, other), "the scheduler to be asked again")
    client.close()


def compare(server: Metrics, job: Job) -> metrics_service_pb2.CompareJobsResponse:
    selector = metrics_service_pb2.SeriesSelector(names=[LOSS])
    return server.metrics().CompareJobs(metrics_service_pb2.CompareJobsRequest(jobs=[job.name], selector=selector))


def answers(server: Metrics, job: Job) -> bool:
    try:
        return not compare(server, job).configurations_missing
    except grpc.RpcError:
        return False
