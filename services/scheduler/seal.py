"""Credentials of datasets at rest: sealed with the key of one file, opened only for runners and for conversion.

What is opened must never stand in an answer to a user, a log, an event or an error.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from services.chassis.errors import ConfigurationError, Internal, Reason


class Seal:
    """Seals and opens bytes (Fernet: AES-128-CBC with HMAC-SHA256)."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    @classmethod
    def from_file(cls, path: Path) -> Seal:
        """The key in `path`, made with mode 0600 where it is missing; two starters at once agree on one."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_private_file(path, Fernet.generate_key())
        try:
            return cls(path.read_bytes().strip())
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"credentials_key_file {path} does not hold a Fernet key: {error}"]) from error

    def seal(self, content: bytes) -> bytes:
        """The content, sealed."""
        return self._fernet.encrypt(content)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed. Internal where another key sealed it."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken as error:
            message = "stored credentials were sealed with another key than that of credentials_key_file"
            raise Internal(Reason.INTERNAL, message) from error


def _create_private_file(path: Path, data: bytes) -> None:
    """Whole or not at all, and never over an existing file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
