"""How a key hands over to the next one: a statement that the old one signs, and that whoever knows it can believe.

So a new key needs to be brought to nobody: the scheduler tells all services of it, and stands it in its key file. The
statement also says until when the old key's tokens hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ALGORITHM = "EdDSA"
AUDIENCE = "sihlai-key"
"""No token's: neither is ever taken for the other."""
PREFIX = b"succession: "
"""Of a line before the key in a PEM file, where readers of PEM look at nothing."""
MALFORMED = (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What comes of a token that is none."""


@dataclass(frozen=True, kw_only=True)
class HeldKey:
    """A key that is believed; `ends_at`: until when, where another one has taken its place."""

    key: Ed25519PublicKey
    ends_at: datetime | None = None


def handed_over(given: Mapping[str, Ed25519PublicKey], statements: Iterable[str]) -> dict[str, HeldKey]:
    """The keys by id, those included that one of them has handed over to, and those again. Oldest statement first."""
    held = {key_id: HeldKey(key=key) for key_id, key in given.items()}
    for statement in statements:
        try:
            key_id = str(jwt.get_unverified_header(statement)["kid"])
            known = held[key_id]
            if known.ends_at is not None:
                continue  # it has handed over once, and has nothing to say any more
            claims = jwt.decode(statement, known.key, algorithms=[ALGORITHM], audience=AUDIENCE)
            successor = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(claims["key"]))
            ends_at = datetime.fromtimestamp(int(claims["ends"]), UTC)
        except MALFORMED:
            continue  # nobody's who is known here
        held[key_id] = replace(known, ends_at=ends_at)
        held.setdefault(key_id_of(successor), HeldKey(key=successor))
    return held


def claims_from_succession(successor: Ed25519PublicKey, *, ends_at: datetime) -> dict[str, Any]:
    """What the statement says."""
    key = base64.urlsafe_b64encode(successor.public_bytes_raw()).decode()
    return {"aud": AUDIENCE, "key": key, "ends": int(ends_at.timestamp())}


def successions_in(content: bytes) -> tuple[str, ...]:
    """The statements that stand before a key in its file."""
    lines = (line.strip() for line in content.splitlines())
    return tuple(
        line.removeprefix(PREFIX).decode(errors="replace").strip() for line in lines if line.startswith(PREFIX)
    )


def successions_text(statements: Iterable[str]) -> bytes:
    """The same statements, as they stand in a file."""
    return b"".join(PREFIX + statement.encode() + b"\n" for statement in statements)


def key_id_of(public_key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the sha256 of the raw public key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]
