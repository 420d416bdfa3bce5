"""Calls over TLS: whom a client believes, and what it shows of itself where a service wants to see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sihlai

from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.chassis.context import Context, Contexts, contexts_file, read_contexts, write_contexts
from services.chassis.errors import ConfigurationError
from services.chassis.rpc import Server
from services.client.call import installed
from tests.certificates import Authority


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[str]:
    server = Server(ServerConfig(drain_seconds=0.1, **settings), OpenGuard())
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


async def answers(address: str = "", **settings: Any) -> list[bool]:
    """Whether the service answers a client of each face that is connected so."""

    def asked() -> bool:
        with sihlai.connect(address, **settings) as client, contextlib.suppress(sihlai.Unavailable):
            return bool(client.run(installed).version)
        return False

    found = [await asyncio.to_thread(asked)]
    async with sihlai.connect_async(address, **settings) as client:
        try:
            return [*found, bool((await client.run(installed)).version)]
        except sihlai.Unavailable:
            return [*found, False]


def test_a_client_says_whom_it_believes(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("server")

    async def test() -> None:
        async with served(tls_certificate_file=certificate, tls_key_file=key) as address:
            assert await answers(address, ca_file=authority.file) == [True, True]
            assert await answers(address, ca_file=str(stranger.file)) == [False, False]
            assert await answers(address) == [False, False]

    asyncio.run(test())


def test_a_client_shows_its_certificate_to_a_service_that_wants_one_by_argument_and_by_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("server")
    mine, strange = authority.issue("client"), stranger.issue("client")
    monkeypatch.setenv("SIHLAI_CONTEXTS", str(tmp_path / "contexts.json"))

    def said(files: tuple[Path, Path]) -> dict[str, Path]:
        return {"ca_file": authority.file, "client_certificate_file": files[0], "client_key_file": files[1]}

    def known(address: str) -> Contexts:
        named = {"shown": said(mine), "strange": said(strange), "believing": {"ca_file": authority.file}}
        return Contexts(by_name={name: Context(address=address, **files) for name, files in named.items()})

    async def test() -> None:
        settings = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": authority.file}
        async with served(**settings) as address:
            assert await answers(address, **said(mine)) == [True, True]
            assert await answers(address, **said(strange)) == [False, False]
            assert await answers(address, ca_file=authority.file) == [False, False]
            file = contexts_file({"SIHLAI_CONTEXTS": str(tmp_path / "contexts.json")})
            write_contexts(file, known(address))
            assert read_contexts(file) == known(address)
            assert await answers(context="shown") == [True, True]
            assert await answers(context="strange") == [False, False]
            assert await answers(context="believing") == [False, False]
            assert await answers(context="strange", **said(mine)) == [True, True], "what is said wins"

    asyncio.run(test())


def test_half_of_what_tls_takes_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    with pytest.raises(ConfigurationError, match="go together"):
        sihlai.connect("127.0.0.1:1", ca_file=authority.file, client_certificate_file=certificate)
    with pytest.raises(ConfigurationError, match="over TLS alone"):
        sihlai.connect("127.0.0.1:1", client_certificate_file=certificate, client_key_file=key)
