"""Credentials of datasets at rest: sealed with a key of one file, opened only for runners and for conversion.

What is opened must never stand in an answer to a user, a log, an event or an error.

The file holds one key a line, the newest first. The first seals, and all of them open: a key is changed by putting a
new line before the old one and starting the scheduler again, which seals anew what an older key sealed. Then the old
line may go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from services.chassis.errors import ConfigurationError, Internal, Reason
from services.chassis.files import create_file, require_private

ID_BYTES = 8
SEPARATOR = b":"
"""Between the id of the key and what it sealed."""


class Seal:
    """Seals and opens bytes (Fernet: AES-128-CBC with HMAC-SHA256). Raises ValueError for what is no key."""

    def __init__(self, *keys: bytes) -> None:
        if not keys:
            raise ValueError("there is no key")
        self._fernets = {_key_id(key): Fernet(key) for key in keys}
        self._newest = _key_id(keys[0])

    @classmethod
    def from_file(cls, path: Path) -> Seal:
        """The keys in `path`, one made with mode 0600 where it is missing; two starters at once agree on it."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            create_file(path, Fernet.generate_key(), mode=0o600)  # who is late reads the other one's
        require_private(path)
        try:
            return cls(*path.read_bytes().split())
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"credentials_key_file {path} does not hold Fernet keys: {error}"]) from error

    def seal(self, content: bytes) -> bytes:
        """The content, sealed with the newest key."""
        return self._newest + SEPARATOR + self._fernets[self._newest].encrypt(content)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed. Internal where none of the keys sealed it."""
        key_id, separator, token = sealed.partition(SEPARATOR)
        fernet = self._fernets.get(key_id) if separator else None
        try:
            if fernet is not None:
                return fernet.decrypt(token)
        except InvalidToken:
            pass
        message = "stored credentials were sealed with another key than those of credentials_key_file"
        raise Internal(Reason.INTERNAL, message, {"key_id": key_id.decode(errors="replace")[:ID_BYTES]})

    def sealed_anew(self, sealed: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the sealed that an older key sealed, with what the newest makes of them."""
        older = [each for each in sealed if self._is_older(each)]
        return {each: self.seal(self.open(each)) for each in older}

    def _is_older(self, sealed: bytes) -> bool:
        key_id = sealed.partition(SEPARATOR)[0]
        return key_id != self._newest and key_id in self._fernets


def _key_id(key: bytes) -> bytes:
    """The first hexadecimal digits of the key's sha256, which tell nothing about it."""
    return hashlib.sha256(key).hexdigest()[:ID_BYTES].encode()
