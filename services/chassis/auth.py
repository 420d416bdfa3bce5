"""Who calls, and what an attempt may write.

`Authenticator` is the one place where authentication sits: the server's interceptor calls it with each call's metadata
before the servicer sees the call. Today `AllowAll` takes everybody for "anonymous".

Write tokens let a runner send an attempt's points and lines: signed by the scheduler (Ed25519, with a key id), verified
by metrics with public keys alone. Tokens and private keys must never be logged nor stand in an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.errors import ConfigurationError, PermissionDenied, Reason, Unauthenticated

ALGORITHM = "EdDSA"
AUDIENCE = "sihlai-write"
PUBLIC_SUFFIX = ".pub.pem"
LEEWAY_SECONDS = 5.0
"""How far the clocks of the signing and the verifying machine may lie apart."""
RELOAD_SECONDS_MIN = 1.0
"""An unknown key id makes a verifier read its folder again, at most this often."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who makes a call. `creator` is what a created resource remembers."""

    creator: str


class Authenticator(Protocol):
    """Tells who calls, from the call's metadata (keys in lower case), or raises Unauthenticated."""

    async def authenticate(self, metadata: Mapping[str, str], *, method: str) -> Principal:
        """Who makes this call of `method` (`/package.Service/Method`)."""
        ...


class AllowAll:
    """Everybody may call, as "anonymous"."""

    async def authenticate(self, metadata: Mapping[str, str], *, method: str) -> Principal:
        """Nobody in particular."""
        return ANONYMOUS


ANONYMOUS = Principal(creator="anonymous")
_principal: ContextVar[Principal] = ContextVar("sihlai_principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """Who makes the call that this task serves."""
    return _principal.get()


def set_current_principal(principal: Principal) -> None:
    """For the interceptor alone. Each call is a task with a context of its own, so nothing has to be reset."""
    _principal.set(principal)


@dataclass(frozen=True, kw_only=True)
class WriteToken:
    """What the holder may write: rows of this attempt, until `expires_at` (aware, whole seconds).

    `from_step` is the step that the attempt began at: rows of earlier attempts at or above it no longer count.
    `drain_only`: the attempt is closed; what its spool still holds is taken, new phases are not.
    """

    project: str
    job_uid: str
    attempt: int
    epoch: int
    from_step: int
    expires_at: datetime
    drain_only: bool = False

    def require_attempt(self, *, job_uid: str, attempt: int) -> None:
        """Raise PermissionDenied unless the token is for this attempt of this job."""
        if (self.job_uid, self.attempt) == (job_uid, attempt):
            return
        raise PermissionDenied(
            Reason.PERMISSION_DENIED,
            f"the write token is for attempt {self.attempt} of job {self.job_uid}, "
            f"not for attempt {attempt} of job {job_uid}",
            {"principal": f"{self.job_uid}/{self.attempt}", "permission": f"write {job_uid}/{attempt}"},
        )


class TokenSigner:
    """Signs write tokens with one private key."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.key_id = key_id_of(private_key.public_key())

    @classmethod
    def from_file(cls, path: Path) -> TokenSigner:
        """The key in `path` (PEM, PKCS 8), made with mode 0600 where missing; two starters at once agree on one.

        The public key is written beside it as `<stem>.pub.pem`, for the verifiers.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_private_file(path, _private_pem(Ed25519PrivateKey.generate()))
        try:
            private_key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a private key in PEM: {error}"]) from error
        if not isinstance(private_key, Ed25519PrivateKey):
            raise ConfigurationError([f"{path} holds a {type(private_key).__name__}, but write tokens need Ed25519"])
        _replace_file(path.with_name(path.stem + PUBLIC_SUFFIX), _public_pem(private_key.public_key()))
        return cls(private_key)

    def sign(self, token: WriteToken) -> str:
        """The token as a JWT."""
        claims = {
            "aud": AUDIENCE,
            "exp": int(token.expires_at.timestamp()),
            "project": token.project,
            "job_uid": token.job_uid,
            "attempt": token.attempt,
            "epoch": token.epoch,
            "from_step": token.from_step,
            "drain_only": token.drain_only,
        }
        return jwt.encode(claims, self._private_key, algorithm=ALGORITHM, headers={"kid": self.key_id})


class TokenVerifier:
    """Verifies write tokens with public keys. Several keys at once let keys be changed while tokens are about."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey], folder: Path | None = None) -> None:
        self._keys = dict(keys)
        self._folder = folder
        self._loaded_at: datetime | None = None

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> TokenVerifier:
        """The public keys in these files; they are read once."""
        return cls(_public_keys(paths))

    @classmethod
    def from_folder(cls, folder: Path) -> TokenVerifier:
        """The public keys in `folder` (`*.pub.pem`). A token with an unknown key id makes it read the folder again."""
        return cls(_public_keys(sorted(folder.glob("*" + PUBLIC_SUFFIX))), folder)

    def verify(self, text: str, *, now: datetime) -> WriteToken:
        """The token, or Unauthenticated where it is malformed, not signed by a known key, or expired at `now`."""
        try:
            key_id = str(jwt.get_unverified_header(text).get("kid", ""))
            key = self._key(key_id, now)
            # Expiry is checked below, against `now`: PyJWT would ask the machine's clock.
            options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": ["exp", "aud"]}
            claims = jwt.decode(text, key, algorithms=[ALGORITHM], audience=AUDIENCE, options=options)
            token = _token_from_claims(claims)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise _refused(f"the write token does not hold: {type(error).__name__}") from error
        late_seconds = (now - token.expires_at).total_seconds()
        if late_seconds > LEEWAY_SECONDS:
            raise _refused(f"the write token ended {late_seconds:.0f} s ago: renew it with Synchronize")
        return token

    def _key(self, key_id: str, now: datetime) -> Ed25519PublicKey:
        if key_id not in self._keys and self._may_reload(now) and self._folder is not None:
            self._loaded_at = now
            self._keys |= _public_keys(sorted(self._folder.glob("*" + PUBLIC_SUFFIX)))
        if key_id not in self._keys:
            raise _refused("the write token is signed by a key that this server does not know")
        return self._keys[key_id]

    def _may_reload(self, now: datetime) -> bool:
        return self._loaded_at is None or abs((now - self._loaded_at).total_seconds()) >= RELOAD_SECONDS_MIN


def key_id_of(public_key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the sha256 of the raw public key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(Reason.TOKEN_INVALID, message)


def _token_from_claims(claims: Mapping[str, Any]) -> WriteToken:
    return WriteToken(
        project=str(claims["project"]),
        job_uid=str(claims["job_uid"]),
        attempt=int(claims["attempt"]),
        epoch=int(claims["epoch"]),
        from_step=int(claims["from_step"]),
        expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        drain_only=bool(claims["drain_only"]),
    )


def _public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    keys = {}
    for path in paths:
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a public key in PEM: {error}"]) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError([f"{path} holds a {type(key).__name__}, but write tokens need Ed25519"])
        keys[key_id_of(key)] = key
    return keys


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _create_private_file(path: Path, data: bytes) -> None:
    """Whole or not at all, and never over an existing file: the loser of a race reads the winner's key."""
    draft = _draft(path, data, mode=0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _replace_file(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    _draft(path, data, mode=0o644).replace(path)


def _draft(path: Path, data: bytes, *, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return draft
