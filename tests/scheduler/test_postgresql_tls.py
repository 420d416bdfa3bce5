"""PostgreSQL over TLS, as the address of the database says: a real server and the real driver.

The server of the wheel was built without TLS, so a front of the test's own does that part of the protocol for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from tests.certificates import Authority

TLS_REQUEST, GSSAPI_REQUEST = 80_877_103, 80_877_104
"""What a client may ask for before anything else (PostgreSQL, "Message Formats": SSLRequest, GSSENCRequest)."""


class Front:
    """Speaks TLS on a port of this machine, and passes on to a server's socket. Counts connections of both kinds."""

    def __init__(self, socket: Path, context: ssl.SSLContext) -> None:
        self._socket = socket
        self._context = context
        self.encrypted = self.plain = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(8)
            while int.from_bytes(head[4:]) == GSSAPI_REQUEST:
                writer.write(b"N")
                head = await reader.readexactly(8)
            if int.from_bytes(head[4:]) != TLS_REQUEST:
                self.plain += 1
                writer.close()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
            self.encrypted += 1
            behind_reader, behind_writer = await asyncio.open_unix_connection(self._socket)
            await asyncio.gather(_pass(reader, behind_writer), _pass(behind_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def fronted(socket: Path, context: ssl.SSLContext) -> Iterator[tuple[Front, int]]:
    """A front, and its port. It has an event loop of its own, as drivers wait without one."""
    front, loop = Front(socket, context), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(front.take, "0.0.0.0", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield front, server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_scheduler_works_over_tls_and_believes_one_authority_alone(serve, database_url, tmp_path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other", "stranger")
    certificate, key = authority.issue("postgresql")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    url = make_url(database_url)
    socket = Path(str(url.query["host"])) / f".s.PGSQL.{url.query.get('port', 5432)}"

    async def works(address: str) -> None:
        async with asyncio.timeout(60), serve(database_url=address) as client:
            await client.create_project()
            assert (await client.submit(job_id="first")).name == "projects/digits/jobs/first"

    async def waits(address: str) -> None:
        """It may be a server that comes back with another certificate: so it waits, and its log says for what."""
        with capture_logs() as lines:
            working = asyncio.create_task(works(address))
            async with asyncio.timeout(60):
                while not (told := [each for each in lines if each["event"] == "database_unreachable"]):
                    assert not working.done()
                    await asyncio.sleep(0.02)
            working.cancel()
            await asyncio.wait({working})
        assert "certificate" in told[0]["problem"]

    with fronted(socket, context) as (front, port):

        def address(host: str, ca_file: Path) -> str:
            tls = {"sslmode": "verify-full", "sslrootcert": str(ca_file)}
            there = url.set(drivername="postgresql", host=host, port=port, query=tls)
            return there.render_as_string(hide_password=False)

        asyncio.run(works(address("localhost", authority.file)))
        assert (front.encrypted > 0, front.plain) == (True, 0)
        for host, ca_file in (("localhost", stranger.file), ("127.0.0.2", authority.file)):
            asyncio.run(waits(address(host, ca_file)))
        assert front.plain == 0, "nothing is said in the clear instead"
