"""The data folder of `sihlai up`: where everything lies on one machine, who holds it, and where its services are.

The folder is held by a lock on an open file, so that it is free again however its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("scheduler", "metrics", "conversion")
"""The services that commands talk to, as they are named in flags, variables and endpoints.json."""


class FolderInUseError(Exception):
    """Another `sihlai up` holds the data folder."""


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The paths in a data folder. Making one writes nothing."""

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by who holds the folder; holds its process id."""
        return self.root / "up.lock"

    @property
    def endpoints(self) -> Path:
        """The addresses of the services, while they are up."""
        return self.root / "endpoints.json"

    @property
    def token_key(self) -> Path:
        """The key that write tokens are signed with."""
        return self.root / "keys" / "token.pem"

    @property
    def token_public_key(self) -> Path:
        """Its public half."""
        return self.root / "keys" / "token.pub.pem"

    @property
    def credentials_key(self) -> Path:
        """The key that users' credentials are encrypted with."""
        return self.root / "keys" / "credentials.key"

    @property
    def checkpoints(self) -> Path:
        """The object store of models."""
        return self.root / "checkpoints"

    def log(self, name: str) -> Path:
        """Where the process of this name writes its log."""
        return self.root / "logs" / f"{name}.log"

    def address_file(self, name: str) -> Path:
        """Where the server of this name writes its address once it serves."""
        return self.root / "addresses" / name

    def of(self, name: str) -> Path:
        """The folder of one process's own files."""
        return self.root / name

    def runner(self, runner_id: str) -> Path:
        """The work folder of a runner."""
        return self.root / "runners" / runner_id


@contextlib.contextmanager
def held(folder: DataFolder) -> Iterator[None]:
    """Hold the folder. Raises FolderInUseError where another process does."""
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise FolderInUseError(
                f"the data folder {folder.root} is in use by process {holder}: stop that one first, or choose another "
                "folder with --data"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def write_endpoints(folder: DataFolder, addresses: Mapping[str, str]) -> None:
    """Atomic: a reader finds all addresses or the old ones."""
    draft = folder.endpoints.with_name(f".{folder.endpoints.name}.{secrets.token_hex(4)}")
    draft.write_text(json.dumps(dict(addresses), indent=2) + "\n")
    draft.replace(folder.endpoints)


def read_endpoints(folder: DataFolder) -> dict[str, str]:
    """The addresses by service; none where nothing is up, or was stopped in order."""
    try:
        found = json.loads(folder.endpoints.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {str(name): str(address) for name, address in found.items()} if isinstance(found, dict) else {}
