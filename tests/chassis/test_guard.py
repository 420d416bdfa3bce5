"""Who calls a server, and for how long a stream goes on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.chassis import rpc, serialized
from services.chassis.auth import guard as guards
from services.chassis.auth.carrying import TokenFile
from services.chassis.auth.guard import TokenGuard, token_guard
from services.chassis.auth.keys import TokenSigner, TokenVerifier, rotate_key
from services.chassis.auth.principal import Principal, Role
from services.chassis.auth.revocation import Revocations, key_revocation
from services.chassis.auth.write_token import WriteToken
from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError, Reason, SihlaiError, Unauthenticated
from tests.tokens import token

NAME = "sihlai.scheduler.v1.ProjectService"  # its ListProjects asks for a token and no role
SECONDS = 30


class Streaming:
    """Sends one message, then waits for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.left = asyncio.Event()

    async def follow(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="first")
            await self.go.wait()
            yield StringValue(value="second")
        finally:
            self.left.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        handler = grpc.unary_stream_rpc_method_handler(
            self.follow, StringValue.FromString, StringValue.SerializeToString
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, {"ListProjects": handler})])


class Served:
    def __init__(self, key: Path, revocations: Revocations, address: str, service: Streaming) -> None:
        self.key, self.revocations, self.address, self.service = key, revocations, address, service

    def follow(self, channel: grpc.aio.Channel) -> Any:
        call = channel.unary_stream(f"/{NAME}/ListProjects", StringValue.SerializeToString, StringValue.FromString)
        return call(StringValue())

    async def refused(self, text: str | None) -> SihlaiError:
        async with rpc.channel(self.address, token=lambda: text or "", retry_attempts_max=1) as channel:
            return await ended(self.follow(channel))


async def ended(call: Any) -> SihlaiError:
    async def read() -> None:
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read(), SECONDS)
    return rpc.error_from_rpc(caught.value)


@contextlib.asynccontextmanager
async def served(tmp_path: Path, **settings: Any) -> AsyncIterator[Served]:
    key = tmp_path / "keys" / "token.pem"
    TokenSigner.from_file(key)
    revocations = Revocations(tmp_path / "revocations" / "revoked.json")  # the folder is not there
    config = ServerConfig(drain_seconds=0.2, **settings)
    server = rpc.Server(config, token_guard(config, TokenVerifier.from_folder(key.parent), revocations))
    service = Streaming()
    server.add(NAME, service.add_to)
    address = await server.start()
    try:
        yield Served(key, revocations, address, service)
    finally:
        service.go.set()
        await server.stop()


def run(tmp_path: Path, test: Callable[[Served], Any], **settings: Any) -> None:
    async def main() -> None:
        async with served(tmp_path, **settings) as made:
            await test(made)

    asyncio.run(main())


def unsigned(text: str) -> str:
    """The token with `alg: none` and no signature."""
    head, body, _ = text.split(".")
    fields = json.loads(base64.urlsafe_b64decode(head + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**fields, "alg": "none"}).encode()).decode().rstrip("=")
    return f"{forged}.{body}."


def test_no_token_and_tokens_that_do_not_hold_are_refused_with_the_reason(tmp_path: Path) -> None:
    async def test(made: Served) -> None:
        good = token(made.key)
        head, body, signature = good.split(".")
        other_body = token(made.key, "users/other").split(".")[1]
        public = made.key.with_name("token.pub.pem").read_bytes()
        signer = TokenSigner.from_file(made.key)
        write = WriteToken(
            project="p",
            job_uid="u",
            attempt=1,
            epoch=1,
            from_step=1,
            expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
        )
        an_hour_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        wrong = {
            None: Reason.TOKEN_MISSING,
            token(made.key, expires_at=an_hour_ago): Reason.TOKEN_EXPIRED,
            f"{head}.{other_body}.{signature}": Reason.TOKEN_INVALID,
            f"{head}.{body}.": Reason.TOKEN_INVALID,
            unsigned(good): Reason.TOKEN_INVALID,
            signer.sign(write): Reason.TOKEN_INVALID,  # another audience
            token(tmp_path / "elsewhere" / "token.pem"): Reason.TOKEN_INVALID,
            jwt_by_secret(public, body, signer.key_id): Reason.TOKEN_INVALID,
            "rubbish": Reason.TOKEN_INVALID,
        }
        for text, reason in wrong.items():
            error = await made.refused(text)
            assert (type(error), error.reason) == (Unauthenticated, reason), text
            assert not made.service.left.is_set()
            assert text is None or text not in error.message

    run(tmp_path, test)


def jwt_by_secret(secret: bytes, body: str, key_id: str) -> str:
    """The same claims, signed with the public key as if it were a secret."""
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    hmac = jwt.get_algorithm_by_name("HS256")
    head = {"alg": "HS256", "kid": key_id, "typ": "JWT"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (head, claims)]
    signature = hmac.sign(".".join(parts).encode(), secret)
    return ".".join([*parts, base64.urlsafe_b64encode(signature).decode().rstrip("=")])


def test_a_stream_ends_when_its_token_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "LEEWAY_SECONDS", 0.0)

    async def test(made: Served) -> None:
        def ending() -> str:
            return token(made.key, expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2))

        async with rpc.channel(made.address, token=ending) as channel:
            async with asyncio.timeout(SECONDS):
                while True:
                    call = made.follow(channel)
                    with contextlib.suppress(grpc.aio.AioRpcError):  # a busy machine was slower than the token
                        assert (await anext(aiter(call))).value == "first"
                        break
            assert (await ended(call)).reason is Reason.TOKEN_EXPIRED
        async with asyncio.timeout(SECONDS):
            await made.service.left.wait()

    run(tmp_path, test)


def test_a_stream_ends_when_its_token_is_revoked_and_others_go_on(tmp_path: Path) -> None:
    async def test(made: Served) -> None:
        texts = [token(made.key, token_id=name) for name in ("one", "other")]
        async with (
            rpc.channel(made.address, token=lambda: texts[0]) as first,
            rpc.channel(made.address, token=lambda: texts[1]) as second,
        ):
            calls = [made.follow(first), made.follow(second)]
            for call in calls:
                assert (await anext(aiter(call))).value == "first"
            made.revocations.add("one")
            assert (await ended(calls[0])).reason is Reason.TOKEN_REVOKED
            made.service.go.set()
            assert (await anext(aiter(calls[1]))).value == "second"
        # The signature is remembered, the revocation wins all the same.
        assert (await made.refused(texts[0])).reason is Reason.TOKEN_REVOKED

    run(tmp_path, test)


def test_a_long_token_is_taken_each_time(tmp_path: Path) -> None:
    """As issuers give them to who is in hundreds of groups; gRPC would refuse some of them at random."""

    async def test(made: Served) -> None:
        text = token(made.key, roles={f"projects/group-{number}": Role.VIEWER for number in range(500)})
        assert 16_000 < len(text) < 32_000
        for _ in range(20):
            async with rpc.channel(made.address, token=lambda: text, retry_attempts_max=1) as channel:
                assert (await anext(aiter(made.follow(channel)))).value == "first"

    run(tmp_path, test)


def test_all_that_a_key_signed_is_revoked_at_once(tmp_path: Path) -> None:
    async def test(made: Served) -> None:
        old = token(made.key)
        async with rpc.channel(made.address, token=lambda: old) as channel:
            call = made.follow(channel)
            assert (await anext(aiter(call))).value == "first"
            key_id = TokenSigner.from_file(made.key).key_id
            rotate_key(made.key, ends_at=datetime.now(UTC) + timedelta(days=30))
            made.revocations.add(key_revocation(key_id))
            assert (await ended(call)).reason is Reason.TOKEN_REVOKED
        assert (await made.refused(old)).reason is Reason.TOKEN_REVOKED
        async with rpc.channel(made.address, token=lambda: token(made.key)) as channel:
            assert (await anext(aiter(made.follow(channel)))).value == "first"

    run(tmp_path, test)


@pytest.mark.parametrize("revoked_in_the_write", [0, 1, 2])
def test_a_stream_that_writes_by_itself_ends_when_its_token_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revoked_in_the_write: int
) -> None:
    """As those of followers of metrics and logs do, also in the middle of a write; 0 is after all of them."""
    revocations: list[Revocations] = []
    made_messages: list[int] = []

    async def messages() -> AsyncGenerator[Any, None]:
        for number in (1, 2):
            made_messages.append(number)
            if revoked_in_the_write == number:
                asyncio.get_running_loop().call_soon(revocations[0].add, "one")
            yield StringValue(value=str(number))
        if revoked_in_the_write == 0:
            revocations[0].add("one")
        await asyncio.Event().wait()

    async def write(self: Streaming, request: StringValue, context: Any) -> None:
        try:
            await serialized.send(messages(), context)
        finally:
            self.left.set()

    monkeypatch.setattr(Streaming, "follow", write)

    async def test(made: Served) -> None:
        revocations.append(made.revocations)
        text = token(made.key, token_id="one")
        async with rpc.channel(made.address, token=lambda: text) as channel:
            assert (await ended(made.follow(channel))).reason is Reason.TOKEN_REVOKED
        assert len(made_messages) == (revoked_in_the_write or 2)
        async with asyncio.timeout(SECONDS):
            await made.service.left.wait()

    run(tmp_path, test)


@contextlib.asynccontextmanager
async def kept(revocations: Revocations) -> AsyncIterator[None]:
    keeping = asyncio.create_task(revocations.keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        await asyncio.sleep(0.01)


def test_a_revocation_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"

    async def test() -> None:
        first = Revocations(file)
        async with kept(first):
            first.add("one")
            await until(lambda: "one" in Revocations(file))
            first.replace(["one"], successions=["a.b.c"])
            await until(lambda: Revocations(file).successions == ("a.b.c",))
        assert "one" in Revocations(file)

    asyncio.run(test())
    file.write_text("{")
    assert "one" not in Revocations(file)


def test_a_disk_that_takes_no_revocation_holds_up_no_end_of_a_stream_and_gets_it_later(tmp_path: Path) -> None:
    file = tmp_path / "revocations" / "revoked.json"

    async def test(made: Served) -> None:
        text = token(made.key, token_id="one")
        async with kept(made.revocations), rpc.channel(made.address, token=lambda: text) as channel:
            call = made.follow(channel)
            assert (await anext(aiter(call))).value == "first"
            made.revocations.add("one")
            assert (await ended(call)).reason is Reason.TOKEN_REVOKED
            assert not file.parent.exists()
            file.parent.mkdir()
            await until(lambda: "one" in Revocations(file))

    run(tmp_path, test)


def test_an_old_key_holds_while_its_tokens_live_and_goes_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(made: Served) -> None:
        old = token(made.key)
        made.key.unlink()
        new = token(made.key)
        for text in (old, new):
            async with rpc.channel(made.address, token=lambda text=text: text) as channel:
                assert (await anext(aiter(made.follow(channel)))).value == "first"

    run(tmp_path, test)


def test_a_token_is_renewed_in_its_file_while_a_channel_is_open(tmp_path: Path) -> None:
    file = tmp_path / "token"

    async def test(made: Served) -> None:
        file.touch(mode=0o600)
        file.write_text(token(made.key, expires_at=datetime.now(UTC) - timedelta(hours=1)))
        async with rpc.channel(made.address, token=TokenFile.required(file)) as channel:
            assert (await ended(made.follow(channel))).reason is Reason.TOKEN_EXPIRED
            file.write_text(token(made.key))
            assert (await anext(aiter(made.follow(channel)))).value == "first"

    run(tmp_path, test)


def test_a_token_file_that_others_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    with pytest.raises(ConfigurationError, match="chmod 600"):
        TokenFile.required(tmp_path / "token")


@pytest.mark.parametrize("is_open", [False, True])
def test_health_is_open_and_reflection_where_the_configuration_says_so(tmp_path: Path, is_open: bool) -> None:
    async def test(made: Served) -> None:
        async with rpc.channel(made.address, retry_attempts_max=1) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            if is_open:
                assert [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
            else:
                assert (await ended(stub.ServerReflectionInfo(iter([request])))).reason is Reason.TOKEN_MISSING
        async with rpc.channel(made.address, token=lambda: token(made.key, roles={})) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            assert [answer async for answer in stub.ServerReflectionInfo(iter([request]))]

    run(tmp_path, test, reflection_open=is_open)


def test_a_token_that_was_verified_is_still_judged_by_the_clock(tmp_path: Path) -> None:
    key = tmp_path / "token.pem"
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    text = token(key, expires_at=now[0] + timedelta(minutes=1))
    guard = TokenGuard(TokenVerifier.from_folder(tmp_path), Revocations(), now=lambda: now[0])

    async def admit() -> Principal:
        return (await guard.admit({"authorization": f"Bearer {text}"}, method=f"/{NAME}/ListProjects")).principal

    assert asyncio.run(admit()).subject == "users/tester"
    now[0] += timedelta(minutes=2)
    with pytest.raises(Unauthenticated) as caught:
        asyncio.run(admit())
    assert caught.value.reason is Reason.TOKEN_EXPIRED
