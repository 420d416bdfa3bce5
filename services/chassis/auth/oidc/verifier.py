"""Who a token stands for, whoever signed it: ourselves, or the issuer that the configuration names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

from services.chassis.auth.keys import LEEWAY_SECONDS, TokenVerifier, token_expired
from services.chassis.auth.oidc.documents import Documents, FetchLimits
from services.chassis.auth.oidc.issuer import Issuer, KeyLimits
from services.chassis.auth.oidc.settings import claim_of, read_issuer
from services.chassis.auth.principal import Principal, is_subject
from services.chassis.auth.succession import MALFORMED
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, Unauthenticated

TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""What a token may say that it is. Others, such as a message that somebody logged out, are no proof of who calls."""
TOKEN_ID_DIGITS = 32
_READ_ONLY: Any = {"verify_signature": False}


class AccessVerifier:
    """Verifies access tokens: those with an `iss` are the issuer's, those without are ours."""

    def __init__(self, own: TokenVerifier, issuer: Issuer | None) -> None:
        self._own = own
        self._issuer = issuer

    @classmethod
    def configured(cls, config: ServerConfig, own: TokenVerifier) -> AccessVerifier:
        """As a service is configured. ConfigurationError where its file names no issuer."""
        if config.oidc_file is None:
            return cls(own, None)
        fetch_limits = FetchLimits(seconds=config.oidc_fetch_seconds, bytes_max=config.oidc_fetch_bytes_max)
        key_limits = KeyLimits(
            refresh_seconds=config.oidc_refresh_seconds, unknown_seconds=config.oidc_unknown_key_seconds
        )
        documents = Documents(fetch_limits, ca_file=config.oidc_ca_file)
        return cls(own, Issuer(read_issuer(config.oidc_file), documents, key_limits, file=config.oidc_keys_file))

    async def run(self) -> None:
        """Keep the issuer's keys fresh until cancelled; ends at once where there is no issuer."""
        if self._issuer is not None:
            await self._issuer.run()

    def verify_access(self, text: str, *, now: datetime) -> Principal:
        """Who the token stands for. Unauthenticated with the reason where it does not hold; Unavailable while its
        issuer's key is not known.
        """
        if self._issuer is None:
            return self._own.verify_access(text, now=now)
        try:
            named = jwt.decode(text, options=_READ_ONLY).get("iss")
        except MALFORMED as error:
            raise _refused(f"the token does not hold: {type(error).__name__}") from error
        if named is None:
            return self._own.verify_access(text, now=now)
        if named != self._issuer.settings.issuer:
            raise _refused("the token is of an issuer that is not accepted here")
        return _verified(text, self._issuer, now)


def _verified(text: str, issuer: Issuer, now: datetime) -> Principal:
    try:
        claims = _claims(text, issuer)
        expires_at = datetime.fromtimestamp(int(claims["exp"]), UTC)
        not_before = float(claims.get("nbf", 0))
    except jwt.InvalidAudienceError as error:
        raise _refused("the token is for another audience than this installation") from error
    except jwt.InvalidSignatureError as error:
        raise _refused("the token's signature does not hold") from error
    except MALFORMED as error:
        raise _refused(f"the token does not hold: {type(error).__name__}") from error
    if (late := (now - expires_at).total_seconds()) > LEEWAY_SECONDS:
        raise token_expired(late)
    if (early := not_before - now.timestamp()) > LEEWAY_SECONDS:
        raise _refused(f"the token holds only from {early:.0f} s from now on")
    return Principal(
        subject=_subject(claims, issuer.settings.subject_claim),
        token_id=_token_id(claims),
        expires_at=expires_at,
        is_admin=issuer.settings.is_admin(claims),
        roles=issuer.settings.roles_of(claims),
    )


def _claims(text: str, issuer: Issuer) -> Mapping[str, Any]:
    """What the token says, once its signature, audience and issuer hold. Its times the caller judges."""
    header, settings = jwt.get_unverified_header(text), issuer.settings
    if str(header.get("typ", "JWT")).lower() not in TYPES:
        raise _refused("the token is no access token")
    algorithm = header.get("alg")
    if algorithm not in settings.algorithms:
        raise _refused("the token is signed with an algorithm that is not accepted here")
    key = issuer.find(str(header.get("kid", "")))
    if key.algorithm not in ("", algorithm):
        raise _refused("the token is signed with another algorithm than its key is for")
    options: Any = {
        "verify_exp": False,
        "verify_iat": False,
        "verify_nbf": False,
        "require": ["exp", "aud", "iss"],
    }
    claims: Mapping[str, Any] = jwt.decode(
        text,
        key.key,
        algorithms=[algorithm],
        audience=list(settings.audiences),
        issuer=settings.issuer,
        options=options,
    )
    return claims


def _subject(claims: Mapping[str, Any], claim: str) -> str:
    found = claim_of(claims, claim)
    subject = f"users/{found}"
    if not isinstance(found, str) or not is_subject(subject):
        wanted = "must name its holder, without white space, / and characters that nobody sees"
        raise _refused(f"the token's claim {claim} {wanted}, and does not")
    if claim == "email" and claims.get("email_verified") is False:
        raise _refused("the token's holder has not shown that the address in its claim email is theirs")
    return subject


def _token_id(claims: Mapping[str, Any]) -> str:
    """What the token can be revoked by here. By its claims: a signature can be written in several ways."""
    named = {"iss": claims["iss"], "jti": claims["jti"]} if claims.get("jti") else claims
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    return f"oidc-{digest[:TOKEN_ID_DIGITS]}"


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(Reason.TOKEN_INVALID, message)
