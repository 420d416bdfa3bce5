"""A whole installation that other machines reach: everything speaks TLS, and clients find the authority."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import nats
import nats.errors
import pytest
import sihlai
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.endpoints import SERVICES
from services.cli.machine.supervisor import Stack, StackConfig
from services.cli.machine.transport import Transport
from tests.certificates import Authority
from tests.system.client import until

SECONDS = 60.0
ANYWHERE = "0.0.0.0:0"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stack(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    certificate, key = authority.issue("up")
    home = tmp_path_factory.mktemp("home")
    config = StackConfig(
        data=home / "stack",
        allowed_roots=(home,),
        device="cpu",
        listen_nats=ANYWHERE,
        listen_conversion=ANYWHERE,
        listen_scheduler=ANYWHERE,
        listen_metrics=ANYWHERE,
        transport=Transport(certificate_file=certificate, key_file=key, ca_file=authority.file),
        start_seconds_max=300.0,
    )
    with Stack(config, environ=os.environ) as running:
        yield running


def answers(address: str, ca_file: Path | None) -> bool:
    options = [("grpc.enable_http_proxy", 0)]
    credentials = grpc.ssl_channel_credentials(ca_file.read_bytes()) if ca_file is not None else None
    opened = (
        grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    )
    with opened as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError:
            return False
    return True


def test_every_service_shows_its_certificate_and_speaks_nothing_else(
    stack: Stack, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    for name in SERVICES:
        address = stack.address(name)
        assert [answers(address, file) for file in (authority.file, stranger.file, None)] == [True, False, False], name


def test_nats_shows_it_too_and_its_facts_arrive(stack: Stack, authority: Authority) -> None:
    user, password = stack.folder.nats_credentials.read_text().split()
    trusted = ssl.create_default_context(cafile=authority.file)

    async def ignore(_error: Exception) -> None:
        pass

    async def streams(context: ssl.SSLContext) -> list[str]:
        url = f"tls://{stack.address('nats')}"
        settings = {"allow_reconnect": False, "error_cb": ignore, "connect_timeout": 10}
        client = await nats.connect(url, tls=context, user=user, password=password, **settings)
        try:
            return [each.config.name or "" for each in await client.jetstream().streams_info()]
        finally:
            await client.close()

    until(lambda: asyncio.run(streams(trusted)) or None)  # the scheduler has reached it, and made its stream
    with pytest.raises((ssl.SSLError, nats.errors.Error, OSError)):
        asyncio.run(streams(ssl.create_default_context()))


def test_a_client_of_this_machine_finds_the_authority_with_the_addresses(stack: Stack) -> None:
    client = sihlai.connect(data=stack.folder.root)
    assert client.projects() == []


def test_a_client_elsewhere_finds_it_in_its_context(stack: Stack, authority: Authority, tmp_path: Path) -> None:
    port = stack.address("scheduler").rpartition(":")[2]
    environ = {**os.environ, "HOME": str(tmp_path), "SIHLAI_CONTEXTS": str(tmp_path / "contexts.json")}

    def sihlai_command(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS)

    words = ("context", "add", "team", f"127.0.0.1:{port}", "--token-file", str(stack.folder.token), "--use")
    assert sihlai_command(*words, "--ca-file", str(authority.file)).returncode == 0
    told = sihlai_command("version")
    assert told.returncode == 0, told.stderr
    for name in SERVICES:
        assert name in told.stdout
    assert "does not answer" not in told.stdout + told.stderr
    assert sihlai_command(*words).returncode == 0
    assert sihlai_command("project", "list").returncode == 3, "without the authority nobody is believed"
