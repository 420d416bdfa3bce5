"""A real server of Azure's blobs for tests: Azurite, Microsoft's own, where it is installed (npm install -g azurite).

Where it is not, tests that need it skip with that word. In memory, on a free port, on a leash; the account's key is
made anew each time.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.request import Request, urlopen

from services.chassis.leash import on_leash
from services.chassis.objects.access import AzureKey
from tests.object_server import free_ports

PROGRAM = "azurite-blob"
ACCOUNT = "account1"
START_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
VERSION = "2021-08-06"


class AzureServer:
    """One server with the empty container `datasets`. Start it once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = AzureKey(account_key=base64.b64encode(secrets.token_bytes(32)).decode())
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/{ACCOUNT}"

    @staticmethod
    def is_installed() -> bool:
        return shutil.which(PROGRAM) is not None

    def start(self) -> None:
        program = shutil.which(PROGRAM)
        assert program is not None, f"{PROGRAM} is not installed"
        command = [program, "--inMemoryPersistence", "--blobPort", str(self._port), "--skipApiVersionCheck"]
        environ = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key.account_key}"}
        with (self.folder / "azurite.log").open("wb") as log:
            self._process = subprocess.Popen(on_leash(command), cwd=self.folder, stdout=log, stderr=log, env=environ)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            assert time.monotonic() < deadline, (self.folder / "azurite.log").read_text()[-2_000:]
            time.sleep(POLL_SECONDS)
        self._make_container("datasets")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _make_container(self, name: str) -> None:
        """By the call of Azure's own that obstore does not have, signed as Azure wants it."""
        headers = {"x-ms-date": format_datetime(datetime.now(UTC), usegmt=True), "x-ms-version": VERSION}
        lines = [f"{header}:{value}" for header, value in headers.items()]
        text = "\n".join(["PUT", *[""] * 11, *lines, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
        secret = base64.b64decode(self.key.account_key)
        signature = base64.b64encode(hmac.digest(secret, text.encode(), "sha256")).decode()
        headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
        request = Request(f"{self.endpoint_url}/{name}?restype=container", method="PUT", headers=headers)
        with urlopen(request, timeout=START_SECONDS_MAX):
            pass

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0
