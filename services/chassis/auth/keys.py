"""Signing and verifying tokens: Ed25519, with a key id; several keys at once, so that keys change while tokens live.

An access token says who calls, a write token what one attempt may write. Both are signed by the same keys, and told
apart by their audience: neither is ever taken for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.auth.principal import Principal, claims_from_principal, principal_from_claims
from services.chassis.auth.write_token import WriteToken, claims_from_write_token, write_token_from_claims
from services.chassis.errors import ConfigurationError, Reason, Unauthenticated
from services.chassis.files import create_file, replace_file, require_private
from services.chassis.log import get_logger

log = get_logger(__name__)

ALGORITHM = "EdDSA"
WRITE_AUDIENCE = "sihlai-write"
ACCESS_AUDIENCE = "sihlai"
PRIVATE_MODE = 0o600
PUBLIC_SUFFIX = ".pub.pem"
LEEWAY_SECONDS = 5.0
"""How far the clocks of the signing and the verifying machine may lie apart."""
RELOAD_SECONDS_MIN = 1.0
"""An unknown key id makes a verifier read its folder again, at most this often."""
MALFORMED = (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What comes of a token that is none."""


class TokenSigner:
    """Signs tokens with one private key."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.key_id = key_id_of(private_key.public_key())

    @classmethod
    def from_file(cls, path: Path) -> TokenSigner:
        """The key in `path` (PEM, PKCS 8), made with mode 0600 where missing; two starters at once agree on one.

        The public key is written beside it, for the verifiers: as `<stem>.pub.pem`, and as `<stem>.<key id>.pub.pem`,
        which stays when another key takes its place. So a key is changed by putting another file there and starting the
        scheduler again, and tokens of the old key hold until they end. ConfigurationError where others may read it.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of two starters at once the loser reads the winner's.
            create_file(path, _private_pem(Ed25519PrivateKey.generate()), mode=PRIVATE_MODE)
        require_private(path)
        try:
            private_key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a private key in PEM: {error}"]) from error
        if not isinstance(private_key, Ed25519PrivateKey):
            raise ConfigurationError([f"{path} holds a {type(private_key).__name__}, but tokens need Ed25519"])
        signer = cls(private_key)
        for stem in (path.stem, f"{path.stem}.{signer.key_id}"):
            _replace_changed(path.with_name(stem + PUBLIC_SUFFIX), _public_pem(private_key.public_key()))
        return signer

    def sign(self, token: WriteToken) -> str:
        """The write token as a JWT."""
        return self._signed({"aud": WRITE_AUDIENCE, **claims_from_write_token(token)})

    def sign_access(self, principal: Principal) -> str:
        """An access token of the principal, as a JWT; its `token_id` is what it can be revoked by."""
        return self._signed({"aud": ACCESS_AUDIENCE, **claims_from_principal(principal)})

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._private_key, algorithm=ALGORITHM, headers={"kid": self.key_id})


class TokenVerifier:
    """Verifies tokens with public keys. Several keys at once let keys be changed while tokens are about."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey], paths: Iterable[Path] = ()) -> None:
        self._keys = dict(keys)
        self._paths = tuple(paths)
        self._loaded_at: datetime | None = None

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> TokenVerifier:
        """The public keys in these files, and in the folders among them (`*.pub.pem`).

        A token with an unknown key id makes them be read again: keys can be changed without a restart.
        """
        paths = tuple(paths)
        return cls(_public_keys(_key_files(paths)), paths)

    @classmethod
    def from_folder(cls, folder: Path) -> TokenVerifier:
        """The public keys in `folder`."""
        return cls.from_files([folder])

    def verify(self, text: str, *, now: datetime) -> WriteToken:
        """The write token, or Unauthenticated where it is malformed, not signed by a known key, or expired at `now`."""
        try:
            token = write_token_from_claims(self._claims(text, WRITE_AUDIENCE, now))
        except MALFORMED as error:
            raise _refused(f"the write token does not hold: {type(error).__name__}") from error
        if (late := _seconds_late(token.expires_at, now)) is not None:
            raise _refused(f"the write token ended {late:.0f} s ago: renew it with Synchronize")
        return token

    def verify_access(self, text: str, *, now: datetime) -> Principal:
        """Who an access token stands for, or Unauthenticated as `verify`. Whether it was revoked others say."""
        try:
            principal = principal_from_claims(self._claims(text, ACCESS_AUDIENCE, now))
        except MALFORMED as error:
            raise _refused(f"the token does not hold: {type(error).__name__}") from error
        if (late := _seconds_late(principal.expires_at, now)) is not None:
            raise token_expired(late)
        return principal

    def _claims(self, text: str, audience: str, now: datetime) -> Mapping[str, Any]:
        """What a signed token says. The caller judges its expiry, by `now`: PyJWT would ask the machine's clock."""
        key = self._key(str(jwt.get_unverified_header(text).get("kid", "")), now)
        options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": ["exp", "aud"]}
        claims: Mapping[str, Any] = jwt.decode(text, key, algorithms=[ALGORITHM], audience=audience, options=options)
        return claims

    def _key(self, key_id: str, now: datetime) -> Ed25519PublicKey:
        if key_id not in self._keys and self._may_reload(now):
            self._loaded_at = now
            self._keys |= _readable_keys(_key_files(self._paths))
        if key_id not in self._keys:
            raise _refused("the token is signed by a key that this server does not know")
        return self._keys[key_id]

    def _may_reload(self, now: datetime) -> bool:
        return self._loaded_at is None or abs((now - self._loaded_at).total_seconds()) >= RELOAD_SECONDS_MIN


def public_key_files(private_key_file: Path) -> list[Path]:
    """The public halves that lie beside a private key: its own, and those of the keys that were in its place before."""
    stem = private_key_file.stem
    earlier = sorted(private_key_file.parent.glob(f"{stem}.*{PUBLIC_SUFFIX}"))
    return [private_key_file.with_name(stem + PUBLIC_SUFFIX), *earlier]


def key_id_of(public_key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the sha256 of the raw public key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(Reason.TOKEN_INVALID, message)


def token_expired(seconds_late: float) -> Unauthenticated:
    """What the holder of a token that has ended is told."""
    return Unauthenticated(Reason.TOKEN_EXPIRED, f"the token ended {seconds_late:.0f} s ago: get a new one")


def _seconds_late(expires_at: datetime, now: datetime) -> float | None:
    """How long ago a token ended; None while it holds."""
    late = (now - expires_at).total_seconds()
    return late if late > LEEWAY_SECONDS else None


def _key_files(paths: Iterable[Path]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*" + PUBLIC_SUFFIX)) if path.is_dir() else [path])]


def _readable_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """The keys in those of the files that hold one: a damaged file takes no right from the others."""
    keys: dict[str, Ed25519PublicKey] = {}
    for path in paths:
        try:
            keys |= _public_keys([path])
        except ConfigurationError as error:
            log.error("public_key_damaged", path=str(path), problem=str(error))
    return keys


def _public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    keys = {}
    for path in paths:
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a public key in PEM: {error}"]) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError([f"{path} holds a {type(key).__name__}, but tokens need Ed25519"])
        keys[key_id_of(key)] = key
    return keys


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _replace_changed(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data)
