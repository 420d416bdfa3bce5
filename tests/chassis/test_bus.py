"""The bus against a real nats-server, also one that is killed and started again."""

import asyncio
import contextlib
import dataclasses
import io
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nats
import pytest
from nats.js.api import StreamConfig

from services.chassis import bus as buses
from services.chassis import errors
from services.chassis import log as logs
from services.chassis.bus import (
    Bus,
    BusLimits,
    ConsumerLimits,
    StreamLimits,
    subject_matches,
)
from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError
from services.chassis.nats_server import require_encrypted_bus
from tests.object_server import free_ports

LIMITS = BusLimits(
    connect_seconds=1.0, reconnect_seconds=0.05, publish_seconds=60.0, acknowledge_seconds=1.0, request_seconds=30.0
)
SHORT = dataclasses.replace(LIMITS, publish_seconds=0.3, request_seconds=0.3)
"""Where nobody answers."""
REFUSED = dataclasses.replace(LIMITS, publish_seconds=1.0)
"""Where one answer is waited for, and the next one is the same."""


class NatsServer:
    """A nats-server that keeps its port and its folder when it is started again."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.process = None
        self.accounts = ""

    def start(self):
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            buses.server_configuration(store_dir=self.folder / "store", ports_file_dir=self.folder, port=self.port)
            + self.accounts
        )
        log = (self.folder / "nats.log").open("ab")
        with log:
            self.process = subprocess.Popen([buses.nats_server_path(), "-c", configuration], stderr=log, stdout=log)
        deadline = time.monotonic() + 60
        while (url := buses.server_url(self.folder, self.process.pid)) is None:
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
        self.port = int(url.rpartition(":")[2])
        return url

    def end(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(60)


@pytest.fixture
def server(tmp_path):
    server = NatsServer(tmp_path)
    server.url = server.start()
    yield server
    if server.process.poll() is None:
        server.end()


def free_port():
    (port,) = free_ports(1)
    return port


@contextlib.asynccontextmanager
async def running(*coroutines):
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled(), task.exception()


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 — conditions of several kinds, none of which has an event
            await asyncio.sleep(0.01)


def test_published_message_is_stored_once_however_often_it_is_sent(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            assert await bus.publish("facts.job.a", b"1", "id-1") == 1
            assert await bus.publish("facts.job.a", b"1", "id-1") == 1
            assert await bus.publish("facts.job.b", b"2", "id-2") == 2
            assert await bus.last_message_ids("FACTS") == ["id-2", "id-1"]
            assert await bus.last_message_ids("FACTS", "facts.job.a") == ["id-1"]
            assert await bus.last_message_ids("FACTS", messages_max=1) == ["id-2"]

    asyncio.run(scenario())


def test_an_administrators_settings_stay_and_only_missing_subjects_are_added(server):
    async def scenario():
        client = await nats.connect(server.url)
        stream = StreamConfig(name="FACTS", subjects=["facts.>"], max_age=365 * 86_400, max_msgs=7)
        await client.jetstream().add_stream(stream)
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            for subjects in (["facts.a"], ["facts.>", "more.>"], ["more.b.>"]):
                await bus.ensure_stream("FACTS", subjects, limits=StreamLimits(age_days_max=1, messages_max=5))
            await bus.publish("more.a", b"2", "id-2")
            assert await bus.last_message_ids("FACTS") == ["id-2"]
        kept = (await client.jetstream().stream_info("FACTS")).config
        assert (kept.max_age, kept.max_msgs, kept.subjects) == (365 * 86_400, 7, ["facts.>", "more.>"])
        await client.close()

    asyncio.run(scenario())


def test_a_bus_that_refuses_the_stream_is_a_bus_that_is_away(server):
    async def scenario():
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(StreamConfig(name="ARCHIVE", subjects=["facts.>"]))
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            with pytest.raises(errors.Unavailable, match=r"refuses the stream FACTS.*overlap") as refused:
                await bus.ensure_stream("FACTS", ["facts.a"])
            assert refused.value.reason is errors.Reason.BUS_UNAVAILABLE
            await client.jetstream().delete_stream("ARCHIVE")
            await bus.ensure_stream("FACTS", ["facts.a"])
        await client.close()

    asyncio.run(scenario())


def test_a_password_in_the_url_is_in_no_error_and_no_line_of_the_log():
    async def scenario():
        stream = io.StringIO()
        logs.configure("example", format="json", level="debug", stream=stream)
        url = f"nats://operator:s3cr%2Fe%40t@127.0.0.1:{free_port()}"
        async with await Bus.connect(url, limits=SHORT) as bus:
            with pytest.raises(errors.Unavailable) as refused:
                await bus.ensure_stream("FACTS", ["facts.>"])
        logs.flush()
        for shown in (refused.value.message, str(dict(refused.value.metadata)), stream.getvalue()):
            assert "s3cr" not in shown
            assert "operator" not in shown
        for wrong in ("postgres://operator:s3cret@host", "nats://:s3cret@:port", "s3cret"):
            with pytest.raises(errors.ConfigurationError) as unreadable:
                await Bus.connect(wrong)
            assert "s3cret" not in str(unreadable.value)

    asyncio.run(scenario())


def test_empty_stream_has_no_message_ids(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            assert await bus.last_message_ids("FACTS") == []

    asyncio.run(scenario())


def test_with_nobody_there_connecting_returns_and_publishing_says_unavailable():
    async def scenario():
        async with await Bus.connect(f"nats://127.0.0.1:{free_port()}", limits=SHORT) as bus:
            assert not bus.connected
            with pytest.raises(errors.Unavailable, match="not connected") as caught:
                await bus.publish("facts.a", b"1", "id-1")
            assert caught.value.reason is errors.Reason.BUS_UNAVAILABLE
            with pytest.raises(errors.Unavailable):
                await bus.ensure_stream("FACTS", ["facts.>"])
            with pytest.raises(errors.Unavailable):
                await bus.last_message_ids("FACTS")

    asyncio.run(scenario())


def test_publishing_where_no_stream_listens_says_unavailable(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=REFUSED) as bus:
            await bus.wait_connected()
            with pytest.raises(errors.Unavailable, match="NoStreamResponse"):
                await bus.publish("nowhere.a", b"1", "id-1")

    asyncio.run(scenario())


SMALL_ACCOUNT = """
accounts { SMALL { jetstream { max_file: 65536 }, users: [ { user: small, password: small } ] } }
no_auth_user: small
"""


def test_a_full_account_is_a_bus_that_is_away_until_there_is_room(tmp_path):
    async def scenario():
        server = NatsServer(tmp_path)
        server.accounts = SMALL_ACCOUNT
        client = await nats.connect(server.start())
        try:
            await client.jetstream().add_stream(StreamConfig(name="FACTS", subjects=["facts.>"]))
            url = f"nats://127.0.0.1:{server.port}"
            async with await Bus.connect(url, limits=LIMITS) as bus, await Bus.connect(url, limits=REFUSED) as refused:
                for number in range(6):
                    await bus.publish("facts.a", b"x" * 10_000, f"id-{number}")
                await refused.wait_connected()
                with pytest.raises(errors.Unavailable, match="resource limits exceeded for account"):
                    await refused.publish("facts.a", b"x" * 10_000, "id-last")
                await client.jetstream().purge_stream("FACTS")
                assert await bus.publish("facts.a", b"x" * 10_000, "id-last") == 7
        finally:
            await client.close()
            server.end()

    asyncio.run(scenario())


def test_a_message_that_the_stream_finds_too_large_is_said_to_be_never_taken(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"], limits=StreamLimits(message_bytes_max=1_000))
            with pytest.raises(errors.InvalidArgument) as refused:
                await bus.publish("facts.a", b"x" * 1_001, "id-1")
            assert "1001 bytes to 'facts.a' are refused" in refused.value.message
            assert "err_code=10054" in refused.value.message

    asyncio.run(scenario())


def test_bus_connects_when_the_server_starts_later(tmp_path):
    async def scenario():
        server = NatsServer(tmp_path)
        async with await Bus.connect(f"nats://127.0.0.1:{server.port}", limits=LIMITS) as bus:
            waiting = asyncio.create_task(bus.wait_connected())
            await asyncio.to_thread(server.start)
            try:
                assert await asyncio.wait_for(waiting, 60) == 1
                await bus.ensure_stream("FACTS", ["facts.>"])
            finally:
                server.end()

    asyncio.run(scenario())


def test_a_name_server_that_hangs_takes_one_thread_that_nobody_else_needs(server, monkeypatch):
    answers, asked, resolve = threading.Event(), [], socket.getaddrinfo

    def resolve_later(host, *arguments, **options):
        if host != "nats.example":
            return resolve(host, *arguments, **options)
        asked.append(host)
        answers.wait(60)
        return resolve("127.0.0.1", *arguments, **options)

    async def scenario():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        limits = dataclasses.replace(LIMITS, connect_seconds=0.1, reconnect_seconds=0.01)
        async with await Bus.connect(f"nats://nats.example:{server.port}", limits=limits) as bus:
            await asyncio.sleep(1)  # several attempts
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "at once"), 30) == "at once"
            assert asked == ["nats.example"]
            answers.set()
            assert await asyncio.wait_for(bus.wait_connected(), 60) == 1

    monkeypatch.setattr(socket, "getaddrinfo", resolve_later)
    try:
        asyncio.run(scenario())
    finally:
        answers.set()


def test_publisher_that_waits_through_a_kill_and_a_restart_is_answered_and_nothing_is_lost_or_doubled(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            for n in range(20):
                await bus.publish("facts.a", b"%d" % n, f"id-{n}")
            server.end(signal.SIGKILL)
            await until(lambda: not bus.connected)
            waiting = asyncio.create_task(bus.publish("facts.a", b"20", "id-20"))
            after = asyncio.create_task(bus.wait_connected(after=1))
            await asyncio.to_thread(server.start)
            assert await asyncio.wait_for(waiting, 60) == 21
            assert await asyncio.wait_for(after, 60) == 2
            assert await bus.publish("facts.a", b"19", "id-19") == 20
            assert await bus.last_message_ids("FACTS") == [f"id-{n}" for n in range(20, -1, -1)]

    asyncio.run(scenario())


def test_publishers_that_are_busy_while_the_server_is_killed_lose_and_double_nothing(server):
    async def scenario():
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            done = 0

            async def publish(first):
                nonlocal done
                for n in range(first, first + 100):
                    await bus.publish("facts.a", b"%d" % n, f"id-{n}")
                    done += 1

            publishers = asyncio.gather(*(publish(first) for first in (0, 100, 200)))
            for part in (60, 150):
                await until(lambda part=part: done >= part)
                server.end(signal.SIGKILL)
                await asyncio.to_thread(server.start)
            await asyncio.wait_for(publishers, 60)
            ids = await bus.last_message_ids("FACTS", messages_max=1_000)
            assert sorted(ids) == sorted(f"id-{n}" for n in range(300))

    asyncio.run(scenario())


def test_consumer_gets_each_message_in_order_and_goes_on_where_it_was(server):
    async def scenario():
        got = []

        async def handle(message):
            got.append((message.subject, message.payload, message.message_id, message.sequence))

        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            for n in range(40):
                await bus.publish("facts.a", b"%d" % n, f"id-{n}")
            await bus.publish("facts.b", b"other", "id-other")
            async with running(bus.consume("FACTS", "reader", "facts.a", handle)):
                await until(lambda: len(got) == 40)
            await bus.publish("facts.a", b"40", "id-40")
            async with running(bus.consume("FACTS", "reader", "facts.a", handle)):
                await until(lambda: len(got) == 41)
        assert got[:40] == [("facts.a", b"%d" % n, f"id-{n}", n + 1) for n in range(40)]
        assert got[40][1] == b"40"

    asyncio.run(scenario())


def test_consumer_waits_for_stream_and_server_and_survives_a_restart(server):
    async def scenario():
        got = []

        async def handle(message):
            got.append(message.message_id)

        limits = ConsumerLimits(fetch_seconds=0.5)
        async with (
            await Bus.connect(server.url, limits=LIMITS) as bus,
            running(bus.consume("FACTS", "reader", "facts.>", handle, limits=limits)),
        ):
            await bus.ensure_stream("FACTS", ["facts.>"])
            await bus.publish("facts.a", b"1", "id-1")
            await until(lambda: got == ["id-1"])
            server.end(signal.SIGKILL)
            await asyncio.to_thread(server.start)
            await bus.publish("facts.a", b"2", "id-2")
            await until(lambda: got[-1] == "id-2")
        assert set(got) == {"id-1", "id-2"}

    asyncio.run(scenario())


def test_message_whose_handler_fails_comes_again_and_is_given_up_after_its_last_delivery(server):
    async def scenario():
        got = []

        async def handle(message):
            got.append((message.message_id, message.deliveries))
            if message.message_id == "bad":
                raise ValueError("cannot read this")

        limits = ConsumerLimits(deliveries_max=3, backoff_seconds=(0.01, 0.02), fetch_seconds=0.2)
        async with await Bus.connect(server.url, limits=LIMITS) as bus:
            await bus.ensure_stream("FACTS", ["facts.>"])
            for message_id in ("bad", "good"):
                await bus.publish("facts.a", b"x", message_id)
            async with running(bus.consume("FACTS", "reader", "facts.>", handle, limits=limits)):
                await until(lambda: ("bad", 3) in got)
                await bus.publish("facts.a", b"x", "last")
                await until(lambda: ("last", 1) in got)
        assert sorted(got) == [("bad", 1), ("bad", 2), ("bad", 3), ("good", 1), ("last", 1)]

    asyncio.run(scenario())


def test_closing_a_bus_leaves_no_task_behind(server):
    async def scenario():
        for url in (server.url, f"nats://127.0.0.1:{free_port()}"):
            bus = await Bus.connect(url, limits=LIMITS)
            if url == server.url:
                await bus.wait_connected()
            await bus.close()
            assert not bus.connected
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(scenario())


def test_a_bus_that_never_connected_can_be_closed_at_any_moment():
    async def scenario():
        for moment in range(15):
            bus = await Bus.connect(f"nats://127.0.0.1:{free_port()}", limits=LIMITS)
            await asyncio.sleep(moment * 0.002)
            async with asyncio.timeout(30):
                await bus.close()

    asyncio.run(scenario())


def test_a_bus_whose_server_has_gone_can_be_closed_at_any_moment_and_does_not_go_on(server):
    """nats-py takes a cancellation that meets a refused connection for the refusal, and would try again for ever."""

    async def scenario():
        limits = dataclasses.replace(LIMITS, reconnect_seconds=0.001)
        opened = [await Bus.connect(server.url, limits=limits) for _ in range(40)]
        for bus in opened:
            await bus.wait_connected()
        server.end()
        await until(lambda: not any(bus.connected for bus in opened))
        for number, bus in enumerate(opened):
            await asyncio.sleep(number % 4 * 0.001)
            await bus.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):  # what has ended is gone after a turn of the loop
                while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110 — it has no event
                    await asyncio.sleep(0.01)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            while not task.done():  # or the test would never end, and not fail
                task.cancel()
                await asyncio.wait({task}, timeout=0.05)
        assert not left

    asyncio.run(scenario())


def test_server_syncs_every_message(tmp_path):
    text = buses.server_configuration(store_dir=tmp_path / 'a "b"')
    assert "sync_interval: always" in text
    assert r"a \"b\"" in text


def test_url_that_nats_cannot_have_is_named():
    with pytest.raises(errors.ConfigurationError, match="nats://host:port"):
        asyncio.run(Bus.connect("localhost:4222"))


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        (">", "a", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
    ],
)
def test_subject_patterns_match_as_in_nats(pattern, subject, matches):
    assert subject_matches(pattern, subject) is matches


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("nats://localhost:4222", True),
        ("nats://127.0.0.1", True),
        ("tls://far.example:4222", True),
        ("wss://far.example", True),
        ("nats://far.example:4222", False),
        ("ws://far.example", False),
    ],
)
def test_a_bus_of_another_machine_is_called_with_tls_or_by_an_explicit_word(url: str, allowed: bool) -> None:
    require_encrypted_bus(ServerConfig(plaintext_peers_allowed=True), url)
    if allowed:
        require_encrypted_bus(ServerConfig(), url)
    else:
        with pytest.raises(ConfigurationError, match=r"tls://.*or say --plaintext-peers-allowed"):
            require_encrypted_bus(ServerConfig(), url)
