"""Signing and verifying tokens: Ed25519, with a key id; several keys at once, so that keys change while tokens live.

An access token says who calls, a write token what one attempt may write. Both are signed by the same keys, and told
apart by their audience: neither is ever taken for the other.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.auth.principal import Principal, claims_from_principal, principal_from_claims
from services.chassis.auth.succession import (
    ALGORITHM,
    MALFORMED,
    HeldKey,
    claims_from_succession,
    handed_over,
    key_id_of,
    successions_in,
    successions_text,
)
from services.chassis.auth.write_token import WriteToken, claims_from_write_token, write_token_from_claims
from services.chassis.errors import ConfigurationError, Reason, Unauthenticated
from services.chassis.files import create_file, replace_file, require_private
from services.chassis.log import get_logger

log = get_logger(__name__)

WRITE_AUDIENCE = "sihlai-write"
ACCESS_AUDIENCE = "sihlai"
PRIVATE_MODE = 0o600
PUBLIC_SUFFIX = ".pub.pem"
LEEWAY_SECONDS = 5.0
"""How far the clocks of the signing and the verifying machine may lie apart."""
RELOAD_SECONDS_MIN = 1.0
"""An unknown key id makes a verifier read its folder again, at most this often."""
SUCCESSIONS_MAX = 100
"""Changes of keys that a server tells of: one that missed more is given its key anew."""


class TokenSigner:
    """Signs tokens with one private key. `successions`: how the keys before it handed over, oldest first."""

    def __init__(self, private_key: Ed25519PrivateKey, successions: Sequence[str] = ()) -> None:
        self._private_key = private_key
        self.successions = tuple(successions)
        self.key_id = key_id_of(private_key.public_key())

    @classmethod
    def from_file(cls, path: Path) -> TokenSigner:
        """The key in `path` (PEM, PKCS 8), made with mode 0600 where missing; two starters at once agree on one.

        The public key is written beside it, for the verifiers: as `<stem>.pub.pem`, and as `<stem>.<key id>.pub.pem`,
        which stays when another key takes its place. So a key is changed by `rotate_key`, or by putting another file
        there and starting the scheduler again, and tokens of the old key hold until they end. ConfigurationError where
        others may read it.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of two starters at once the loser reads the winner's.
            create_file(path, _private_pem(Ed25519PrivateKey.generate()), mode=PRIVATE_MODE)
        require_private(path)
        try:
            content = path.read_bytes()
            private_key = serialization.load_pem_private_key(content, password=None)
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a private key in PEM: {error}"]) from error
        if not isinstance(private_key, Ed25519PrivateKey):
            raise ConfigurationError([f"{path} holds a {type(private_key).__name__}, but tokens need Ed25519"])
        signer = cls(private_key, successions_in(content))
        for stem in (path.stem, f"{path.stem}.{signer.key_id}"):
            public = successions_text(signer.successions) + _public_pem(private_key.public_key())
            _replace_changed(path.with_name(stem + PUBLIC_SUFFIX), public)
        return signer

    def sign(self, token: WriteToken) -> str:
        """The write token as a JWT."""
        return self._signed({"aud": WRITE_AUDIENCE, **claims_from_write_token(token)})

    def sign_access(self, principal: Principal) -> str:
        """An access token of the principal, as a JWT; its `token_id` is what it can be revoked by."""
        return self._signed({"aud": ACCESS_AUDIENCE, **claims_from_principal(principal)})

    def hand_over(self, successor: Ed25519PublicKey, *, ends_at: datetime) -> str:
        """The statement that another key signs from now on, and that this one's tokens hold until then at most."""
        return self._signed(claims_from_succession(successor, ends_at=ends_at))

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._private_key, algorithm=ALGORITHM, headers={"kid": self.key_id})


class TokenVerifier:
    """Verifies tokens with public keys. Several keys at once let keys be changed while tokens are about."""

    def __init__(
        self, keys: Mapping[str, Ed25519PublicKey], paths: Iterable[Path] = (), successions: Sequence[str] = ()
    ) -> None:
        self._given = dict(keys)
        self._written = tuple(successions)
        self._heard: tuple[str, ...] = ()
        self._paths = tuple(paths)
        self._loaded_at: datetime | None = None
        self._held = handed_over(self._given, self._written)

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> TokenVerifier:
        """The public keys in these files, and in the folders among them (`*.pub.pem`).

        A token with an unknown key id makes them be read again: keys can be changed without a restart.
        """
        paths = tuple(paths)
        keys, successions = _public_keys(_key_files(paths))
        return cls(keys, paths, successions)

    @classmethod
    def from_folder(cls, folder: Path) -> TokenVerifier:
        """The public keys in `folder`."""
        return cls.from_files([folder])

    def learn(self, successions: Iterable[str]) -> None:
        """Take the keys that known ones have handed over to, as the scheduler tells of them. What no known key signed
        counts for nothing.
        """
        successions = tuple(successions)
        if successions == self._heard:
            return
        self._heard = successions
        self._held = handed_over(self._given, (*self._written, *self._heard))

    def verify(self, text: str, *, now: datetime) -> WriteToken:
        """The write token, or Unauthenticated where it is malformed, not signed by a known key, or expired at `now`."""
        try:
            claims, key = self._claims(text, WRITE_AUDIENCE, now)
            token = write_token_from_claims(claims)
        except MALFORMED as error:
            raise _refused(f"the write token does not hold: {type(error).__name__}") from error
        if (late := _seconds_late(token.expires_at, now)) is not None:
            raise _refused(f"the write token ended {late:.0f} s ago: renew it with Synchronize")
        _require_living(key, now)
        return token

    def verify_access(self, text: str, *, now: datetime) -> Principal:
        """Who an access token stands for, or Unauthenticated as `verify`. Whether it was revoked others say."""
        try:
            claims, key = self._claims(text, ACCESS_AUDIENCE, now)
            principal = principal_from_claims(claims)
        except MALFORMED as error:
            raise _refused(f"the token does not hold: {type(error).__name__}") from error
        if (late := _seconds_late(principal.expires_at, now)) is not None:
            raise token_expired(late)
        _require_living(key, now)
        expires_at = min(principal.expires_at, key.ends_at or principal.expires_at)
        return replace(principal, expires_at=expires_at, key_id=key_id_of(key.key))

    def _claims(self, text: str, audience: str, now: datetime) -> tuple[Mapping[str, Any], HeldKey]:
        """What a signed token says. The caller judges its expiry, by `now`: PyJWT would ask the machine's clock."""
        held = self._key(str(jwt.get_unverified_header(text).get("kid", "")), now)
        options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": ["exp", "aud"]}
        return jwt.decode(text, held.key, algorithms=[ALGORITHM], audience=audience, options=options), held

    def _key(self, key_id: str, now: datetime) -> HeldKey:
        if key_id not in self._held and self._may_reload(now):
            self._loaded_at = now
            keys, self._written = _readable_keys(_key_files(self._paths))
            self._given |= keys
            self._held = handed_over(self._given, (*self._written, *self._heard))
        if key_id not in self._held:
            raise _refused("the token is signed by a key that this server does not know")
        return self._held[key_id]

    def _may_reload(self, now: datetime) -> bool:
        return self._loaded_at is None or abs((now - self._loaded_at).total_seconds()) >= RELOAD_SECONDS_MIN


def rotate_key(path: Path, *, ends_at: datetime) -> TokenSigner:
    """Put a new key into `path`, to which the one that is there hands over: its tokens hold until `ends_at` at most.

    Both, the key and the statement, are there or neither. OSError where the file cannot be replaced.
    """
    old, key = TokenSigner.from_file(path), Ed25519PrivateKey.generate()
    successions = (*old.successions, old.hand_over(key.public_key(), ends_at=ends_at))[-SUCCESSIONS_MAX:]
    mode = stat.S_IMODE(path.stat().st_mode)
    replace_file(path, successions_text(successions) + _private_pem(key), mode=mode)
    return TokenSigner.from_file(path)


def remove_ended_keys(path: Path, *, now: datetime) -> list[str]:
    """Delete the public halves beside `path` of keys whose last token has ended; their ids."""
    signer = TokenSigner.from_file(path)
    keys, _ = _readable_keys(public_key_files(path))
    held = handed_over(keys, signer.successions)
    ended = [key_id for key_id, key in held.items() if key.ends_at is not None and _seconds_late(key.ends_at, now)]
    files = {key_id: path.with_name(f"{path.stem}.{key_id}{PUBLIC_SUFFIX}") for key_id in ended}
    removed = [key_id for key_id, file in files.items() if file.exists()]
    for key_id in removed:
        files[key_id].unlink(missing_ok=True)
    return removed


def public_key_files(private_key_file: Path) -> list[Path]:
    """The public halves that lie beside a private key: its own, and those of the keys that were in its place before."""
    stem = private_key_file.stem
    earlier = sorted(private_key_file.parent.glob(f"{stem}.*{PUBLIC_SUFFIX}"))
    return [private_key_file.with_name(stem + PUBLIC_SUFFIX), *earlier]


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(Reason.TOKEN_INVALID, message)


def token_expired(seconds_late: float) -> Unauthenticated:
    """What the holder of a token that has ended is told."""
    return Unauthenticated(Reason.TOKEN_EXPIRED, f"the token ended {seconds_late:.0f} s ago: get a new one")


def _require_living(key: HeldKey, now: datetime) -> None:
    if key.ends_at is not None and _seconds_late(key.ends_at, now) is not None:
        raise _refused("the token is signed by a key that another one has replaced: get a new token")


def _seconds_late(expires_at: datetime, now: datetime) -> float | None:
    """How long ago a token ended; None while it holds."""
    late = (now - expires_at).total_seconds()
    return late if late > LEEWAY_SECONDS else None


def _key_files(paths: Iterable[Path]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*" + PUBLIC_SUFFIX)) if path.is_dir() else [path])]


def _readable_keys(paths: Iterable[Path]) -> tuple[dict[str, Ed25519PublicKey], tuple[str, ...]]:
    """What is in those of the files that hold a key: a damaged file takes no right from the others."""
    readable = []
    for path in paths:
        try:
            _public_keys([path])
            readable.append(path)
        except ConfigurationError as error:
            log.error("public_key_damaged", path=str(path), problem=str(error))
    return _public_keys(readable)


def _public_keys(paths: Iterable[Path]) -> tuple[dict[str, Ed25519PublicKey], tuple[str, ...]]:
    """The keys in the files, and the successions that stand there."""
    keys: dict[str, Ed25519PublicKey] = {}
    successions: dict[str, None] = {}
    for path in paths:
        try:
            content = path.read_bytes()
            key = serialization.load_pem_public_key(content)
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{path} cannot be read as a public key in PEM: {error}"]) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError([f"{path} holds a {type(key).__name__}, but tokens need Ed25519"])
        keys[key_id_of(key)] = key
        successions |= dict.fromkeys(successions_in(content))
    return keys, tuple(successions)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _replace_changed(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data)
