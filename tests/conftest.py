"""What tests of several services need: an S3 server, and a place in it for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.object_server import Bucket, ObjectServer


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """One server for all tests of this process; it starts with the first one that needs it."""
    server = ObjectServer(tmp_path_factory.mktemp("object-server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def bucket(object_server: ObjectServer) -> Bucket:
    """A prefix that no other test uses."""
    return Bucket(server=object_server, prefix=f"teams/{secrets.token_hex(6)}")
