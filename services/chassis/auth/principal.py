"""Who makes a call, and what roles they have."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

from services.chassis.text import text_violations

ALL_PROJECTS = "projects/-"
"""As a grant: every project, also those that are made later."""
_SUBJECT = re.compile(r"(users|runners|services)/[^/\s]{1,200}")
ANY_RUNNER = "runners/-"
"""The subject of a token that several runners share: each says by itself which it is."""


NEVER = datetime(9999, 1, 1, tzinfo=UTC)


class Role(enum.IntEnum):
    """What a user may do in a project; a higher role holds the lower ones."""

    VIEWER = 1
    """Reads."""
    EDITOR = 2
    """Submits, stops and resumes jobs too."""
    ADMIN = 3
    """Changes and deletes the project, and gives tokens for it."""


class Kind(enum.StrEnum):
    """What a principal is: how its name begins."""

    USER = "users"
    RUNNER = "runners"
    SERVICE = "services"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who makes a call. `subject` is its name (`users/ada`), and what a created resource remembers.

    `is_admin`: of the whole installation. `roles` is by project, `projects/-` stands for all. `token_id` is empty where
    no token said so, `key_id` where no key of ours signed it; `expires_at` (aware, whole seconds) is when it ends.
    """

    subject: str
    token_id: str = ""
    key_id: str = ""
    expires_at: datetime = NEVER
    is_admin: bool = False
    roles: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def kind(self) -> Kind:
        """What it is."""
        return Kind(self.subject.partition("/")[0])

    def may(self, role: Role, project: str) -> bool:
        """Whether it has this role, or a higher one, in the project (`projects/digits`)."""
        if self.is_admin:
            return True
        return max(self.roles.get(project, 0), self.roles.get(ALL_PROJECTS, 0)) >= role

    def may_anywhere(self, role: Role) -> bool:
        """Whether it has this role in any project."""
        return self.is_admin or any(each >= role for each in self.roles.values())

    def sees_all(self) -> bool:
        """Whether it may read every project. Services may: they answer users, whose rights are looked at first."""
        return self.kind is Kind.SERVICE or self.may(Role.VIEWER, ALL_PROJECTS)

    def sees(self, project: str) -> bool:
        """Whether it may read the project."""
        return self.kind is Kind.SERVICE or self.may(Role.VIEWER, project)

    def visible_projects(self) -> frozenset[str] | None:
        """The names of the projects that it may read, as far as some have them; None stands for all."""
        return None if self.sees_all() else frozenset(self.roles)


ANONYMOUS = Principal(subject="users/anonymous", is_admin=True)
"""Who calls a server that asks nobody (see OpenGuard)."""
_principal: ContextVar[Principal] = ContextVar("sihlai_principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """Who makes the call that this task serves."""
    return _principal.get()


def set_current_principal(principal: Principal) -> None:
    """For the interceptor alone. Each call is a task with a context of its own, so nothing has to be reset."""
    _principal.set(principal)


def is_subject(text: str) -> bool:
    """Whether a principal may have this name: it becomes part of what others read, and must look like no other."""
    return _SUBJECT.fullmatch(text) is not None and not text_violations(text, "", characters_max=len(text))


def claims_from_principal(principal: Principal) -> dict[str, Any]:
    """The claims of an access token."""
    return {
        "sub": principal.subject,
        "jti": principal.token_id,
        "exp": int(principal.expires_at.timestamp()),
        "admin": principal.is_admin,
        "roles": {project: role.name.lower() for project, role in principal.roles.items()},
    }


def principal_from_claims(claims: Mapping[str, Any]) -> Principal:
    """The principal; KeyError, TypeError or ValueError where the claims are no access token's."""
    subject = str(claims["sub"])
    if not is_subject(subject):
        raise ValueError(subject)
    return Principal(
        subject=subject,
        token_id=str(claims["jti"]),
        expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        is_admin=claims["admin"] is True,
        roles=MappingProxyType({str(project): Role[role.upper()] for project, role in claims["roles"].items()}),
    )
