"""Events from the database to a real nats-server, which is away, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time

import nats as nats_client
import pytest
from nats.js.api import StreamConfig
from nats.js.errors import BadRequestError
from sihlai.event.v1 import event_pb2
from sihlai.scheduler.v1 import job_service_pb2
from sqlalchemy import text

from services.chassis import bus as buses
from services.chassis.bus import Bus
from services.chassis.errors import Unavailable
from services.chassis.loop import keep_turning
from services.scheduler.loop.publishing import STREAM, OutboxLimits, Publisher
from tests.object_server import free_ports


class NatsServer:
    """A nats-server that keeps its port and its folder when it is started again."""

    def __init__(self, folder):
        self.folder = folder
        (self.port,) = free_ports(1)
        self.process = None
        self.accounts = ""

    def start(self) -> str:
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            buses.server_configuration(store_dir=self.folder / "store", ports_file_dir=self.folder, port=self.port)
            + self.accounts
        )
        self.process = subprocess.Popen(
            [buses.nats_server_path(), "-c", configuration], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while (url := buses.server_url(self.folder, self.process.pid)) is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
        self.port = int(url.rpartition(":")[2])
        return url

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def nats(tmp_path):
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()


async def events(bus: Bus, number: int) -> list[event_pb2.Event]:
    """The first events of the stream, in their order, once there are so many."""
    found: list[event_pb2.Event] = []
    complete = asyncio.Event()

    async def take(message: buses.Message) -> None:
        event = event_pb2.Event.FromString(message.payload)
        assert (event.id, event.subject) == (message.message_id, message.subject)
        found.append(event)
        if len(found) == number:
            complete.set()

    task = asyncio.ensure_future(bus.consume(STREAM, f"test-{number}", "sihlai.v1.>", take))
    try:
        async with asyncio.timeout(60.0):
            await complete.wait()
    finally:
        task.cancel()
    return found


def facts_of(found: list[event_pb2.Event], job: str) -> list[str | None]:
    """What happened to a job, in order."""
    return [event.WhichOneof("fact") for event in found if event.subject.startswith(f"sihlai.v1.job.digits.{job}.")]


def test_facts_of_a_job_arrive_in_order_after_the_bus_was_away(serve, simulated_runner, nats):
    nats.start()
    nats.kill()
    url = f"nats://127.0.0.1:{nats.port}"

    async def test():
        async with serve(nats_url=url) as client:
            await client.create_project()
            await client.submit(job_id="first")
            await client.submit(job_id="second")
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            await runner.close("ATTEMPT_OUTCOME_COMPLETED", draining=True)
            stop = job_service_pb2.StopJobRequest(name="projects/digits/jobs/second")
            await client.jobs.StopJob(stop)
            nats.start()
            async with await Bus.connect(url) as bus:
                await bus.ensure_stream(STREAM, ["sihlai.v1.>"])
                found = await events(bus, 8)
            assert facts_of(found, "first") == ["job_submitted", "job_started", "job_running", "job_ended"]
            assert facts_of(found, "second") == ["job_submitted", "job_ended"]
            runners = [event.WhichOneof("fact") for event in found if event.subject.startswith("sihlai.v1.runner.one.")]
            assert runners == ["runner_joined", "runner_drained"]

            async def is_empty() -> bool:
                return not await client.scheduler.publisher._outbox.oldest(1)

            await client.when(is_empty)

    asyncio.run(test())


def test_event_that_was_stored_without_an_answer_is_not_sent_twice(sqlite_url, stores_class, nats):
    url = nats.start()

    async def test(stores):
        await stores.create_project("digits")
        for job_id in ("first", "second"):
            await stores.submit("digits", job_id)
        async with await Bus.connect(url) as bus:
            # A shorter memory than any outage: only the publisher itself can know what the stream has.
            limits = buses.StreamLimits(duplicate_seconds=0.1)
            await bus.ensure_stream(STREAM, ["sihlai.v1.>"], limits=limits)
            [first, second] = await stores.outbox.oldest(10)
            await bus.publish(first.subject, first.payload, first.event_id)
            publisher = Publisher(stores.outbox, bus, limits=OutboxLimits())
            await publisher._skip_what_is_stored()
            assert [event.event_id for event in await stores.outbox.oldest(10)] == [second.event_id]
            running = asyncio.ensure_future(keep_turning("publishing", publisher.turn))
            found = await events(bus, 2)
            running.cancel()
            assert [event.id for event in found] == [first.event_id, second.event_id]

    stores_class(sqlite_url).run(test)


def test_event_that_the_bus_never_takes_is_parked_and_the_ones_behind_it_are_sent(sqlite_url, stores_class, nats):
    url = nats.start()

    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "poison")
        too_large = text("UPDATE outbox SET payload = zeroblob(3000000)")
        await stores.database.write(lambda transaction: transaction.connection.execute(too_large).rowcount)
        await stores.stop((await stores.jobs.batch([("digits", "poison")], []))[0].job.uid)
        await stores.submit("digits", "behind")
        async with await Bus.connect(url) as bus:
            await bus.ensure_stream(STREAM, ["sihlai.v1.>"])
            publisher = Publisher(stores.outbox, bus, limits=OutboxLimits())
            running = asyncio.ensure_future(keep_turning("publishing", publisher.turn))
            found = await events(bus, 2)
            running.cancel()
            assert sorted(event.subject for event in found) == [
                "sihlai.v1.job.digits.behind.submitted",
                "sihlai.v1.job.digits.poison.ended",
            ]

    stores_class(sqlite_url).run(test)


SMALL_ACCOUNT = """
accounts { SMALL { jetstream { max_file: 65536 }, users: [ { user: small, password: small } ] } }
no_auth_user: small
"""


def test_events_wait_in_the_database_while_the_account_of_the_bus_is_full(sqlite_url, stores_class, nats):
    nats.accounts = SMALL_ACCOUNT
    url = nats.start()

    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "first")
        administrator = await nats_client.connect(url)
        await administrator.jetstream().add_stream(StreamConfig(name=STREAM, subjects=["sihlai.v1.>"]))
        for size_bytes in (1_000, 1):  # until there is no room for a small one either
            with contextlib.suppress(BadRequestError):
                while True:
                    await administrator.jetstream().publish("sihlai.v1.old", b"x" * size_bytes)
        async with await Bus.connect(url, limits=buses.BusLimits(publish_seconds=2.0)) as bus:
            publisher = Publisher(stores.outbox, bus, limits=OutboxLimits())
            with pytest.raises(Unavailable, match="resource limits exceeded"):
                await asyncio.wait_for(publisher.turn(), 60)
            assert len(await stores.outbox.oldest(10)) == 1
            await administrator.jetstream().purge_stream(STREAM)
            running = asyncio.ensure_future(keep_turning("publishing", publisher.turn))
            [event] = await events(bus, 1)
            running.cancel()
            assert event.subject == "sihlai.v1.job.digits.first.submitted"
        await administrator.close()

    stores_class(sqlite_url).run(test)


def test_publisher_goes_on_after_the_bus_was_killed(serve, nats):
    url = nats.start()

    async def test():
        async with serve(nats_url=url) as client:
            await client.create_project()
            await client.submit(job_id="before")
            async with await Bus.connect(url) as bus:
                await bus.ensure_stream(STREAM, ["sihlai.v1.>"])
                await events(bus, 1)
                nats.kill()
                await client.submit(job_id="meanwhile")
                nats.start()
                await client.submit(job_id="after")
                found = await events(bus, 3)
            assert [event.subject.split(".")[4] for event in found] == ["before", "meanwhile", "after"]

    asyncio.run(test())
