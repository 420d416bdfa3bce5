"""Ports with TLS and without: who is let in, who is believed, and what listens where."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import rpc
from services.chassis.auth.guard import OpenGuard
from services.chassis.bus import Bus, BusAccess, BusLimits
from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError, Unavailable
from services.chassis.nats_server import nats_server_path, server_configuration, server_url
from services.chassis.tls import ClientTls, ServerTls, is_local, server_tls
from tests.certificates import Authority

SECONDS = 60.0
REFUSED_SECONDS = 3.0
"""How long a bus is tried that lets nobody in."""


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[str]:
    server = rpc.Server(ServerConfig(drain_seconds=0.2, **settings), OpenGuard())
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


async def serves(address: str, tls: ClientTls | None) -> bool:
    async with rpc.channel(address, tls=tls, retry_attempts_max=1) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.aio.AioRpcError:
            return False
    return True


def test_a_certificate_of_the_right_authority_is_believed_and_no_other(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("server")

    async def test() -> None:
        async with served(tls_certificate_file=certificate, tls_key_file=key) as address:
            assert await serves(address, ClientTls(ca_file=authority.file))
            assert not await serves(address, ClientTls(ca_file=stranger.file))
            assert not await serves(address, None)

    asyncio.run(test())


def test_callers_must_show_a_certificate_where_that_is_asked_for(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("server")
    settings = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": authority.file}

    def shown(files: tuple[Path, Path]) -> ClientTls:
        return ClientTls(ca_file=authority.file, certificate_file=files[0], key_file=files[1])

    async def test() -> None:
        async with served(**settings) as address:
            assert await serves(address, shown(authority.issue("client")))
            assert not await serves(address, shown(stranger.issue("client")))
            assert not await serves(address, ClientTls(ca_file=authority.file))

    asyncio.run(test())


def test_a_certificate_is_renewed_while_its_server_runs(tmp_path: Path) -> None:
    authority, next_one = Authority(tmp_path), Authority(tmp_path / "next", "next")
    certificate, key = authority.issue("server")

    async def test() -> None:
        async with served(tls_certificate_file=certificate, tls_key_file=key) as address:
            assert await serves(address, ClientTls(ca_file=authority.file))
            renewed = next_one.issue("server")
            for old, new in zip((certificate, key), renewed, strict=True):
                new.replace(old)
            deadline = time.monotonic() + SECONDS
            while not await serves(address, ClientTls(ca_file=next_one.file)):
                assert time.monotonic() < deadline, "the old certificate is still shown"

    asyncio.run(test())


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:0", True),
        ("127.8.0.1:5", True),
        ("[::1]:0", True),
        ("localhost:0", True),
        ("unix:/tmp/x", True),
        ("0.0.0.0:0", False),
        ("[::]:0", False),
        ("10.0.0.1:0", False),
        ("localhost.example:0", False),
        (":0", False),
    ],
)
def test_without_tls_a_port_is_its_own_machines_unless_the_configuration_says_so(address: str, local: bool) -> None:
    assert is_local(address) == local
    config = ServerConfig(listen_address=address)
    if local:
        assert server_tls(config) is None
    else:
        with pytest.raises(ConfigurationError, match="--plaintext-allowed"):
            server_tls(config)
    assert server_tls(ServerConfig(listen_address=address, plaintext_allowed=True)) is None


def test_half_a_configuration_is_refused(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server")
    with pytest.raises(ConfigurationError, match="go together"):
        server_tls(ServerConfig(tls_certificate_file=certificate))
    with pytest.raises(ConfigurationError, match="needs --tls-certificate-file"):
        server_tls(ServerConfig(tls_client_ca_file=certificate))
    key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        ServerTls(certificate_file=certificate, key_file=key).credentials()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ClientTls(ca_file=tmp_path / "none.pem").credentials()


@contextlib.contextmanager
def nats_server(folder: Path, **settings: Any) -> Iterator[str]:
    """A NATS with these settings; its url."""
    ports = folder / "ports"
    ports.mkdir(parents=True)
    text = server_configuration(store_dir=folder / "store", ports_file_dir=ports, **settings)
    (folder / "nats.conf").write_text(text)
    command = [str(nats_server_path()), "--config", str(folder / "nats.conf")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while (url := server_url(ports, process.pid)) is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield url
    finally:
        process.kill()
        process.wait()


def test_the_bus_speaks_tls_and_shows_its_password_and_certificate(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("nats")
    shown = authority.issue("client")
    credentials = tmp_path / "credentials"
    credentials.touch(mode=0o600)
    credentials.write_text("sihlai\nright\n")
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("sihlai\nguess\n")
    right = ClientTls(ca_file=authority.file, certificate_file=shown[0], key_file=shown[1])
    tls = ServerTls(certificate_file=certificate, key_file=key, client_ca_file=authority.file)

    async def publishes(url: str, access: BusAccess, seconds: float) -> bool:
        async with await Bus.connect(url, access=access, limits=BusLimits(request_seconds=seconds)) as bus:
            try:
                await bus.ensure_stream("facts", ["facts.>"])
            except Unavailable:
                return False
            return await bus.publish("facts.one", b"x", "1") > 0

    async def test(url: str) -> None:
        url = url.replace("nats://", "tls://").replace("0.0.0.0", "127.0.0.1")
        assert await publishes(url, BusAccess(credentials_file=credentials, tls=right), SECONDS)
        refused = (
            BusAccess(credentials_file=wrong, tls=right),
            BusAccess(tls=right),
            BusAccess(credentials_file=credentials, tls=ClientTls(ca_file=authority.file)),
            BusAccess(credentials_file=credentials, tls=ClientTls(ca_file=stranger.file)),
        )
        assert not any(await asyncio.gather(*(publishes(url, access, REFUSED_SECONDS) for access in refused)))

    with nats_server(tmp_path / "nats", users={"sihlai": "right"}, tls=tls) as url:
        asyncio.run(test(url))
    assert isinstance(right.context(), ssl.SSLContext)
