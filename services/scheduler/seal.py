"""Credentials of datasets at rest: sealed with a key of one file, opened only for runners and for conversion.

What is opened must never stand in an answer to a user, a log, an event or an error.

The file holds one key a line, the newest first. The first seals, and all of them open. A key is changed by a call: a
new line comes before the old one, what that one sealed is sealed anew, and the old line goes. By hand: put the new line
there and start the scheduler again, which seals anew; then the old line may go.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from services.chassis.errors import ConfigurationError, FailedPrecondition, Internal, Reason
from services.chassis.files import create_file, replace_file, require_private
from services.chassis.log import get_logger

log = get_logger(__name__)

ID_BYTES = 8
SEPARATOR = b":"
"""Between the id of the key and what it sealed."""


class Seal:
    """Seals and opens bytes (Fernet: AES-128-CBC with HMAC-SHA256). Raises ValueError for what is no key."""

    def __init__(self, *keys: bytes, path: Path | None = None) -> None:
        if not keys:
            raise ValueError("there is no key")
        self._keys = keys
        self._path = path
        self._fernets = {_key_id(key): Fernet(key) for key in keys}
        self._newest = _key_id(keys[0])

    @property
    def key_id(self) -> str:
        """The id of the newest key."""
        return self._newest.decode()

    @classmethod
    def from_file(cls, path: Path) -> Seal:
        """The keys in `path`, one made with mode 0600 where it is missing; two starters at once agree on it."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            create_file(path, Fernet.generate_key(), mode=0o600)  # who is late reads the other one's
        require_private(path)
        try:
            return cls(*path.read_bytes().split(), path=path)
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
        """Those of the sealed that an older key sealed, with what the newest makes of them. What is damaged stays."""
        anew = {}
        for each in sealed:
            try:
                if self._is_older(each):
                    anew[each] = self.seal(self.open(each))
            except Internal as error:
                log.error("credentials_not_opened", problem=error.message, **error.metadata)
        return anew

    def renewed(self, sealed: bytes) -> bytes:
        """The sealed, by the newest key."""
        return self.sealed_anew([sealed]).get(sealed, sealed)

    def add_key(self) -> None:
        """Seal with a new key from now on; the file holds it and the older ones. FailedPrecondition where it cannot be
        written.
        """
        key = Fernet.generate_key()
        self._write((key, *self._keys))
        self._fernets = {**self._fernets, _key_id(key): Fernet(key)}  # first: who seals meanwhile finds the newest
        self._newest = _key_id(key)

    def drop_older(self) -> None:
        """Leave the newest key alone in the file: nothing that is stored was sealed by another. What an older one
        sealed a moment ago, and is on its way, this process still opens. FailedPrecondition as `add_key`.
        """
        self._write(self._keys[:1])

    def _write(self, keys: tuple[bytes, ...]) -> None:
        assert self._path is not None, "its keys come from a file"
        try:
            mode = stat.S_IMODE(self._path.stat().st_mode)
            replace_file(self._path, b"\n".join(keys) + b"\n", mode=mode)
        except OSError as error:
            message = f"the key file {self._path} cannot be written: {error.strerror}; change its lines by hand"
            raise FailedPrecondition(Reason.KEY_NOT_REPLACEABLE, message, {"path": str(self._path)}) from error
        self._keys = keys

    def _is_older(self, sealed: bytes) -> bool:
        key_id = sealed.partition(SEPARATOR)[0]
        return key_id != self._newest and key_id in self._fernets


def _key_id(key: bytes) -> bytes:
    """The first hexadecimal digits of the key's sha256, which tell nothing about it."""
    return hashlib.sha256(key).hexdigest()[:ID_BYTES].encode()
