"""Tokens of an OpenID Connect issuer, against one that answers over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.auth.keys import TokenSigner, TokenVerifier
from services.chassis.auth.oidc import issuer as issuers
from services.chassis.auth.oidc.settings import read_issuer
from services.chassis.auth.oidc.verifier import AccessVerifier
from services.chassis.auth.principal import Principal, Role
from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError, Reason, SihlaiError, Unauthenticated, Unavailable
from services.chassis.loop import LoopLimits
from tests.oidc_issuer import DISCOVERY, KEYS, Issuer, jwk
from tests.tokens import token

SETTINGS = """
issuer: {url}
audience: sihlai
algorithms: [RS256, ES256, EdDSA]
roles:
  - {{claim: groups, value: vision, project: digits, role: viewer}}
  - {{claim: groups, value: vision-leads, project: digits, role: admin}}
  - {{claim: realm_access.roles, value: everybody, project: "-", role: viewer}}
  - {{claim: "https://example.com/team", value: ops, installation: admin}}
"""
SECONDS = 20


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that does not answer is asked again at once."""
    monkeypatch.setattr(issuers, "RETRY", LoopLimits(retry_seconds_first=0.01, retry_seconds_max=0.05))


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110  # threads of others change it
            await asyncio.sleep(0.01)


class Access:
    """A verifier whose issuer's keys are fetched beside it."""

    def __init__(self, verifier: AccessVerifier) -> None:
        self.verifier = verifier

    def verify(self, text: str, *, now: datetime | None = None) -> Principal:
        return self.verifier.verify_access(text, now=now or datetime.now(UTC))

    def refused(self, text: str, **when: Any) -> SihlaiError:
        with pytest.raises(SihlaiError) as caught:
            self.verify(text, **when)
        assert text not in caught.value.message
        return caught.value

    async def known(self, text: str) -> Principal:
        """Who it is, once the issuer's keys are there."""
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    return self.verify(text)
                except Unavailable:
                    await asyncio.sleep(0.01)

    async def settled(self, text: str) -> SihlaiError | None:
        """How it is refused, once that is known."""
        try:
            await self.known(text)
        except SihlaiError as error:
            return error
        return None


@contextlib.asynccontextmanager
async def access(tmp_path: Path, issuer: Issuer, settings: str = SETTINGS, **config: Any) -> AsyncIterator[Access]:
    TokenSigner.from_file(tmp_path / "keys" / "token.pem")
    file = tmp_path / "oidc.yaml"
    file.write_text(settings.format(url=issuer.url))
    verifier = AccessVerifier.configured(
        ServerConfig(oidc_file=file, **config), TokenVerifier.from_folder(tmp_path / "keys")
    )
    running = asyncio.create_task(verifier.run())
    try:
        yield Access(verifier)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def run(tmp_path: Path, issuer: Issuer, test: Callable[[Access], Any], **config: Any) -> None:
    async def main() -> None:
        async with access(tmp_path, issuer, **config) as made:
            await test(made)

    asyncio.run(main())


def test_claims_say_who_it_is_and_what_they_may(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        text = issuer.token(groups=["vision", "vision-leads", "chess"], jti="one")
        ada = await made.known(text)
        assert (ada.subject, dict(ada.roles), ada.is_admin) == ("users/ada", {"projects/digits": Role.ADMIN}, False)
        assert ada.expires_at == datetime.fromtimestamp(
            jwt.decode(text, options={"verify_signature": False})["exp"], UTC
        )
        assert ada.token_id == made.verify(issuer.token(jti="one")).token_id != made.verify(issuer.token()).token_id
        assert made.verify(issuer.token(groups="vision")).roles == {"projects/digits": Role.VIEWER}
        nested = made.verify(issuer.token(realm_access={"roles": ["everybody"]}))
        assert nested.roles == {"projects/-": Role.VIEWER}
        assert made.verify(issuer.token(**{"https://example.com/team": "ops"})).is_admin
        for claims in ({}, {"groups": ["visions"]}, {"groups": "vision leads"}, {"groups": {"vision": True}}):
            nobody = made.verify(issuer.token(**claims))
            assert (dict(nobody.roles), nobody.is_admin) == ({}, False)

    run(tmp_path, issuer, test)


def test_our_own_tokens_hold_beside_the_issuers(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        issuer.leave()
        assert made.verify(token(tmp_path / "keys" / "token.pem")).subject == "users/tester"

    run(tmp_path, issuer, test)


@pytest.mark.parametrize("kind", ["EC", "OKP"])
def test_other_kinds_of_keys_do_too(tmp_path: Path, issuer: Issuer, kind: str) -> None:
    issuer.rotate("other", kind=kind)

    async def test(made: Access) -> None:
        assert (await made.known(issuer.token())).subject == "users/ada"

    run(tmp_path, issuer, test)


def test_tokens_that_do_not_hold_are_refused_with_the_reason(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        good = issuer.token()
        await made.known(good)
        head, body, signature = good.split(".")
        other_body = issuer.token(groups=["vision-leads"]).split(".")[1]
        public = issuer.private_keys["first"].public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        claims = {"iss": issuer.url, "aud": "sihlai", "sub": "ada", "exp": int(time.time()) + 60}
        own_key = TokenSigner.from_file(tmp_path / "keys" / "token.pem")._private_key
        wrong = {
            issuer.token(exp=int(time.time()) - 60): "ended",
            issuer.token(nbf=int(time.time()) + 60): "holds only from",
            issuer.token(aud="another"): "another audience",
            issuer.token(aud=None): "another audience|does not hold",
            issuer.token(exp=None): "does not hold",
            issuer.token(iss="https://elsewhere.example"): "issuer that is not accepted",
            issuer.token(iss=issuer.url + "/"): "issuer that is not accepted",
            issuer.token(headers={"typ": "logout+jwt"}): "no access token",
            **{issuer.token(sub=f"a{mark}b"): "claim sub must name its holder" for mark in "/ \u202e\u200b\x9b\u200d"},
            issuer.token(sub=None): "claim sub must name its holder",
            f"{head}.{other_body}.{signature}": "signature does not hold",
            f"{head}.{body}.": "signature does not hold",
            hs256(pem, claims, "first"): "algorithm that is not accepted",
            jwt.encode(claims, "", algorithm="none", headers={"kid": "first"}): "algorithm that is not accepted",
            # With the right key's id, signed by somebody else, our own scheduler included.
            issuer.token(key=Ed25519PrivateKey.generate()): "another algorithm than its key",
            jwt.encode(claims, own_key, algorithm="EdDSA", headers={"kid": own_key_id(own_key)}): "does not show",
            "rubbish": "does not hold",
        }
        for text, reason in wrong.items():
            error = await made.settled(text)
            assert error is not None, reason
            expected = Reason.TOKEN_EXPIRED if reason == "ended" else Reason.TOKEN_INVALID
            assert (type(error), error.reason) == (Unauthenticated, expected), error.message
            assert any(each in error.message for each in reason.split("|")), error.message
        # What the issuer signs without saying so is not ours.
        assert made.refused(issuer.token(iss=None)).reason is Reason.TOKEN_INVALID
        assert made.verify(good).subject == "users/ada"

    run(tmp_path, issuer, test)


def hs256(secret: bytes, claims: dict[str, Any], key_id: str) -> str:
    """Signed with the public key as if it were a secret."""
    hmac = jwt.get_algorithm_by_name("HS256")
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "kid": key_id}, claims)]
    text = b".".join(jwt.utils.base64url_encode(part) for part in parts)
    return (text + b"." + jwt.utils.base64url_encode(hmac.sign(text, secret))).decode()


def own_key_id(key: Ed25519PrivateKey) -> str:
    return TokenSigner(key).key_id


def test_rotated_keys_are_found_at_once_and_the_old_ones_go(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        old = issuer.token()
        await made.known(old)
        issuer.rotate("first", "second")
        assert isinstance(made.refused(issuer.token()), Unavailable)  # it is being asked for
        assert (await made.known(issuer.token())).subject == "users/ada"
        assert made.verify(old).subject == "users/ada"
        issuer.rotate("second", "third")
        await made.known(issuer.token())
        assert "key is not known here" in made.refused(old).message

    run(tmp_path, issuer, test, oidc_unknown_key_seconds=0.0)


def test_unknown_keys_do_not_make_the_issuer_be_asked_each_time(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        await made.known(issuer.token())
        for number in range(50):
            error = await made.settled(issuer.token(headers={"kid": f"made-up-{number}"}))
            assert error is not None
            assert "does not show" in error.message
        assert issuer.asked.count(KEYS) == 2

    run(tmp_path, issuer, test)


def test_keys_are_kept_while_the_issuer_is_away_and_fetched_when_it_is_back(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        first = issuer.token()
        await made.known(first)
        issuer.leave()
        asked = len(issuer.asked)
        issuer.rotate("second")
        new = issuer.token()
        await until(lambda: "being asked" not in made.refused(new).message)
        error = made.refused(new)
        assert isinstance(error, Unavailable)
        assert "does not answer" in error.message
        assert made.verify(first).subject == "users/ada"
        issuer.come_back()
        assert (await made.known(new)).subject == "users/ada"
        assert len(issuer.asked) > asked

    run(tmp_path, issuer, test)


def test_an_issuer_that_is_away_from_the_start_is_waited_for(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        text = issuer.token()
        error = made.refused(text)
        assert isinstance(error, Unavailable)
        assert issuer.url not in error.message
        issuer.come_back()
        assert (await made.known(text)).subject == "users/ada"

    issuer.leave()
    run(tmp_path, issuer, test)


def test_kept_keys_serve_a_start_with_the_issuer_away(tmp_path: Path, issuer: Issuer) -> None:
    file = tmp_path / "issuer.json"

    async def fetch(made: Access) -> None:
        await made.known(issuer.token())
        await until(file.exists)

    async def away(made: Access) -> None:
        text = issuer.token()
        assert made.verify(text).subject == "users/ada"  # at once, and after it was asked in vain
        await until(lambda: "does not answer" in made.refused(issuer.token(headers={"kid": "other"})).message)
        assert made.verify(text).subject == "users/ada"

    run(tmp_path, issuer, fetch, oidc_keys_file=file)
    assert file.stat().st_mode & 0o777 == 0o600
    issuer.leave()
    run(tmp_path, issuer, away, oidc_keys_file=file)
    for content in ("{", json.dumps({"issuer": "https://elsewhere.example", "keys": []}), "[]"):
        file.write_text(content)

        async def unknown(made: Access) -> None:
            assert isinstance(made.refused(issuer.token()), Unavailable)

        run(tmp_path, issuer, unknown, oidc_keys_file=file)


def test_keys_that_the_disk_does_not_take_are_kept_when_it_does(tmp_path: Path, issuer: Issuer) -> None:
    file = tmp_path / "keys of the issuer" / "issuer.json"

    async def fetch(made: Access) -> None:
        await made.known(issuer.token())
        asked = len(issuer.asked)
        await until(lambda: len(issuer.asked) > asked)  # nothing is new, and there is no folder yet
        file.parent.mkdir()
        await until(file.exists)

    run(tmp_path, issuer, fetch, oidc_keys_file=file, oidc_refresh_seconds=0.05)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (DISCOVERY, b'{"issuer": "https://another.example", "jwks_uri": "https://another.example/keys"}'),
        (DISCOVERY, b'{"issuer": "URL", "jwks_uri": "http://another.example/keys"}'),
        (DISCOVERY, b'{"issuer": "URL"}'),
        (DISCOVERY, b"[]"),
        (DISCOVERY, b"{"),
        (DISCOVERY, b"[" * 100_000),
        (DISCOVERY, None),
        (KEYS, b'{"keys": {}}'),
        (KEYS, b'{"keys": [' + b" " * 2**20 + b"]}"),
    ],
)
def test_documents_that_are_wrong_or_too_large_give_no_keys(
    tmp_path: Path, issuer: Issuer, path: str, content: bytes | None
) -> None:
    async def test(made: Access) -> None:
        good, issuer.answers[path] = issuer.answers[path], content and content.replace(b"URL", issuer.url.encode())
        text = issuer.token()
        await until(lambda: issuer.asked.count(path) >= 2)
        assert isinstance(made.refused(text), Unavailable)
        issuer.answers[path] = good
        await made.known(text)

    run(tmp_path, issuer, test, oidc_fetch_bytes_max=2**18)


def test_an_issuer_that_is_too_slow_is_away(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        text = issuer.token()
        await until(lambda: len(issuer.asked) >= 2)
        assert isinstance(made.refused(text), Unavailable)

    class Slow(bytes):
        """Takes its time to be sent."""

        def __len__(self) -> int:
            time.sleep(0.4)
            return super().__len__()

    issuer.answers[DISCOVERY] = Slow(issuer.answers[DISCOVERY])
    run(tmp_path, issuer, test, oidc_fetch_seconds=0.1)


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_keys_that_sign_nothing_are_left_out(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        shown = json.loads(issuer.answers[KEYS])["keys"]
        weak = rsa.generate_private_key(65_537, 1_024)
        shown += [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
            {"kty": "RSA", "kid": "broken"},
            {**shown[0], "kid": "enc", "use": "enc"},
            jwk(weak, "weak"),
            "no key",
        ]
        issuer.answers[KEYS] = json.dumps({"keys": shown}).encode()
        await made.known(issuer.token())
        for text in (issuer.token(headers={"kid": "enc"}), issuer.token(headers={"kid": "weak"}, key=weak)):
            error = await made.settled(text)
            assert error is not None
            assert "does not show" in error.message

    run(tmp_path, issuer, test)


def test_an_address_that_is_not_verified_names_nobody(tmp_path: Path, issuer: Issuer) -> None:
    async def test(made: Access) -> None:
        good = await made.known(issuer.token(email="ada@example.com", email_verified=True))
        assert good.subject == "users/ada@example.com"
        assert "email" in made.refused(issuer.token(email="ada@example.com", email_verified=False)).message

    run(tmp_path, issuer, test, settings=SETTINGS + "subject_claim: email\n")


def test_everything_that_is_wrong_with_the_settings_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(
        "issuer: http://login.example.com\naudience: []\nalgorithms: [HS256, none]\nclientid: x\n"
        "roles: [{claim: groups, value: vision, project: digits}, {claim: groups, value: all, installation: viewer},"
        " {claim: groups, value: ops, installation: admin, project: digits},"
        " {claim: groups, value: all, project: A, role: admin}]"
    )
    with pytest.raises(ConfigurationError) as caught:
        read_issuer(file)
    problems = " ".join(caught.value.problems)
    for word in ("clientid", "issuer is", "audience is", "HS256", "none", *(f"roles[{index}]" for index in range(4))):
        assert word in problems
    assert len(caught.value.problems) == 9
    for text in ("", "[]", "issuer: [", "issuer: https://login.example.com\naudience: sihlai\n"):
        file.write_text(text)
        with pytest.raises(ConfigurationError):
            read_issuer(file)
