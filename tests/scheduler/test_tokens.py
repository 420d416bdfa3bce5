"""Tokens: nobody gives, sees or takes back more than they have themselves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from sihlai.auth.v1 import token_service_pb2 as messages
from sihlai.auth.v1 import token_service_pb2_grpc

from services.chassis import rpc
from services.chassis.auth.principal import Role
from services.chassis.errors import InvalidArgument, NotFound, PermissionDenied, Reason, Unauthenticated
from tests import tokens

REQUEST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
VIEWER, EDITOR, ADMIN = messages.ROLE_VIEWER, messages.ROLE_EDITOR, messages.ROLE_ADMIN


class As:
    """The token service as one principal calls it."""

    def __init__(self, client, text: str) -> None:
        self._channel = rpc.channel(client.address, token=lambda: text, retry_attempts_max=1)
        self.stub = token_service_pb2_grpc.TokenServiceStub(self._channel)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error) -> None:
        await self._channel.close()

    async def create(self, subject: str = "users/bob", **fields) -> messages.CreateTokenResponse:
        grants = [messages.Grant(project=project, role=role) for project, role in fields.pop("grants", {}).items()]
        principal = messages.Principal(subject=subject, grants=grants, **fields.pop("principal", {}))
        return await self.stub.CreateToken(messages.CreateTokenRequest(principal=principal, **fields))

    async def names(self) -> list[str]:
        found, page = [], ""
        while True:
            answer = await self.stub.ListTokens(messages.ListTokensRequest(page_size=2, page_token=page))
            found += [token.name for token in answer.tokens]
            page = answer.next_page_token
            if not page:
                return found


def holder(client, roles=None, subject="users/ada", **changes) -> As:
    return As(client, tokens.token(client.folder / "token.pem", subject, roles=roles, **changes))


async def refused(call) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.error_from_rpc(caught.value)


def test_a_token_is_given_told_used_and_taken_back(serve):
    async def test():
        async with serve() as client, holder(client) as root:
            made = await root.create(grants={"projects/cells": EDITOR}, description="for the night")
            assert (made.token.creator, made.token.description) == ("users/ada", "for the night")
            days = made.token.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
            assert timedelta(days=29) < days <= timedelta(days=30)
            async with As(client, made.text) as bob:
                who = await bob.stub.WhoAmI(messages.WhoAmIRequest())
                assert (who.principal.subject, who.token) == ("users/bob", made.token.name)
                assert list(who.principal.grants) == [messages.Grant(project="projects/cells", role=EDITOR)]
                revoked = await root.stub.RevokeToken(messages.RevokeTokenRequest(name=made.token.name))
                assert revoked.token.revoker == "users/ada"
                error = await refused(bob.stub.WhoAmI(messages.WhoAmIRequest()))
                assert (type(error), error.reason) == (Unauthenticated, Reason.TOKEN_REVOKED)
            first, second = [await root.create(request_id=REQUEST_ID) for _ in range(2)]
            assert first == second
            assert first.text
            again = await root.stub.RevokeToken(messages.RevokeTokenRequest(name=made.token.name))
            assert again == revoked
        async with serve() as client, As(client, made.text) as bob:  # started again
            assert (await refused(bob.stub.WhoAmI(messages.WhoAmIRequest()))).reason is Reason.TOKEN_REVOKED

    asyncio.run(test())


def test_an_admin_of_projects_gives_tokens_for_those_alone(serve):
    async def test():
        async with serve() as client, holder(client, {"projects/cells": Role.ADMIN}) as ada:
            assert (await ada.create(grants={"projects/cells": ADMIN})).text
            for more in (
                {"grants": {"projects/other": VIEWER}},
                {"grants": {"projects/cells": VIEWER, "projects/other": VIEWER}},
                {"grants": {"projects/-": VIEWER}},
                {"principal": {"installation_admin": True}},
                {"subject": "runners/one"},
                {"subject": "services/metrics"},
                {},
            ):
                assert isinstance(await refused(ada.create(**more)), PermissionDenied), more
        async with serve() as client, holder(client, {"projects/cells": Role.EDITOR}) as editor:
            assert isinstance(await refused(editor.create(grants={"projects/cells": VIEWER})), PermissionDenied)

    asyncio.run(test())


def test_nobody_sees_or_takes_back_what_they_could_not_give(serve):
    async def test():
        async with (
            serve() as client,
            holder(client) as root,
            holder(client, {"projects/cells": Role.ADMIN}, "users/bob") as bob,
        ):
            cells = [(await root.create(grants={"projects/cells": VIEWER})).token.name for _ in range(3)]
            other = (await root.create(grants={"projects/other": VIEWER})).token.name
            runner = (await root.create("runners/one")).token.name
            assert await bob.names() == cells[::-1]
            assert await root.names() == [runner, other, *cells[::-1]]
            for name in (other, runner, "tokens/none"):
                for call in (
                    bob.stub.GetToken(messages.GetTokenRequest(name=name)),
                    bob.stub.RevokeToken(messages.RevokeTokenRequest(name=name)),
                ):
                    error = await refused(call)
                    assert (type(error), error.reason) == (NotFound, Reason.TOKEN_NOT_FOUND)
            await bob.stub.RevokeToken(messages.RevokeTokenRequest(name=cells[0]))

    asyncio.run(test())


def test_an_admin_takes_back_a_token_that_was_made_elsewhere(serve):
    async def test():
        async with serve() as client, holder(client) as root:
            text = tokens.token(client.folder / "token.pem", token_id="made-elsewhere")
            async with As(client, text) as other:
                await other.stub.WhoAmI(messages.WhoAmIRequest())
                await root.stub.RevokeToken(messages.RevokeTokenRequest(name="tokens/made-elsewhere"))
                assert (await refused(other.stub.WhoAmI(messages.WhoAmIRequest()))).reason is Reason.TOKEN_REVOKED

    asyncio.run(test())


def test_everything_that_is_wrong_with_a_token_is_told_at_once(serve):
    async def test():
        async with serve() as client, holder(client) as root:
            request = messages.CreateTokenRequest(
                principal=messages.Principal(
                    subject="ada",
                    grants=[messages.Grant(project="cells"), messages.Grant(project="projects/a", role=7)],
                ),
                description="x" * 201,
            )
            request.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=10_000))
            error = await refused(root.stub.CreateToken(request))
            assert isinstance(error, InvalidArgument)
            assert {violation.field for violation in error.violations} == {
                "principal.subject",
                "principal.grants[0].project",
                "principal.grants[0].role",
                "principal.grants[1].role",
                "description",
                "expire_time",
            }
            error = await refused(root.create("runners/one", grants={"projects/cells": VIEWER}))
            assert [violation.field for violation in error.violations] == ["principal.grants"]

    asyncio.run(test())


def test_services_hear_of_revocations_at_once(serve):
    async def test():
        async with serve() as client, holder(client) as root, holder(client, None, "services/metrics") as service:
            made = await root.create(grants={"projects/cells": VIEWER})
            watch = service.stub.StreamRevocations(messages.StreamRevocationsRequest())
            assert list((await anext(aiter(watch))).token_ids) == []
            await root.stub.RevokeToken(messages.RevokeTokenRequest(name=made.token.name))
            async with asyncio.timeout(20):
                assert list((await anext(aiter(watch))).token_ids) == [made.token.name.removeprefix("tokens/")]

    asyncio.run(test())
