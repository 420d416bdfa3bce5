"""What an issuer publishes: its discovery document, and the keys that this names. Bounded in time and in size."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import urllib3
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.chassis.auth.oidc.settings import is_safe
from services.chassis.errors import ConfigurationError, Reason, Unavailable
from services.chassis.log import get_logger

log = get_logger(__name__)

DISCOVERY = "/.well-known/openid-configuration"
KEYS_MAX = 100
"""Keys of one issuer that are looked at."""
RSA_BITS_MIN = 2_048
READ_BYTES = 65_536
KINDS = frozenset({"RSA", "EC", "OKP"})
"""Of keys that have a public half."""


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Of one document: how long it may take, and how large it may be."""

    seconds: float
    bytes_max: int


@dataclass(frozen=True, kw_only=True)
class IssuerKey:
    """A public key of an issuer; `algorithm` is the only one that it is for, or empty."""

    key: Any
    algorithm: str


class Documents:
    """Fetches, in the thread that calls. Neither a proxy nor a redirect is followed: the issuer is asked itself."""

    def __init__(self, limits: FetchLimits, *, ca_file: Path | None = None) -> None:
        self._limits = limits
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ConfigurationError([f"oidc_ca_file {ca_file} cannot be used: {error}"]) from error
        self._pool = urllib3.PoolManager(
            ssl_context=context, retries=False, timeout=urllib3.Timeout(total=limits.seconds)
        )

    def keys(self, issuer: str) -> list[Any]:
        """The issuer's keys, as it shows them. Unavailable, with what is wrong, where they cannot be had."""
        discovery = self._document(issuer.rstrip("/") + DISCOVERY)
        if discovery.get("issuer") != issuer:
            raise _away(f"{issuer} says that it is {str(discovery.get('issuer'))[:200]!r}")
        jwks_uri = discovery.get("jwks_uri")
        if not isinstance(jwks_uri, str) or not is_safe(jwks_uri):
            raise _away(f"{issuer} names no https:// address of its keys")
        found = self._document(jwks_uri).get("keys")
        if not isinstance(found, list):
            raise _away(f"{jwks_uri} holds no list of keys")
        return found[:KEYS_MAX]

    def _document(self, url: str) -> Mapping[str, Any]:
        try:
            document = json.loads(self._content(url))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _away(f"{url} does not answer: {error}") from error
        except (ValueError, RecursionError) as error:
            raise _away(f"{url} holds no JSON: {error}") from error
        if not isinstance(document, dict):
            raise _away(f"{url} holds no JSON object")
        return document

    def _content(self, url: str) -> bytes:
        deadline = time.monotonic() + self._limits.seconds
        headers = {"Accept": "application/json"}
        response = self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
        try:
            if response.status != 200:
                raise _away(f"{url} answers with status {response.status}")
            content = bytearray()
            while part := response.read1(READ_BYTES):
                content += part
                if len(content) > self._limits.bytes_max:
                    raise _away(f"{url} is larger than {self._limits.bytes_max} bytes")
                if time.monotonic() > deadline:
                    raise _away(f"{url} takes longer than {self._limits.seconds:g} s")
            return bytes(content)
        finally:
            response.close()


def keys_in(shown: list[Any]) -> dict[str, IssuerKey]:
    """The keys that sign, by id."""
    return dict(key for each in shown if (key := _key(each)) is not None)


def _key(given: Any) -> tuple[str, IssuerKey] | None:
    """A key that signs, with its id; None for any other, such as one of a kind that is not known here."""
    if not isinstance(given, dict) or given.get("kty") not in KINDS or given.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(given).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        log.debug("issuer_key_left_out", problem=type(error).__name__)
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        return None
    return str(given.get("kid", "")), IssuerKey(key=key, algorithm=str(given.get("alg", "")))


def _away(problem: str) -> Unavailable:
    return Unavailable(Reason.SERVICE_UNAVAILABLE, f"the issuer's keys cannot be fetched: {problem}")
