from __future__ import annotations

import asyncio
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sihlai.event.v1 import event_pb2

from services.chassis import bus as buses
from services.chassis.bus import Bus, BusLimits, Message
from services.conversion.announcement import WAITING_MAX, Announcer

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    configuration = tmp_path / "nats.conf"
    configuration.write_text(buses.server_configuration(store_dir=tmp_path / "bus", ports_file_dir=tmp_path))
    process = subprocess.Popen([buses.nats_server_path(), "-c", configuration], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while (url := buses.server_url(tmp_path, process.pid)) is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)  # what is waited for has no event
        yield url, process
    finally:
        process.kill()
        process.wait()


def test_a_converted_dataset_is_announced_under_an_id_that_follows_from_its_digest(nats: Any) -> None:
    received: list[Message] = []

    async def main() -> None:
        got = asyncio.Event()

        async def take(message: Message) -> None:
            received.append(message)
            got.set()

        async with asyncio.timeout(30), await Bus.connect(nats[0]) as bus:
            await bus.ensure_stream("facts", ["sihlai.v1.>"])
            announcer = Announcer(bus, lambda: NOW)
            for _ in range(2):
                await announcer.announce(DIGEST, "file:///store/datasets/x", 7)
            consumer = asyncio.create_task(bus.consume("facts", "test", "sihlai.v1.dataset.>", take))
            await got.wait()
            while announcer.waiting:  # noqa: ASYNC110 — what is waited for has no event
                await asyncio.sleep(0.005)
            assert (await bus.last_message_ids("facts")) == [str(uuid.UUID(DIGEST[:32]))]
            consumer.cancel()
            await announcer.close()

    asyncio.run(main())
    event = event_pb2.Event.FromString(received[0].payload)
    assert received[0].subject == event.subject == f"sihlai.v1.dataset.{DIGEST}.converted"
    assert received[0].message_id == event.id
    assert event.time.ToDatetime(UTC) == NOW
    fact = event.dataset_converted
    assert (fact.digest, fact.uri, fact.images) == (DIGEST, "file:///store/datasets/x", 7)


def test_nothing_waits_for_a_bus_that_is_away_and_what_waits_is_bounded(nats: Any) -> None:
    async def main() -> None:
        limits = BusLimits(reconnect_seconds=0.05, publish_seconds=0.2)
        url, process = nats
        async with asyncio.timeout(30), await Bus.connect(url, limits=limits) as bus:
            await bus.wait_connected()
            process.kill()
            while bus.connected:  # noqa: ASYNC110 — what is waited for has no event
                await asyncio.sleep(0.005)
            announcer = Announcer(bus, lambda: NOW)
            for _ in range(WAITING_MAX + 10):
                await announcer.announce(DIGEST, "file:///x", 1)
            assert announcer.waiting == WAITING_MAX
            while announcer.waiting:  # noqa: ASYNC110 — what is waited for has no event
                await asyncio.sleep(0.005)
            await announcer.announce(DIGEST, "file:///x", 1)
            await announcer.close()

    asyncio.run(main())
