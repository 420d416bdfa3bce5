"""Access tokens in the database: what was given, and what was taken back. Their texts are nowhere."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace
from sqlalchemy import Connection, delete, func, insert, select, tuple_, update

from services.chassis.errors import NotFound, Reason
from services.chassis.log import get_logger
from services.scheduler.domain.access_token import AccessToken
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import DAMAGE, Damaged
from services.scheduler.store.database import Database
from services.scheduler.store.requests import answered
from services.scheduler.store.rows import Record, readable
from services.scheduler.store.tables import access_tokens
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

REMEMBERED_US = 30 * 86_400 * 1_000_000
"""How long a token is listed after its end."""
FORGOTTEN_MAX = 1_000


class AccessTokenStore:
    """Access tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, request: Request, encode: Callable[[AccessToken], bytes], token: AccessToken) -> bytes:
        """Record a token that is given now; what ended long ago is forgotten on the way. The first answer to the
        request is given again.
        """

        def add(transaction: Transaction) -> AccessToken:
            given = replace(token, create_time_us=transaction.now_us)
            transaction.connection.execute(insert(access_tokens), _to_row(given))
            old = select(access_tokens.c.token_id).limit(FORGOTTEN_MAX)
            old = old.where(access_tokens.c.expire_time_us < transaction.now_us - REMEMBERED_US)
            transaction.connection.execute(delete(access_tokens).where(access_tokens.c.token_id.in_(old)))
            return given

        return await self._database.write(lambda tx: answered(tx, request, lambda: add(tx), encode))

    async def get(self, token_id: str) -> AccessToken:
        """The token, or NotFound."""
        found = await self._database.read(lambda connection: _find(connection, token_id))
        if found is None:
            raise _not_found(token_id)
        return found

    async def page(self, *, before: tuple[int, str] | None, limit: int) -> list[AccessToken | Damaged]:
        """Tokens, newest first: those before a time and id. The place of one that cannot be read is both, in words."""
        columns = access_tokens.c
        query = select(access_tokens).order_by(columns.create_time_us.desc(), columns.token_id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(columns.create_time_us, columns.token_id) < tuple_(*before))
        return await self._database.list(
            lambda c: readable(c.execute(query), _from_row, place=lambda row: f"{row.create_time_us} {row.token_id}")
        )

    async def revoke(
        self, token_id: str, *, revoker: str, may: Callable[[AccessToken | None], bool], unknown_seconds: float
    ) -> AccessToken:
        """Take a token back; once is enough. NotFound where the caller may not; `may` is asked with None for a token
        that is not listed, whose end is taken to be `unknown_seconds` away.
        """

        def revoke(transaction: Transaction) -> AccessToken:
            connection, now_us = transaction.connection, transaction.now_us
            found = _find_to_revoke(connection, token_id)
            if not may(found):
                raise _not_found(token_id)
            if found is None:
                connection.execute(delete(access_tokens).where(access_tokens.c.token_id == token_id))
                found = AccessToken(
                    token_id=token_id,
                    subject="",
                    is_admin=False,
                    roles={},
                    description="made elsewhere",
                    creator="",
                    create_time_us=now_us,
                    expire_time_us=now_us + round(unknown_seconds * 1_000_000),
                )
                connection.execute(insert(access_tokens), _to_row(found))
            if found.revoke_time_us is not None:
                return found
            values = {"revoke_time_us": now_us, "revoker": revoker}
            connection.execute(update(access_tokens).where(access_tokens.c.token_id == token_id).values(values))
            return replace(found, revoke_time_us=now_us, revoker=revoker)

        return await self._database.write(revoke, control=True)

    async def change_key(self, request: Request, change: Callable[[int, int], bytes]) -> bytes:
        """What `change` answers, which gets when the last listed token ends and what time it is, both in microseconds.
        While it runs no token is given. The first answer to the request is given again.
        """

        def changed(transaction: Transaction) -> bytes:
            held = select(func.max(access_tokens.c.expire_time_us)).where(access_tokens.c.revoke_time_us.is_(None))
            return change(transaction.connection.execute(held).scalar() or 0, transaction.now_us)

        return await self._database.write(lambda tx: answered(tx, request, lambda: changed(tx), lambda made: made))

    async def revoked(self) -> list[str]:
        """The ids of tokens that were taken back and would hold otherwise."""

        def read(connection: Connection) -> list[str]:
            now_us = self._database.now_us(connection)
            query = select(access_tokens.c.token_id).where(
                access_tokens.c.revoke_time_us.is_not(None), access_tokens.c.expire_time_us > now_us - REMEMBERED_US
            )
            return [row.token_id for row in connection.execute(query)]

        return await self._database.read(read)


def _find(connection: Connection, token_id: str) -> AccessToken | None:
    row = connection.execute(select(access_tokens).where(access_tokens.c.token_id == token_id)).one_or_none()
    return _from_row(row._mapping) if row is not None else None


def _find_to_revoke(connection: Connection, token_id: str) -> AccessToken | None:
    """The token; one that cannot be read is as good as not listed: it may still be in somebody's hands."""
    try:
        return _find(connection, token_id)
    except DAMAGE as error:
        log.error("record_damaged", record=token_id, kind="AccessToken", problem=f"{error!r}")
        return None


def _from_row(row: Record) -> AccessToken:
    return AccessToken(**{**row, "roles": {**row["roles"]}})


def _to_row(token: AccessToken) -> dict[str, object]:
    return {column.name: getattr(token, column.name) for column in access_tokens.columns} | {"roles": dict(token.roles)}


def _not_found(token_id: str) -> NotFound:
    return NotFound(Reason.TOKEN_NOT_FOUND, f"there is no token {token_id}", {"name": f"tokens/{token_id}"})
