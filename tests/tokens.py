"""Real tokens for tests: signed with the key of the installation that a test starts, and carried by its channels."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from services.chassis.auth.carrying import Carrying, authorization
from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.principal import ANY_RUNNER, Principal, Role

ADMIN = "users/tester"
LIFE = timedelta(hours=12)


def token(key_file: Path, subject: str = ADMIN, *, roles: Mapping[str, Role] | None = None, **changes: Any) -> str:
    """A token of the principal; without roles a user is the installation's admin. The key is made where missing."""
    principal = {
        "subject": subject,
        "token_id": uuid.uuid4().hex,
        "expires_at": datetime.now(UTC).replace(microsecond=0) + LIFE,
        "is_admin": subject.startswith("users/") and roles is None,
        "roles": roles or {},
        **changes,
    }
    return TokenSigner.from_file(key_file).sign_access(Principal(**principal))


def runner_token(key_file: Path) -> str:
    """A token that any runner may use."""
    return token(key_file, ANY_RUNNER)


def token_file(key_file: Path, subject: str) -> Path:
    """A file with a token of the service or runner, beside the key."""
    path = key_file.with_name(f"{subject.replace('/', '-')}.token")
    path.touch(mode=0o600)
    path.write_text(token(key_file, subject))
    return path


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Carrier(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts a token into every call of a channel that belongs to no event loop."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), *authorization(self._text))
        given = (details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)
        return continuation(_Details(*given, details.compression), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _intercept


def carrying(channel: grpc.Channel, text: str | Callable[[], str]) -> grpc.Channel:
    """The channel, with the token in every call; closing it closes the other."""
    return grpc.intercept_channel(channel, _Carrier(text if callable(text) else lambda: text))


def aio_carrying(channel: grpc.aio.Channel, text: str) -> grpc.aio.Channel:
    """The same for a channel of an event loop."""
    return Carrying(channel, lambda: text)
