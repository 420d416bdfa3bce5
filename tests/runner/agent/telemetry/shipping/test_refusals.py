"""What metrics refuses of one writer, and how all others go on: the real shipper, the real service."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import series_pb2

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.journal import append_lines, notice
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.shipping.phase import TRANSITIONS, Event, Phase
from runner.agent.telemetry.shipping.shipper import Shipper, Token
from runner.agent.telemetry.shipping.writer import ShippingLimits
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk
from services.chassis.rpc import channel
from tests.chaos.audit import Stored, lines_of, points_of, stored_writers
from tests.chaos.stand import Stand, stand
from tests.chaos.wire_client import SERIES
from tests.metrics.job_book import Job, submit
from tests.runner.agent.recording import limits, until

LIMITS = ShippingLimits(
    reconnect_seconds_first=0.05,
    reconnect_seconds_max=0.2,
    set_aside_seconds=0.3,
    answer_seconds_max=60,
    token_renewal=timedelta(minutes=1),
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("stand"), random.Random(1), front=False) as made:
        yield made


@pytest.fixture
def disk() -> SpoolDisk:
    return SpoolDisk(limits(segment_bytes_max=2_000, batch_points_min=1))


def spool_of(metrics: Stand, folder: Path, disk: SpoolDisk, *, messages: int, open_: bool = False) -> tuple[Job, Spool]:
    """A spool with so many points and lines, each a message of its own."""
    job = submit(metrics.scheduler.book)
    key = AttemptKey(job_uid=job.uid, epoch=1)
    spool = Spool(folder / str(key), job=job.name, key=key, attempt=1, disk=disk)

    async def write() -> None:
        recorder = Recorder(spool, now_unix_us=lambda: 1_700_000_000_000_000, on_append=lambda: None)
        for step in range(messages):
            recorder.points({SERIES: 1.0}, step=step)
            recorder.line(f"line {step}")
            recorder.flush()
        if not open_:
            recorder.close()
        await recorder.written(20)

    asyncio.run(write())
    return job, spool


def ship(metrics: Stand, work: Callable[[Shipper], Awaitable[None]], ship_limits: ShippingLimits = LIMITS) -> None:
    async def run() -> None:
        stub = channel(metrics.server.address, token=lambda: metrics.server.runner_access, retry_attempts_max=1)
        shipper = Shipper(
            stub,
            limits=ship_limits,
            randomness=random.Random(0),
            now=lambda: datetime.now(UTC),
            on_change=lambda: None,
        )
        running = asyncio.create_task(shipper.run())
        try:
            await work(shipper)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await stub.close()

    asyncio.run(run())


def token(metrics: Stand, job: Job) -> Token:
    return Token(text=metrics.server.token(job.uid), expire_time=datetime.now(UTC) + timedelta(minutes=10))


def add(metrics: Stand, shipper: Shipper, job: Job, spool: Spool) -> None:
    shipper.add(spool)
    shipper.set_token(spool.key, token(metrics, job))


def stored_of(metrics: Stand, job: Job) -> tuple[Stored, Stored]:
    """Points, lines."""
    found = stored_writers(metrics, [job])
    return found[f"{job.uid}/1/0/points"], found[f"{job.uid}/1/0/lines"]


def lines_so_far(metrics: Stand, job: Job) -> list[str]:
    request = log_service_pb2.TailLogsRequest(job=job.name)
    responses = metrics.server.logs().TailLogs(request, timeout=20, wait_for_ready=True)
    return [line.line for response in responses for line in response.batch.lines]


def test_a_message_that_is_never_taken_is_left_out_counted_and_told_and_all_others_are_stored(
    metrics: Stand, tmp_path: Path, disk: SpoolDisk
) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=30, open_=True)
    other_job, other = spool_of(metrics, tmp_path, disk, messages=30)
    uneven = series_pb2.PointColumns(series_id=next(iter(spool.series)), steps=[1, 2], times_unix_us=[1], values=[1])

    def poison() -> None:
        sequence, _ = spool.points.next_numbers()
        spool.points.append(ingest.PointBatch(sequence=sequence, columns=[uneven]).SerializeToString(), rows=2)
        too_long = notice("x" * 70_000, 1)
        append_lines(spool.lines, too_long)

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, job, spool)
        add(metrics, shipper, other_job, other)
        disk.writing.post(poison)
        recorder = Recorder(spool, now_unix_us=lambda: 1_700_000_000_000_000, on_append=shipper.notify)
        for step in range(30, 40):
            recorder.points({SERIES: 1.0}, step=step)
            recorder.line(f"line {step}")
            recorder.flush()
        await until(lambda: spool.points.rows_dropped == 2 and spool.lines.rows_dropped == 1)
        recorder.close()
        await until(lambda: shipper.empty)

    ship(metrics, drain)
    points, lines = stored_of(metrics, job)
    assert points.gaps == ((31, 31),)
    assert points.finish == (41, 2)
    assert lines.gaps == ((31, 31),)
    assert lines.finish is not None
    assert lines.finish[1] == 1
    metrics.scheduler.book.end(job.uid)
    assert points_of(metrics.server, job)[0] == list(range(40))
    texts, _ = lines_of(metrics.server, job)
    assert [text for text in texts if text.startswith("line ")] == [f"line {step}" for step in range(40)]
    told = sorted(text for text in texts if "was never taken by metrics" in text)
    assert [text.split(" was never")[0] for text in told] == ["message 31 with 1 lines", "message 31 with 2 points"]
    assert "70000 characters" in told[0]
    assert "2 steps, 1 times and 1 values" in told[1]
    for stored in stored_of(metrics, other_job):
        assert (stored.gaps, stored.finish) == ((), (30, 0))


def test_an_opening_that_is_refused_sets_its_writer_aside_until_nobody_wants_it(
    metrics: Stand, tmp_path: Path, disk: SpoolDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=20, open_=True)
    spool.series[7] = series_pb2.SeriesDefinition(series_id=7, name="not its id")
    others = [spool_of(metrics, tmp_path, disk, messages=20) for _ in range(3)]

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, job, spool)
        for other in others:
            add(metrics, shipper, *other)
        await until(lambda: not any(other.folder.exists() for _, other in others))
        await until(lambda: len(re.findall("writer_refused", capsys.readouterr().out)) >= 1)
        await until(lambda: spool.lines.stored >= 21)
        disk.writing.post(spool.close)
        await until(lambda: len(re.findall("writer_refused", capsys.readouterr().out)) >= 1)  # it is tried again
        assert not shipper.empty
        assert (spool.points.stored, spool.points.last_sequence) == (0, 20)
        shipper.drop(spool.key)
        await until(lambda: shipper.empty and not spool.folder.exists())

    ship(metrics, drain)
    told = [text for text in lines_so_far(metrics, job) if "does not take the points of this attempt" in text]
    assert len(told) == 1
    assert "not its id" in told[0]


def test_what_was_set_aside_goes_on_where_it_was_once_it_is_taken(
    metrics: Stand, tmp_path: Path, disk: SpoolDisk
) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=20)
    spool.series[7] = series_pb2.SeriesDefinition(series_id=7, name="not its id")

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, job, spool)
        (points, _) = shipper._writers[spool.key]
        await until(lambda: points.phase is Phase.SET_ASIDE)
        del spool.series[7]
        await until(lambda: shipper.empty)

    ship(metrics, drain)
    points, _ = stored_of(metrics, job)
    assert (points.rows, points.gaps, points.finish) == (20, (), (20, 0))


def test_a_token_that_does_not_hold_is_dropped_alone(metrics: Stand, tmp_path: Path, disk: SpoolDisk) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=20)
    other_job, other = spool_of(metrics, tmp_path, disk, messages=20, open_=True)

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, other_job, other)
        await until(lambda: other.points.stored == 20)
        shipper.add(spool)
        shipper.set_token(spool.key, Token(text="nonsense", expire_time=datetime.now(UTC) + timedelta(hours=1)))
        await until(lambda: shipper.tokens_wanted() == [spool])
        numbers = [writer.number for writer in shipper._writers[other.key]]
        recorder = Recorder(other, now_unix_us=lambda: 1_700_000_000_000_000, on_append=shipper.notify)
        recorder.line("goes on")
        recorder.flush()
        await until(lambda: other.lines.stored == 21)
        assert [writer.number for writer in shipper._writers[other.key]] == numbers  # its stream was not disturbed
        shipper.set_token(spool.key, token(metrics, job))
        await until(lambda: shipper.token(spool.key) is None)

    ship(metrics, drain)
    for stored in stored_of(metrics, job):
        assert (stored.rows, stored.gaps, stored.finish) == (20, (), (20, 0))


def test_a_writer_that_is_finished_already_is_finished_at_once_and_nothing_is_doubled(
    metrics: Stand, tmp_path: Path, disk: SpoolDisk
) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=20)
    shutil.copytree(spool.folder, tmp_path / "again" / spool.folder.name)

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, job, spool)
        await until(lambda: shipper.empty)
        again = Spool.found(tmp_path / "again" / spool.folder.name, disk)
        add(metrics, shipper, job, again)
        await until(lambda: shipper.empty and not again.folder.exists())

    ship(metrics, drain)
    for stored in stored_of(metrics, job):
        assert (stored.rows, stored.gaps, stored.finish) == (20, (), (20, 0))


def test_a_service_that_says_nothing_is_called_anew(
    metrics: Stand, tmp_path: Path, disk: SpoolDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    job, spool = spool_of(metrics, tmp_path, disk, messages=20, open_=True)
    process = metrics.server.process
    assert process is not None

    async def drain(shipper: Shipper) -> None:
        add(metrics, shipper, job, spool)
        await until(lambda: spool.points.stored == spool.lines.stored == 20)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            disk.writing.post(spool.close)
            shipper.notify()
            await until(lambda: "ingest_silent" in capsys.readouterr().out)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        await until(lambda: shipper.empty)

    ship(metrics, drain, replace(LIMITS, answer_seconds_max=0.3))
    for stored in stored_of(metrics, job):
        assert (stored.rows, stored.gaps, stored.finish) == (20, (), (20, 0))


def test_the_table_of_phases_leaves_no_phase_without_a_way_out_but_the_last() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert [phase for phase, ways in TRANSITIONS.items() if not ways] == [Phase.FINISHED]
    assert {event for ways in TRANSITIONS.values() for event in ways} == set(Event)
    for phase in (Phase.OPENING, Phase.WRITING, Phase.FINISHING):
        assert TRANSITIONS[phase][Event.STREAM_ENDED] is Phase.CLOSED
