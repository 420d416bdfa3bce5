"""A token that was given: whose it is, what it lets its holder do, and whether it was taken back."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class AccessToken(Struct, frozen=True, kw_only=True):
    """`roles` is by project, in lower-case words. `subject` is empty where only the revocation is known: the token was
    made elsewhere.
    """

    token_id: str
    subject: str
    is_admin: bool
    roles: Mapping[str, str]
    description: str
    creator: str
    create_time_us: int
    expire_time_us: int
    revoke_time_us: int | None = None
    revoker: str = ""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"tokens/{self.token_id}"
