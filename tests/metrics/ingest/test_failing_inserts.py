"""Inserts that fail: whoever was told that a message is stored finds it there, once, whatever happened to others.

The embedded engine, as it is by default, with many writers on one stream: each insert holds messages of several.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2

from services.chassis.errors import Reason
from tests.metrics.client import (
    LINES,
    WAIT_SECONDS,
    IngestClient,
    Metrics,
    columns,
    definition,
    reason_of,
    texts,
    until,
)
from tests.metrics.job_book import Job, Scheduler, submit

WRITERS = 8
MESSAGES = 60
IN_FLIGHT_MAX = 20
DISK_BYTES = 48 * 2**20
FREE_BYTES_MIN = 4 * 2**20
POINTS = 5_000
LOSS = "digits/train/loss"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


def failing_service(folder: Path, scheduler: Scheduler, *, share: float, seed: int) -> Metrics:
    flags = (*("--block-seconds", "0.01"), *("--ended-wait-seconds", "5"))
    program = ("tests.metrics.failing_service", str(share), str(seed))
    return Metrics(folder, scheduler.address, flags, program=program)


class LineWriter:
    """One writer of lines among those of a stream: opens again whenever it is refused, and sends what is not stored."""

    def __init__(self, server: Metrics, client: IngestClient, job: Job, number: int) -> None:
        self.server, self.client, self.job, self.number = server, client, job, number
        self.sent = 0
        self.acknowledged = 0
        self.reopened = 0
        self.open()

    def open(self) -> None:
        token = self.server.token(self.job.uid)
        stored = self.client.open(self.number, token, kind=LINES, first_sequence=self.acknowledged + 1)
        assert stored >= self.acknowledged, "an acknowledged message is gone"
        self.sent = self.acknowledged = stored

    def turn(self) -> None:
        """Send the next message, or open again."""
        client = self.client
        self.acknowledged = max(self.acknowledged, client.stored.get(self.number, 0))
        if (refusal := client.refusals.get(self.number)) is not None:
            assert reason_of(refusal) is Reason.METRICS_STORE_UNAVAILABLE
            assert not refusal.permanent
            self.reopened += 1
            self.open()
        elif self.sent < MESSAGES and self.sent - self.acknowledged < IN_FLIGHT_MAX:
            self.sent += 1
            client.lines(self.number, self.sent, self.sent, [f"line {self.sent}"])

    @property
    def done(self) -> bool:
        return self.acknowledged == MESSAGES


def test_no_acknowledged_message_is_lost_or_doubled_when_inserts_fail(scheduler: Scheduler, tmp_path: Path) -> None:
    server = failing_service(tmp_path, scheduler, share=0.3, seed=1)
    server.start()
    client = server.ingest()
    jobs = [submit(scheduler.book) for _ in range(WRITERS)]
    writers = [LineWriter(server, client, job, number) for number, job in enumerate(jobs, 1)]
    chance = random.Random(1)

    def all_done() -> bool:
        for writer in chance.sample(writers, len(writers)):
            writer.turn()
        return all(writer.done for writer in writers)

    until(all_done, "all messages to be stored", 60)
    assert client.error is None, "a stream outlives what is refused of its writers"
    until(lambda: server.log_text().count("insert was made to fail") >= 3, "the log to tell of it")
    assert sum(writer.reopened for writer in writers) >= 3
    for writer in writers:
        client.finish(writer.number, MESSAGES)
        request = log_service_pb2.TailLogsRequest(job=writer.job.name, follow=True)
        scheduler.book.end(writer.job.uid)
        responses = list(server.logs().TailLogs(request, timeout=WAIT_SECONDS))
        assert texts(responses) == [f"line {number}" for number in range(1, MESSAGES + 1)]
        assert responses[-1].ended.logs_complete
    assert server.stop() == 0


def test_before_the_disk_is_full_merges_pause_and_inserts_are_refused_and_both_go_on_when_there_is_room(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine does not let tests mount a small disk")
    flags = (
        *("--block-seconds", "0.01"),
        *("--points-max", "150000"),
        *("--disk-free-bytes-min", str(FREE_BYTES_MIN)),
        *("--merge-free-bytes-min", str(3 * FREE_BYTES_MIN)),
        *("--disk-look-seconds", "0.05"),
    )
    server = Metrics(tmp_path / "server", scheduler.address, flags, f"chdb://{disk}/data")
    try:
        server.start()
        job = submit(scheduler.book)
        client = server.ingest()
        chance = random.Random(3)
        stored = open_points(client, server, job)
        filler = disk / "filler"
        filler.write_bytes(bytes(DISK_BYTES // 2))
        while 1 not in client.refusals:
            assert stored * POINTS * 16 < DISK_BYTES, "the disk was never full"
            stored += 1
            send_points(client, job, stored, chance)
            client.wait(lambda stored=stored: 1 in client.refusals or client.stored[1] >= stored, "an answer")
        stored = client.stored[1]
        assert reason_of(client.refusals[1]) is Reason.METRICS_STORE_UNAVAILABLE
        assert "disk_free_bytes_min" in client.refusals[1].message
        assert "make room" in client.refusals[1].message
        until(lambda: "merges_paused" in server.log_text(), "merges to pause")
        assert "merges_resumed" not in server.log_text()
        filler.unlink()
        until(lambda: "merges_resumed" in server.log_text(), "merges to go on")
        again = open_points(client, server, job)
        assert again >= stored
        for sequence in range(again + 1, again + 4):
            send_points(client, job, sequence, chance)
        client.finish(1, again + 3)
        assert stored_steps(server, job, again + 4) == list(range(POINTS, (again + 4) * POINTS))
    finally:
        server.kill()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def send_points(client: IngestClient, job: Job, sequence: int, chance: random.Random) -> None:
    steps = range(sequence * POINTS, (sequence + 1) * POINTS)
    client.points(1, sequence, columns(job.uid, LOSS, steps, [chance.random() for _ in steps]))


def stored_steps(server: Metrics, job: Job, sequences: int) -> list[int]:
    found: list[int] = []
    for sequence in range(0, sequences, 10):
        first, last = sequence * POINTS, (sequence + 10) * POINTS - 1
        request = metrics_service_pb2.QuerySeriesRequest(job=job.name, axis_min=first, axis_max=last)
        (series,) = server.metrics().QuerySeries(request).series
        assert not series.truncated
        found += series.points.steps
    return found


def open_points(client: IngestClient, server: Metrics, job: Job) -> int:
    return client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)])
