"""Access tokens ↔ protos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from sihlai.auth.v1 import token_service_pb2

from services.chassis.auth.principal import ALL_PROJECTS, Principal, Role, is_subject
from services.chassis.errors import Violation
from services.chassis.text import text_violations
from services.scheduler.domain.access_token import AccessToken
from services.scheduler.domain.job import SECOND_US
from services.scheduler.wire.names import ID_PATTERN, NAME_SHOWN_MAX, wrong_name
from services.scheduler.wire.times import time_us, time_violations, timestamp

DESCRIPTION_CHARACTERS_MAX = 200
GRANTS_MAX = 1_000
_TOKEN_NAME = re.compile("tokens/([a-zA-Z0-9_-]{1,64})")
_PROJECT = re.compile(f"projects/(-|{ID_PATTERN})")


def token_id_of(name: str) -> str:
    """The id in `tokens/{token}`."""
    match = _TOKEN_NAME.fullmatch(name)
    if match is None:
        raise wrong_name(name, "tokens/{token}", "name")
    return match[1]


def principal_violations(proto: token_service_pb2.Principal) -> list[Violation]:
    """What is wrong with whom a token is to be for."""
    found = []
    if not is_subject(proto.subject):
        wanted = "users/…, runners/… or services/…, without white space and characters that nobody sees"
        description = f"is {proto.subject[:NAME_SHOWN_MAX]!r}, but must be {wanted}"
        found.append(Violation(field="principal.subject", description=description))
    elif not proto.subject.startswith("users/") and (proto.grants or proto.installation_admin):
        description = f"must be empty for {proto.subject}: only users have roles"
        found.append(Violation(field="principal.grants", description=description))
    if len(proto.grants) > GRANTS_MAX:
        description = f"are {len(proto.grants)}, but at most {GRANTS_MAX} fit"
        found.append(Violation(field="principal.grants", description=description))
    for index, grant in enumerate(proto.grants[:GRANTS_MAX]):
        if not _PROJECT.fullmatch(grant.project):
            description = f"is {grant.project[:NAME_SHOWN_MAX]!r}, but must be projects/{{project}} or {ALL_PROJECTS}"
            found.append(Violation(field=f"principal.grants[{index}].project", description=description))
        if grant.role not in ROLES:
            wanted = ", ".join(role.name.lower() for role in Role)
            description = f"is {grant.role}, but must be one of {wanted}"
            found.append(Violation(field=f"principal.grants[{index}].role", description=description))
    return found


def description_violations(text: str) -> list[Violation]:
    """What is wrong with what a token is for."""
    return text_violations(text, "description", characters_max=DESCRIPTION_CHARACTERS_MAX)


def size_violations(text: str, bytes_max: int) -> list[Violation]:
    """What is wrong with the size of a token that is to be given."""
    if len(text) <= bytes_max:
        return []
    description = f"make a token of {len(text)} bytes, but at most {bytes_max} can be sent: give fewer, or projects/-"
    return [Violation(field="principal.grants", description=description)]


def principal_to_be(proto: token_service_pb2.Principal, *, token_id: str, expires_at: datetime) -> Principal:
    """Whom a new token stands for. Of several roles in one project the highest counts."""
    roles: dict[str, Role] = {}
    for grant in proto.grants:
        roles[grant.project] = max(ROLES[grant.role], roles.get(grant.project, Role.VIEWER))
    return Principal(
        subject=proto.subject,
        token_id=token_id,
        expires_at=expires_at,
        is_admin=proto.installation_admin,
        roles=roles,
    )


def principal_to_proto(principal: Principal) -> token_service_pb2.Principal:
    """A principal as callers see it."""
    roles = {project: role.name.lower() for project, role in principal.roles.items()}
    return _principal(principal.subject, principal.is_admin, roles)


def principal_of(token: AccessToken) -> Principal:
    """Whom a given token stands for."""
    return Principal(
        subject=token.subject,
        is_admin=token.is_admin,
        roles={project: Role[word.upper()] for project, word in token.roles.items()},
    )


def token_to_proto(token: AccessToken) -> token_service_pb2.Token:
    """The token as callers see it."""
    return token_service_pb2.Token(
        name=token.name,
        principal=_principal(token.subject, token.is_admin, token.roles),
        description=token.description,
        creator=token.creator,
        create_time=timestamp(token.create_time_us),
        expire_time=timestamp(token.expire_time_us),
        revoke_time=timestamp(token.revoke_time_us),
        revoker=token.revoker,
    )


def expire_time_of(
    request: token_service_pb2.CreateTokenRequest, *, now: datetime, default_seconds: float, seconds_max: float
) -> tuple[datetime, list[Violation]]:
    """When a new token ends, in whole seconds, and what is wrong with that."""
    now_us = round(now.timestamp() * SECOND_US)
    if not request.HasField("expire_time"):
        return datetime.fromtimestamp(int(now_us / SECOND_US + default_seconds), UTC), []
    found = time_violations(request.expire_time, "expire_time")
    if found:
        return now, found
    left_seconds = (time_us(request.expire_time) - now_us) / SECOND_US
    if not 0 < left_seconds <= seconds_max:
        description = f"is {left_seconds:.0f} s away, but must be within {seconds_max / 86_400:g} days from now"
        return now, [Violation(field="expire_time", description=description)]
    return datetime.fromtimestamp(request.expire_time.seconds, UTC), []


def _principal(subject: str, is_admin: bool, roles: Mapping[str, str]) -> token_service_pb2.Principal:
    proto = token_service_pb2.Principal(subject=subject, installation_admin=is_admin)
    for project, word in sorted(roles.items()):
        proto.grants.add(project=project, role=_ROLES_BY_WORD[word])
    return proto


ROLES = {
    token_service_pb2.ROLE_VIEWER: Role.VIEWER,
    token_service_pb2.ROLE_EDITOR: Role.EDITOR,
    token_service_pb2.ROLE_ADMIN: Role.ADMIN,
}
_ROLES_BY_WORD = {role.name.lower(): proto for proto, role in ROLES.items()}
