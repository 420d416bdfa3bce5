"""TokenService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sihlai.auth.v1 import token_service_pb2 as messages
from sihlai.auth.v1 import token_service_pb2_grpc

from services.chassis.auth.principal import Kind, Principal, Role, current_principal
from services.chassis.auth.revocation import Revocations, key_revocation
from services.chassis.errors import NotFound, PermissionDenied, Reason
from services.chassis.log import get_logger
from services.chassis.rpc import until_stopping
from services.scheduler.config import SchedulerConfig
from services.scheduler.domain.access_token import AccessToken
from services.scheduler.domain.job import SECOND_US
from services.scheduler.keyring import Keyring
from services.scheduler.store.access_tokens import AccessTokenStore
from services.scheduler.wire.access_token import (
    description_violations,
    expire_time_of,
    principal_of,
    principal_to_be,
    principal_to_proto,
    principal_violations,
    size_violations,
    token_id_of,
    token_to_proto,
)
from services.scheduler.wire.names import (
    page_size_of,
    page_token_after,
    refuse,
    request_id_violations,
    request_of,
)
from services.scheduler.wire.page import Serialized, page_of

log = get_logger(__name__)

LIST_SCOPE = "tokens"
PLACE = "[0-9]{1,18} [a-zA-Z0-9_-]{1,64}"
LOOKED_AT_MIN = 200
"""Tokens that one call looks at for who may not see all of them, however few are asked for."""
METADATA_BYTES_BESIDES = 4_096
"""Of a call's metadata, left for what is sent beside the token."""


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """How long tokens live, how large they may be, and how often who follows revocations is told without a change.

    `unlisted_seconds`: how long those live at most that are in no list, such as what `sihlai up` makes.
    """

    days_default: float
    days_max: float
    text_bytes_max: int
    unlisted_seconds: float
    repeat_seconds: float

    @classmethod
    def configured(cls, config: SchedulerConfig) -> TokenLimits:
        """As the scheduler is configured."""
        return cls(
            days_default=config.token_days_default,
            days_max=config.token_days_max,
            text_bytes_max=config.metadata_bytes_max - METADATA_BYTES_BESIDES,
            unlisted_seconds=max(config.token_days_default * 86_400, config.write_token_minutes * 60),
            repeat_seconds=config.revocations_seconds,
        )


class TokenServicer(token_service_pb2_grpc.TokenServiceServicer):
    """Tokens. `revocations` are this process's own, which its guard asks."""

    def __init__(
        self,
        tokens: AccessTokenStore,
        keyring: Keyring,
        revocations: Revocations,
        *,
        limits: TokenLimits,
        new_id: Callable[[], str],
        now: Callable[[], datetime],
        stopping: asyncio.Event,
    ) -> None:
        self._tokens = tokens
        self._keyring = keyring
        self._revocations = revocations
        self._limits = limits
        self._new_id = new_id
        self._now = now
        self._stopping = stopping
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read what was revoked before; before the server starts."""
        self._revocations.replace(await self._tokens.revoked(), successions=self._keyring.successions)

    async def WhoAmI(self, request: messages.WhoAmIRequest, context: Any) -> messages.WhoAmIResponse:
        principal = current_principal()
        response = messages.WhoAmIResponse(principal=principal_to_proto(principal))
        if principal.token_id:
            response.token = f"tokens/{principal.token_id}"
            response.expire_time.FromDatetime(principal.expires_at)
        return response

    async def CreateToken(self, request: messages.CreateTokenRequest, context: Any) -> messages.CreateTokenResponse:
        giver, limits = current_principal(), self._limits
        expires_at, violations = expire_time_of(
            request,
            now=self._now(),
            default_seconds=limits.days_default * 86_400,
            seconds_max=limits.days_max * 86_400,
        )
        refuse(principal_violations(request.principal) + description_violations(request.description) + violations)
        holder = principal_to_be(request.principal, token_id=self._new_id(), expires_at=expires_at)
        if not _may_give(giver, holder):
            message = f"{giver.subject} may not give more than an admin of the same projects could"
            metadata = {"principal": giver.subject, "permission": f"CreateToken for {holder.subject}"}
            raise PermissionDenied(Reason.PERMISSION_DENIED, message, metadata)
        refuse(size_violations(self._keyring.sign_access(holder), limits.text_bytes_max))
        answer = await self._tokens.add(
            request_of("CreateToken", request),
            lambda token: token_to_proto(token).SerializeToString(),
            AccessToken(
                token_id=holder.token_id,
                subject=holder.subject,
                is_admin=holder.is_admin,
                roles={project: role.name.lower() for project, role in holder.roles.items()},
                description=request.description,
                creator=giver.subject,
                create_time_us=0,
                expire_time_us=int(expires_at.timestamp()) * SECOND_US,
            ),
        )
        token = messages.Token.FromString(answer)
        log.info("token_created", token=token.name, subject=token.principal.subject)
        # Signed anew for a repeat, which is the same text unless the key has changed: it is kept nowhere.
        given = principal_to_be(
            token.principal,
            token_id=token_id_of(token.name),
            expires_at=token.expire_time.ToDatetime(tzinfo=UTC),
        )
        return messages.CreateTokenResponse(token=token, text=self._keyring.sign_access(given))

    async def ListTokens(self, request: messages.ListTokensRequest, context: Any) -> Serialized:
        giver, shown_max = current_principal(), page_size_of(request.page_size)
        looked_at = shown_max if giver.is_admin else max(shown_max, LOOKED_AT_MIN)
        after = page_token_after(request.page_token, LIST_SCOPE, form=PLACE)

        def shown(token: AccessToken) -> messages.Token | None:
            return token_to_proto(token) if _may_give(giver, principal_of(token), known=bool(token.subject)) else None

        found = await self._tokens.page(before=_place(after) if after else None, limit=looked_at + 1)
        return await page_of(
            found,
            shown,
            limit=looked_at,
            shown_max=shown_max,
            place=lambda token: f"{token.create_time_us} {token.token_id}",
            scope=LIST_SCOPE,
            answer=lambda tokens, token: messages.ListTokensResponse(tokens=tokens, next_page_token=token),
        )

    async def GetToken(self, request: messages.GetTokenRequest, context: Any) -> messages.GetTokenResponse:
        token = await self._tokens.get(token_id_of(request.name))
        if not _may_give(current_principal(), principal_of(token), known=bool(token.subject)):
            raise NotFound(Reason.TOKEN_NOT_FOUND, f"there is no token {token.token_id}", {"name": request.name})
        return messages.GetTokenResponse(token=token_to_proto(token))

    async def RevokeToken(self, request: messages.RevokeTokenRequest, context: Any) -> messages.RevokeTokenResponse:
        revoker = current_principal()

        def may(token: AccessToken | None) -> bool:
            if token is None or not token.subject:
                return revoker.is_admin
            return _may_give(revoker, principal_of(token))

        token = await self._tokens.revoke(
            token_id_of(request.name),
            revoker=revoker.subject,
            may=may,
            unknown_seconds=self._limits.days_max * 86_400,
        )
        log.info("token_revoked", token=token.name, subject=token.subject)
        self._revocations.add(token.token_id)
        self._tell()
        return messages.RevokeTokenResponse(token=token_to_proto(token))

    async def RotateTokenKey(
        self, request: messages.RotateTokenKeyRequest, context: Any
    ) -> messages.RotateTokenKeyResponse:
        refuse(request_id_violations(request.request_id))
        caller, limits = current_principal(), self._limits

        def rotated(last_end_us: int, now_us: int) -> bytes:
            """In the transaction, so that no token is given meanwhile whose end nobody counted."""
            unlisted_us = now_us + round(limits.unlisted_seconds * SECOND_US)
            ends_us = now_us if request.drop_old else max(last_end_us, unlisted_us)
            ends_at = datetime.fromtimestamp(-(-ends_us // SECOND_US), UTC)
            old = self._keyring.rotate(ends_at=ends_at)
            made = messages.RotateTokenKeyResponse(key_id=self._keyring.key_id, old_key_id=old)
            made.old_key_end_time.FromDatetime(ends_at)
            return made.SerializeToString()

        answer = await self._tokens.change_key(request_of("RotateTokenKey", request), rotated)
        response = messages.RotateTokenKeyResponse.FromString(answer)
        if request.drop_old:
            dropped = key_revocation(response.old_key_id)
            await self._tokens.revoke(
                dropped, revoker=caller.subject, may=lambda _: True, unknown_seconds=limits.days_max * 86_400
            )
            self._revocations.add(dropped)
        self._tell()
        return response

    async def StreamRevocations(
        self, request: messages.StreamRevocationsRequest, context: Any
    ) -> AsyncIterator[messages.StreamRevocationsResponse]:
        async for response in until_stopping(self._followed(), self._stopping):
            yield response

    def _tell(self) -> None:
        """Who follows hears of a change now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _followed(self) -> AsyncIterator[messages.StreamRevocationsResponse]:
        while True:
            changed = self._changed
            yield messages.StreamRevocationsResponse(
                token_ids=await self._tokens.revoked(), key_successions=self._keyring.successions
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.repeat_seconds):
                    await changed.wait()


def _may_give(giver: Principal, holder: Principal, *, known: bool = True) -> bool:
    """Whether one may give, see and take back a token of the other: an admin of each project that it is for."""
    if giver.is_admin:
        return True
    if not known or holder.is_admin or holder.kind is not Kind.USER or not holder.roles:
        return False
    return all(giver.may(Role.ADMIN, project) for project in holder.roles)


def _place(text: str) -> tuple[int, str]:
    time_us, _, token_id = text.partition(" ")
    return int(time_us), token_id
