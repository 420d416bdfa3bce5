"""Which issuer's tokens are taken, and what their claims mean here: one YAML file, the same for every service.

issuer: https://login.example.com/realms/vision
audience: sihlai                  # or a list
algorithms: [RS256]               # what is left out: RS256, ES256, EdDSA
subject_claim: email              # who they are, users/…; what is left out: sub
roles:
  - {claim: groups, value: vision, project: digits, role: editor}
  - {claim: realm_access.roles, value: everybody, project: "-", role: viewer}
  - {claim: groups, value: platform, installation: admin}
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import yaml

from services.chassis.auth.principal import ALL_PROJECTS, Role
from services.chassis.errors import ConfigurationError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""All that are signed with a private key. Never a shared secret: who verifies could sign."""
ALGORITHMS_DEFAULT = ("RS256", "ES256", "EdDSA")
FIELDS = frozenset({"issuer", "audience", "algorithms", "subject_claim", "roles"})
WORDS_CLAIMS = frozenset({"scope", "scp"})
"""Claims whose text is several values with spaces between them."""
_PROJECT_ID = re.compile(r"-|[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class RoleRule:
    """Whose `claim` has this value has the role in `project` (`projects/digits`); None: is the installation's admin."""

    claim: str
    value: str
    project: str = ""
    role: Role | None = None

    def holds(self, claims: Mapping[str, Any]) -> bool:
        """Whether the claims have the value: as their text, or as one of several."""
        found = claim_of(claims, self.claim)
        if isinstance(found, str):
            return self.value in (found.split() if self.claim in WORDS_CLAIMS else [found])
        return isinstance(found, list) and self.value in [each for each in found if isinstance(each, str)]


@dataclass(frozen=True, kw_only=True)
class IssuerSettings:
    """An issuer, for whom its tokens must be, and what their claims mean."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...] = ALGORITHMS_DEFAULT
    subject_claim: str = "sub"
    roles: tuple[RoleRule, ...] = ()

    def is_admin(self, claims: Mapping[str, Any]) -> bool:
        """Whether the claims are those of an admin of the installation."""
        return any(rule.role is None and rule.holds(claims) for rule in self.roles)

    def roles_of(self, claims: Mapping[str, Any]) -> Mapping[str, Role]:
        """The roles by project. Of several in one project the highest counts."""
        found: dict[str, Role] = {}
        for rule in self.roles:
            if rule.role is not None and rule.holds(claims):
                found[rule.project] = max(rule.role, found.get(rule.project, rule.role))
        return MappingProxyType(found)


def claim_of(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, else the one at this path (`realm_access.roles`); None where there is none."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def read_issuer(path: Path) -> IssuerSettings:
    """The settings in the file, or ConfigurationError with everything that is wrong with them."""
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError([f"oidc_file {path} cannot be read as YAML: {error}"]) from error
    if not isinstance(given, dict):
        raise ConfigurationError([f"oidc_file {path} must hold fields such as issuer and audience, and holds none"])
    problems = [f"{name} is no field: there are {', '.join(sorted(FIELDS))}" for name in given if name not in FIELDS]
    settings = IssuerSettings(
        issuer=_issuer(given.get("issuer"), problems),
        audiences=_texts(given.get("audience"), "audience", problems),
        algorithms=_algorithms(given.get("algorithms", list(ALGORITHMS_DEFAULT)), problems),
        subject_claim="".join(_texts(given.get("subject_claim", "sub"), "subject_claim", problems)[:1]),
        roles=_rules(given.get("roles"), problems),
    )
    if problems:
        raise ConfigurationError([f"oidc_file {path}: {problem}" for problem in problems])
    return settings


def is_safe(url: str) -> bool:
    """Whether nobody between can change what the url gives: https, or this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            return bool(host)
        return parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


def _issuer(given: Any, problems: list[str]) -> str:
    if isinstance(given, str) and is_safe(given) and not urlsplit(given).query and not urlsplit(given).fragment:
        return given
    problems.append(f"issuer is {given!r}, but must be its https:// address, as its tokens have it in `iss`")
    return ""


def _texts(given: Any, name: str, problems: list[str]) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, list) and texts and all(isinstance(each, str) and each for each in texts):
        return tuple(texts)
    problems.append(f"{name} is {given!r}, but must be a text")
    return ()


def _algorithms(given: Any, problems: list[str]) -> tuple[str, ...]:
    texts = _texts(given, "algorithms", problems)
    problems += [f"algorithms has {each}, but can have {', '.join(ALGORITHMS)}" for each in {*texts} - {*ALGORITHMS}]
    return texts


def _rules(given: Any, problems: list[str]) -> tuple[RoleRule, ...]:
    if not isinstance(given, list) or not given:
        problems.append(f"roles is {given!r}, but must be a list: without one no token of the issuer may do anything")
        return ()
    return tuple(rule for index, each in enumerate(given) if (rule := _rule(each, f"roles[{index}]", problems)))


def _rule(given: Any, place: str, problems: list[str]) -> RoleRule | None:
    """The rule; None, and a problem, where it is none."""
    match given:
        case {"claim": str(claim), "value": str(value), "installation": "admin", **rest} if not rest:
            return RoleRule(claim=claim, value=value)
        case {"claim": str(claim), "value": str(value), "project": str(project), "role": str(role), **rest} if (
            not rest and role in {each.name.lower() for each in Role} and _PROJECT_ID.fullmatch(project)
        ):
            name = ALL_PROJECTS if project == "-" else f"projects/{project}"
            return RoleRule(claim=claim, value=value, project=name, role=Role[role.upper()])
    wanted = 'claim and value as texts, then `project` (an id, or "-" for all) and `role` (viewer, editor or admin), '
    problems.append(f"{place} is {given!r}, but must have {wanted}or `installation: admin`")
    return None
