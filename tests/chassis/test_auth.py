"""Write tokens: who may write which attempt's rows, and until when."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from services.chassis.auth.keys import TokenSigner, TokenVerifier
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import ConfigurationError, PermissionDenied, Unauthenticated

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def token(**changes):
    values = {
        "project": "cells",
        "job_uid": "uid-1",
        "attempt": 2,
        "epoch": 5,
        "from_step": 400,
        "expires_at": NOW + timedelta(hours=1),
        "drain_only": False,
    }
    return WriteToken(**(values | changes))


@pytest.fixture
def signer(tmp_path):
    return TokenSigner.from_file(tmp_path / "write.pem")


@pytest.fixture
def verifier(tmp_path, signer):
    return TokenVerifier.from_folder(tmp_path)


@pytest.mark.parametrize("drain_only", [False, True])
def test_signed_token_comes_back_as_it_was(signer, verifier, drain_only):
    signed = token(drain_only=drain_only)
    assert verifier.verify(signer.sign(signed), now=NOW) == signed


def test_expiry_is_judged_by_the_given_time(signer, verifier):
    text = signer.sign(token(expires_at=NOW))
    assert verifier.verify(text, now=NOW + timedelta(seconds=4)).epoch == 5
    with pytest.raises(Unauthenticated, match="ended 60 s ago: renew"):
        verifier.verify(text, now=NOW + timedelta(seconds=60))


def test_changed_token_is_refused(signer, verifier):
    head, body, signature = signer.sign(token()).split(".")
    other_body = signer.sign(token(attempt=3)).split(".")[1]
    for text in (f"{head}.{other_body}.{signature}", f"{head}.{body}.", f"{head}.{body}", "", "rubbish"):
        with pytest.raises(Unauthenticated):
            verifier.verify(text, now=NOW)


def test_token_without_signature_or_with_another_algorithm_is_refused(signer, verifier):
    claims = jwt.decode(signer.sign(token()), options={"verify_signature": False})
    headers = {"kid": signer.key_id}
    for text in (
        jwt.encode(claims, "", algorithm="none", headers=headers),
        jwt.encode(claims, "k" * 32, algorithm="HS256", headers=headers),
    ):
        with pytest.raises(Unauthenticated):
            verifier.verify(text, now=NOW)


def test_token_of_an_unknown_key_is_refused(tmp_path, verifier):
    stranger = TokenSigner.from_file(tmp_path / "elsewhere" / "write.pem")
    with pytest.raises(Unauthenticated, match="does not know"):
        verifier.verify(stranger.sign(token()), now=NOW)


def test_key_that_appears_later_is_found_without_a_restart(tmp_path):
    verifier = TokenVerifier.from_folder(tmp_path)
    signer = TokenSigner.from_file(tmp_path / "write.pem")
    assert verifier.verify(signer.sign(token()), now=NOW) == token()


def test_unknown_keys_do_not_make_the_folder_be_read_each_time(tmp_path, signer, verifier):
    stranger = TokenSigner.from_file(tmp_path / "elsewhere" / "write.pem")
    with pytest.raises(Unauthenticated):
        verifier.verify(stranger.sign(token()), now=NOW)
    (tmp_path / "elsewhere" / "write.pub.pem").rename(tmp_path / "stranger.pub.pem")
    with pytest.raises(Unauthenticated):
        verifier.verify(stranger.sign(token()), now=NOW + timedelta(milliseconds=500))
    assert verifier.verify(stranger.sign(token()), now=NOW + timedelta(seconds=2)) == token()


def test_token_for_another_attempt_may_not_write_this_one(signer, verifier):
    held = verifier.verify(signer.sign(token()), now=NOW)
    held.require_attempt(job_uid="uid-1", attempt=2)
    with pytest.raises(PermissionDenied, match="attempt 2 of job uid-1, not for attempt 3"):
        held.require_attempt(job_uid="uid-1", attempt=3)


def test_private_key_is_for_its_owner_alone_and_stays_the_same(tmp_path):
    first = TokenSigner.from_file(tmp_path / "keys" / "write.pem")
    again = TokenSigner.from_file(tmp_path / "keys" / "write.pem")
    assert first.key_id == again.key_id
    assert stat.S_IMODE((tmp_path / "keys" / "write.pem").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [
        f"write.{first.key_id}.pub.pem",
        "write.pem",
        "write.pub.pem",
    ]


def test_starters_at_the_same_time_agree_on_one_key(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        signers = list(threads.map(TokenSigner.from_file, [tmp_path / "write.pem"] * 8))
    assert len({signer.key_id for signer in signers}) == 1
    TokenVerifier.from_files([tmp_path / "write.pub.pem"]).verify(signers[0].sign(token()), now=NOW)


def test_file_that_holds_no_key_is_named(tmp_path):
    path = tmp_path / "write.pem"
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"write\.pem cannot be read as a private key"):
        TokenSigner.from_file(path)


def test_a_key_is_changed_while_tokens_of_the_old_one_hold(tmp_path):
    path = tmp_path / "token.pem"
    old = TokenSigner.from_file(path)
    verifier = TokenVerifier.from_files([tmp_path])
    text = old.sign(token())
    path.unlink()
    new = TokenSigner.from_file(path)
    assert new.key_id != old.key_id
    later = NOW + timedelta(seconds=2)
    assert verifier.verify(new.sign(token()), now=later) == token()
    started_later = TokenVerifier.from_folder(tmp_path)
    for each in (verifier, started_later):
        assert each.verify(text, now=later) == token()
    one_file = TokenVerifier.from_files([tmp_path / "token.pub.pem"])
    with pytest.raises(Unauthenticated):
        one_file.verify(text, now=later)


def test_a_damaged_public_key_is_no_mistake_of_the_server_and_hides_no_other(tmp_path):
    verifier = TokenVerifier.from_files([tmp_path])
    (tmp_path / "damaged.pub.pem").write_text("no key")
    with pytest.raises(Unauthenticated):
        verifier.verify(TokenSigner.from_file(tmp_path / "elsewhere" / "token.pem").sign(token()), now=NOW)
    signer = TokenSigner.from_file(tmp_path / "token.pem")
    assert verifier.verify(signer.sign(token()), now=NOW + timedelta(seconds=2)) == token()


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o604])
def test_a_private_key_that_others_may_read_is_refused_with_what_to_do(tmp_path, mode):
    path = tmp_path / "token.pem"
    TokenSigner.from_file(path)
    path.chmod(0o640)
    TokenSigner.from_file(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        TokenSigner.from_file(path)


def test_a_token_whose_header_is_nested_without_end_is_refused(verifier):
    header = base64.urlsafe_b64encode(b"[" * 60_000).decode().rstrip("=")
    with pytest.raises(Unauthenticated):
        verifier.verify(f"{header}.e30.AA", now=NOW)
