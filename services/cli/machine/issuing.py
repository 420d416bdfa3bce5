"""The tokens of one machine: the local admin's, which commands find by themselves, and those of its own processes.

Each lies in a file of mode 0600 in the data folder, which is 0700: who may read it could read everything else there.
They are made anew with each start, once half of their life is over, and when another key signs; who holds one reads its
file again.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.chassis.auth.keys import PRIVATE_MODE, TokenSigner
from services.chassis.auth.principal import Principal
from services.chassis.endpoints import SERVICES
from services.chassis.files import create_file, replace_file
from services.cli.machine.folder import DataFolder

LIFE = timedelta(days=30)
NATS_USER = "sihlai"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who gets a token, and where it lies."""

    subject: str
    path: Path
    is_admin: bool = False


class Issuing:
    """Makes the keys and tokens of a data folder."""

    def __init__(
        self,
        folder: DataFolder,
        runner_ids: Iterable[str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._now = now
        self._issued_at: datetime | None = None
        self._key_state: tuple[int, int] | None = None
        self._holders = [
            Holder(subject=f"users/{local_user()}", path=folder.token, is_admin=True),
            *(Holder(subject=f"services/{name}", path=folder.token_of(name)) for name in SERVICES),
            *(Holder(subject=f"runners/{name}", path=folder.token_of(f"runner-{name}")) for name in runner_ids),
        ]

    def issue_due(self) -> None:
        """Make the tokens where there are none, half of their life is over, or another key signs. Raises OSError."""
        now = self._now()
        is_old = self._issued_at is None or abs(now - self._issued_at) >= LIFE / 2
        key_state = _state_of(self._folder.token_key)
        if not is_old and key_state == self._key_state:
            return
        signer = TokenSigner.from_file(self._folder.token_key)
        self._key_state = key_state or _state_of(self._folder.token_key)
        expires_at = (now + LIFE).replace(microsecond=0)
        for holder in self._holders:
            holder.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = signer.sign_access(
                Principal(
                    subject=holder.subject,
                    token_id=uuid.uuid4().hex,
                    expires_at=expires_at,
                    is_admin=holder.is_admin,
                )
            )
            replace_file(holder.path, f"{text}\n".encode(), mode=PRIVATE_MODE, synced=False)
        self._issued_at = now


def _state_of(path: Path) -> tuple[int, int] | None:
    """Changes when another file takes the place of this one; None while there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def admin_token(folder: DataFolder) -> str:
    """An admin's token of a service that ends with the command that starts it; its key is made where missing."""
    holder = Principal(subject=f"users/{local_user()}", is_admin=True)
    return TokenSigner.from_file(folder.token_key).sign_access(holder)


def nats_users(folder: DataFolder) -> Mapping[str, str]:
    """The users of this machine's NATS with their passwords; made where there is none yet."""
    path = folder.nats_credentials
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_file(path, f"{NATS_USER}\n{secrets.token_urlsafe(32)}\n".encode(), mode=PRIVATE_MODE)
    user, _, password = path.read_text().strip().partition("\n")
    return {user: password}


def local_user() -> str:
    """Who is logged in, as far as the system knows a name that fits a token."""
    with contextlib.suppress(KeyError, OSError, ImportError):
        return re.sub(r"[^A-Za-z0-9._@-]", "-", getpass.getuser())[:100] or "local"
    return "local"
