"""A request that may be sent again. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for what: the caller's id, which may be empty, and the digest of method and body."""

    request_id: str
    digest: bytes
