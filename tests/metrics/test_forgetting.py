"""What is stored of a deleted job goes, whatever was away when it was deleted, and what comes late goes too."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.event.v1 import event_pb2
from sihlai.logs.v1 import log_service_pb2 as logs_pb
from sihlai.metrics.v1 import metrics_service_pb2 as pb

from services.chassis import bus as buses
from services.chassis.bus import Bus
from tests.metrics.client import Metrics, columns, definition, until
from tests.metrics.job_book import Job, Scheduler, submit

LOSS = "digits/train/loss"


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    configuration = tmp_path / "nats.conf"
    configuration.write_text(buses.server_configuration(store_dir=tmp_path / "bus", ports_file_dir=tmp_path))
    process = subprocess.Popen([buses.nats_server_path(), "-c", configuration], stderr=subprocess.DEVNULL)
    try:
        until(lambda: buses.server_url(tmp_path, process.pid) is not None, "the address of NATS", 60)
        yield str(buses.server_url(tmp_path, process.pid))
    finally:
        process.kill()
        process.wait()


def delete(url: str, *jobs: Job) -> None:
    """Tell the bus that the jobs were deleted, as the scheduler does; and something that nobody understands."""

    async def publish() -> None:
        async with asyncio.timeout(60), await Bus.connect(url) as bus:
            await bus.wait_connected()
            await bus.ensure_stream("SIHLAI", ("sihlai.v1.>",))
            await bus.publish("sihlai.v1.job.digits.broken.deleted", b"\xff\xff", "broken")
            for job in jobs:
                subject = f"sihlai.v1.job.digits.{job.uid}.deleted"
                event = event_pb2.Event(id=f"deleted-{job.uid}", subject=subject)
                event.job_deleted.job.uid = job.uid
                await bus.publish(subject, event.SerializeToString(), event.id)

    asyncio.run(publish())


def written(server: Metrics, job: Job, *, attempt: int = 1) -> None:
    """Points and lines of an attempt of the job."""
    client = server.ingest()
    client.open(1, server.token(job.uid, attempt=attempt), series=[definition(job.uid, LOSS)])
    client.points(1, 1, columns(job.uid, LOSS, range(100), [0.5] * 100))
    client.wait_stored(1, 1)
    client.close()


def has_points(server: Metrics, job: Job) -> bool:
    answer = server.metrics().QuerySeries(pb.QuerySeriesRequest(job=job.name))
    return any(len(curve.points.values) for curve in answer.series)


def test_rows_of_deleted_jobs_go_and_those_of_others_stay(tmp_path: Path, scheduler: Scheduler, nats_url: str) -> None:
    server = Metrics(tmp_path / "metrics", scheduler.address, ("--nats-url", nats_url))
    server.start()
    first, second, kept = [submit(scheduler.book) for _ in range(3)]
    for job in (first, second, kept):
        written(server, job)
        assert has_points(server, job)
    delete(nats_url, first)
    until(lambda: not has_points(server, first), "the first job's points are gone", 60)
    written(server, first, attempt=2)  # its token still holds
    server.stop()
    delete(nats_url, second)  # while nobody listens
    server.start()
    until(lambda: not has_points(server, first) and not has_points(server, second), "all points are gone", 60)
    assert has_points(server, kept)
    sources = logs_pb.ListLogFieldsRequest(job=first.name)
    assert list(server.logs().ListLogFields(sources).sources) == []
    assert server.stop() == 0, server.log_text()[-3000:]
