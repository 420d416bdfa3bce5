"""The data folder of `sihlai up`: where everything lies on one machine, who holds it, and where its services are.

The folder is held by a lock on an open file, so that it is free again however its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from services.chassis.endpoints import ENDPOINTS_FILE, LOCK_FILE
from services.chassis.files import replace_file
from services.cli.error import CommandError

LOOK_SECONDS_MAX = 0.2
"""A command that looks who holds the folder has its lock for a moment; so long a start waits for it."""


class FolderInUseError(CommandError):
    """Another `sihlai up` holds the data folder."""


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The paths in a data folder. Making one writes nothing."""

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by who holds the folder; holds its process id."""
        return self.root / LOCK_FILE

    @property
    def endpoints(self) -> Path:
        """The addresses of the services, while they are up."""
        return self.root / ENDPOINTS_FILE

    @property
    def processes(self) -> Path:
        """What runs, while it is up."""
        return self.root / "processes.json"

    @property
    def kept_addresses(self) -> Path:
        """The addresses that were chosen the last time."""
        return self.root / "kept-addresses.json"

    @property
    def token(self) -> Path:
        """The local admin's token, which commands and clients on this machine call with."""
        return self.root / "token"

    def token_of(self, name: str) -> Path:
        """The token of one of its processes."""
        return self.root / "tokens" / name

    def revocations(self, name: str) -> Path:
        """What a service keeps of which tokens were revoked."""
        return self.root / "revocations" / f"{name}.json"

    def issuer_keys(self, name: str) -> Path:
        """What a service keeps of an issuer's public keys."""
        return self.root / "issuer" / f"{name}.json"

    @property
    def nats_credentials(self) -> Path:
        """User and password of its NATS."""
        return self.root / "keys" / "nats.credentials"

    @property
    def token_key(self) -> Path:
        """The key that tokens are signed with."""
        return self.root / "keys" / "token.pem"

    @property
    def token_public_keys(self) -> Path:
        """The folder with its public half, and those of the keys that were in its place before."""
        return self.root / "keys"

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
    _make_private(folder)
    with folder.lock.open("a+") as file:
        deadline = time.monotonic() + LOOK_SECONDS_MAX
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise FolderInUseError(
                    f"the data folder {folder.root} is in use by process {holder}: stop that one first, or choose "
                    "another folder with --data"
                )
            time.sleep(LOOK_SECONDS_MAX / 20)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def _make_private(folder: DataFolder) -> None:
    """Make the folder, or close one of an earlier version: models, database and keys are for nobody else to read.

    Raises FolderInUseError for a folder that others may read and that holds something else.
    """
    root = folder.root
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not root.stat().st_mode & 0o077:
        return
    if any(root.iterdir()) and not folder.lock.exists():
        raise FolderInUseError(f"{root} is no data folder of sihlai and open to others: choose an own one with --data")
    root.chmod(0o700)


def write_endpoints(folder: DataFolder, addresses: Mapping[str, str]) -> None:
    """Atomic: a reader finds all addresses or the old ones."""
    replace_file(folder.endpoints, (json.dumps(dict(addresses), indent=2) + "\n").encode(), synced=False)


def write_processes(folder: DataFolder, processes: Sequence[Mapping[str, Any]]) -> None:
    """Atomic, as `write_endpoints`."""
    replace_file(folder.processes, (json.dumps(processes, indent=2) + "\n").encode(), synced=False)


def read_processes(folder: DataFolder) -> list[dict[str, Any]]:
    """What runs, as it was when anything was started last; nothing where the file is not there or torn."""
    try:
        found: list[dict[str, Any]] = json.loads(folder.processes.read_text())
    except (OSError, ValueError):
        return []
    return found


def _locked(file: IO[Any], kind: int) -> bool:
    """Lock the file, unless another has it; the lock ends with the file."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
