"""Tokens: nobody gives, sees or takes back more than they have themselves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import jwt
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sihlai.auth.v1 import token_service_pb2 as messages
from sihlai.auth.v1 import token_service_pb2_grpc
from sihlai.scheduler.v1 import project_service_pb2, project_service_pb2_grpc
from sqlalchemy import event

from services.chassis import rpc
from services.chassis.auth.principal import Role
from services.chassis.auth.revocation import Revocations, follow_revocations
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from services.scheduler.servicer.token_servicer import LOOKED_AT_MIN
from services.scheduler.wire.page import PAGE_BYTES_MAX
from tests import tokens

REQUEST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
VIEWER, EDITOR, ADMIN = messages.ROLE_VIEWER, messages.ROLE_EDITOR, messages.ROLE_ADMIN


class As:
    """The token service as one principal calls it."""

    def __init__(self, client, text: str) -> None:
        self.channel = rpc.channel(client.address, token=lambda: text, retry_attempts_max=1)
        self.stub = token_service_pb2_grpc.TokenServiceStub(self.channel)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error) -> None:
        await self.channel.close()

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
            for mark in ("\u202e", "\u200b", "\x9b", "\ufeff", "\u061c", "\u200d"):
                for subject in (f"users/a{mark}b", f"runners/a{mark}b"):
                    error = await refused(root.create(subject))
                    assert [violation.field for violation in error.violations] == ["principal.subject"]
                    assert mark not in error.message
            assert await root.names() == []
            error = await refused(root.create("runners/one", grants={"projects/cells": VIEWER}))
            assert [violation.field for violation in error.violations] == ["principal.grants"]

    asyncio.run(test())


def test_no_token_is_given_that_is_too_large_for_a_call(serve):
    projects = [f"projects/project-{'x' * 50}-{number}" for number in range(1_000)]

    async def test():
        async with serve() as client, holder(client) as root:

            async def text_of(count: int) -> str:
                """Empty where so many grants are too many."""
                try:
                    return (await root.create(grants=dict.fromkeys(projects[:count], VIEWER))).text
                except grpc.aio.AioRpcError as error:
                    [violation] = rpc.error_from_rpc(error).violations
                    assert violation.field == "principal.grants"
                    assert "bytes" in violation.description
                    return ""

            assert await text_of(1_000) == ""
            assert await root.names() == []
            fits, too_many = 1, 1_000
            while too_many - fits > 1:
                middle = (fits + too_many) // 2
                fits, too_many = (middle, too_many) if await text_of(middle) else (fits, middle)
            assert fits > 500
            async with As(client, await text_of(fits)) as bob:
                besides = [("x-of-a-proxy", "x" * 3_000)]
                who = await bob.stub.WhoAmI(messages.WhoAmIRequest(), metadata=besides)
                assert len(who.principal.grants) == fits

    asyncio.run(test())


async def pages(caller: As, page_size: int) -> list[messages.ListTokensResponse]:
    """Every page of the list."""
    found, page_token = [], ""
    while page_token or not found:
        request = messages.ListTokensRequest(page_size=page_size, page_token=page_token)
        found.append(await caller.stub.ListTokens(request))
        page_token = found[-1].next_page_token
    return found


def names_in(answers: list[messages.ListTokensResponse]) -> list[str]:
    return [token.name for answer in answers for token in answer.tokens]


def test_no_page_of_tokens_is_larger_than_a_client_takes(serve):
    large = {f"projects/project-{'x' * 50}-{number}": VIEWER for number in range(500)}

    async def test():
        async with serve() as client, holder(client) as root:
            made = [(await root.create(grants=large)).token for _ in range(110)]
            assert sum(token.ByteSize() for token in made) > PAGE_BYTES_MAX + 2**20
            answers = await pages(root, 1_000)
            assert [answer.ByteSize() <= PAGE_BYTES_MAX + 1_000 for answer in answers] == [True, True]
            assert names_in(answers) == [token.name for token in reversed(made)]

    asyncio.run(test())


def test_a_call_looks_at_a_part_of_the_tokens_that_others_may_see(serve):
    async def test():
        async with (
            serve() as client,
            holder(client) as root,
            holder(client, {"projects/cells": Role.ADMIN}, "users/bob") as bob,
        ):
            others = LOOKED_AT_MIN * 2 + 50
            mine = [(await root.create(grants={"projects/cells": VIEWER})).token.name for _ in range(3)]
            for _ in range(0, others, 50):
                await asyncio.gather(*(root.create() for _ in range(50)))
            mine += [(await root.create(grants={"projects/cells": VIEWER})).token.name for _ in range(3)]
            statements = []
            event.listen(
                client.scheduler.database._listing,
                "before_cursor_execute",
                lambda _connection, _cursor, statement, *_rest: statements.append(statement),
            )
            answers = await pages(bob, 2)
            assert names_in(answers) == mine[::-1]
            assert [len(answer.tokens) for answer in answers] == [2, 1, 0, 2, 1]
            assert len([each for each in statements if "FROM access_tokens" in each]) == len(answers)
            assert len(await pages(bob, 1_000)) == 1
            everybodys = await pages(root, 100)
            assert {len(answer.tokens) for answer in everybodys[:-1]} == {100}
            assert len(set(names_in(everybodys))) == others + 6

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


def test_a_disk_that_takes_no_revocation_keeps_it_from_nobody(serve, tmp_path):
    """The scheduler has it in its database; the file is written when there is room again."""
    file = tmp_path / "revocations" / "scheduler.json"

    async def test():
        async with (
            serve(revocations_file=file) as client,
            holder(client) as root,
            holder(client, None, "services/metrics") as service,
        ):
            made = await root.create(grants={"projects/cells": VIEWER})
            token_id = made.token.name.removeprefix("tokens/")
            watch = service.stub.StreamRevocations(messages.StreamRevocationsRequest())
            await anext(aiter(watch))
            await root.stub.RevokeToken(messages.RevokeTokenRequest(name=made.token.name))
            async with asyncio.timeout(20):
                assert list((await anext(aiter(watch))).token_ids) == [token_id]
            file.parent.mkdir()

            async def is_kept() -> bool:
                return token_id in Revocations(file)

            await client.when(is_kept)

    asyncio.run(test())


def test_a_service_whose_disk_is_full_follows_revocations_all_the_same(serve, tmp_path):
    file = tmp_path / "revocations" / "metrics.json"

    async def test():
        async with serve() as client, holder(client) as root, holder(client, None, "services/metrics") as service:
            followed = Revocations(file)
            following = asyncio.create_task(follow_revocations(followed, service.channel, lambda _: None))

            async def revoked() -> str:
                made = await root.create(grants={"projects/cells": VIEWER})
                await root.stub.RevokeToken(messages.RevokeTokenRequest(name=made.token.name))
                return made.token.name.removeprefix("tokens/")

            async def are_followed() -> bool:
                return all(token_id in followed for token_id in token_ids)

            async def are_kept() -> bool:
                return all(token_id in Revocations(file) for token_id in token_ids)

            token_ids = []
            for _ in range(2):
                token_ids.append(await revoked())
                await client.when(are_followed)
            file.parent.mkdir()
            await client.when(are_kept)
            following.cancel()
            await asyncio.wait([following])

    asyncio.run(test())


def key_id_of(text: str) -> str:
    return jwt.get_unverified_header(text)["kid"]


def test_another_key_signs_while_tokens_of_the_old_one_hold_over_restarts(serve):
    async def test():
        async with serve() as client, holder(client) as root:
            made = await root.create(expire_time=in_days(90))
            answer = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest(request_id=REQUEST_ID))
            assert answer.old_key_id == key_id_of(made.text)
            assert answer.old_key_end_time == made.token.expire_time, "the last one's that it signed"
            again = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest(request_id=REQUEST_ID))
            assert again == answer
            newer = await root.create("users/carol")
            assert key_id_of(newer.text) == answer.key_id
        for _ in range(2):  # a restart, and one more change
            async with serve() as client, holder(client) as root:
                for text in (made.text, newer.text):
                    async with As(client, text) as each:
                        await each.stub.WhoAmI(messages.WhoAmIRequest())
                await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest())

    asyncio.run(test())


def test_a_key_without_listed_tokens_holds_as_long_as_what_is_in_no_list_may_live(serve):
    async def test():
        async with serve(token_days_default=2.0) as client, holder(client) as root:
            answer = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest())
            left = answer.old_key_end_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
            assert timedelta(days=1.9) < left <= timedelta(days=2, seconds=1)

    asyncio.run(test())


def test_nothing_that_a_dropped_key_signed_holds_any_more(serve):
    async def test():
        async with serve() as client, holder(client) as root, holder(client, None, "services/metrics") as service:
            made = await root.create()
            watch = service.stub.StreamRevocations(messages.StreamRevocationsRequest())
            await anext(aiter(watch))
            answer = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest(drop_old=True))
            assert (await refused(anext(aiter(watch)))).reason is Reason.TOKEN_REVOKED
            async with As(client, made.text) as bob:
                for caller in (root, bob):
                    error = await refused(caller.stub.WhoAmI(messages.WhoAmIRequest()))
                    assert error.reason is Reason.TOKEN_REVOKED
            async with holder(client) as other, holder(client, None, "services/metrics") as renewed:
                await other.stub.WhoAmI(messages.WhoAmIRequest())
                told = await anext(aiter(renewed.stub.StreamRevocations(messages.StreamRevocationsRequest())))
                assert f"key-{answer.old_key_id}" in told.token_ids
                assert [key_id_of(each) for each in told.key_successions] == [answer.old_key_id]
        async with serve() as client, As(client, made.text) as bob:  # started again
            assert isinstance(await refused(bob.stub.WhoAmI(messages.WhoAmIRequest())), Unauthenticated)

    asyncio.run(test())


def test_services_hear_of_a_new_key_at_once(serve):
    async def test():
        async with serve() as client, holder(client) as root, holder(client, None, "services/metrics") as service:
            watch = service.stub.StreamRevocations(messages.StreamRevocationsRequest())
            assert not (await anext(aiter(watch))).key_successions
            answer = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest())
            async with asyncio.timeout(20):
                told = await anext(aiter(watch))
            assert [key_id_of(each) for each in told.key_successions] == [answer.old_key_id]

    asyncio.run(test())


def test_runners_get_write_tokens_of_the_new_key_at_once(serve, simulated_runner):
    async def test():
        async with serve() as client, holder(client) as root:
            await client.create_project()
            await client.submit()
            runner = simulated_runner(client)
            answers = [await runner.idle(wait=0.0)]
            rotated = await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest())
            answers.append(await runner.work(wait=0.0))
            signed_by = [key_id_of(token.token) for answer in answers for token in answer.write_tokens]
            assert signed_by == [rotated.old_key_id, rotated.key_id]

    asyncio.run(test())


def test_a_key_file_that_is_not_the_schedulers_to_write_is_told(serve):
    async def test():
        async with serve() as client, holder(client) as root:
            path = client.folder / "token.pem"
            public = path.with_name("token.pub.pem")
            public.unlink()
            public.mkdir()  # root writes wherever it likes
            error = await refused(root.stub.RotateTokenKey(messages.RotateTokenKeyRequest()))
            assert (type(error), error.reason) == (FailedPrecondition, Reason.KEY_NOT_REPLACEABLE)
            public.rmdir()
            kept = path.read_bytes()
            path.unlink()
            error = await refused(root.stub.RotateTokenKey(messages.RotateTokenKeyRequest()))
            assert "another key than the one that signs" in error.message
            path.write_bytes(kept)
            await root.stub.RotateTokenKey(messages.RotateTokenKeyRequest())

    asyncio.run(test())


def test_keys_are_not_the_admins_of_projects_to_change(serve):
    async def test():
        async with serve() as client, holder(client, {"projects/-": Role.ADMIN}) as ada:
            assert isinstance(
                await refused(ada.stub.RotateTokenKey(messages.RotateTokenKeyRequest())), PermissionDenied
            )
            stub = project_service_pb2_grpc.ProjectServiceStub(ada.channel)
            request = project_service_pb2.RotateCredentialsKeyRequest()
            assert isinstance(await refused(stub.RotateCredentialsKey(request)), PermissionDenied)

    asyncio.run(test())


def in_days(days: float) -> Timestamp:
    time = Timestamp()
    time.FromSeconds(int(datetime.now(UTC).timestamp() + days * 86_400))
    return time
