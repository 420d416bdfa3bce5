"""A request that may be sent again."""

from __future__ import annotations

from msgspec import Struct


class Request(Struct, frozen=True, kw_only=True):
    """Who asks for what: the caller's id, which may be empty, and the digest of method and body."""

    request_id: str
    digest: bytes
