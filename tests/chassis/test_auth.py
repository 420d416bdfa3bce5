"""Write tokens: who may write which attempt's rows, and until when."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from services.chassis.auth.keys import TokenSigner, TokenVerifier, remove_ended_keys, rotate_key
from services.chassis.auth.principal import Principal
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import ConfigurationError, PermissionDenied, Reason, Unauthenticated

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


@pytest.mark.parametrize("mark", ["\u202e", "\u200b", "\x9b", "\u200f", "/", " "])
def test_token_whose_holder_looks_like_another_is_refused(signer, verifier, mark):
    principal = Principal(subject=f"users/a{mark}b", token_id="one", expires_at=NOW + timedelta(hours=1))
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify_access(signer.sign_access(principal), now=NOW)
    assert caught.value.reason is Reason.TOKEN_INVALID
    whole = replace(principal, subject="users/می\u200cشود@example.com")
    assert verifier.verify_access(signer.sign_access(whole), now=NOW).subject == whole.subject


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


MONTH = timedelta(days=30)


def test_who_knows_a_key_believes_the_one_that_it_hands_over_to(tmp_path):
    path = tmp_path / "keys" / "token.pem"
    first = TokenSigner.from_file(path)
    elsewhere = tmp_path / "elsewhere.pub.pem"  # of a service that shares no folder with the scheduler
    elsewhere.write_bytes(path.with_name("token.pub.pem").read_bytes())
    verifier, late = TokenVerifier.from_files([elsewhere]), TokenVerifier.from_files([elsewhere])
    second = rotate_key(path, ends_at=NOW + MONTH)
    third = rotate_key(path, ends_at=NOW + 2 * MONTH)
    verifier.learn(second.successions)
    for signer in (first, second):
        assert verifier.verify(signer.sign(token()), now=NOW) == token()
    with pytest.raises(Unauthenticated, match="does not know"):
        verifier.verify(third.sign(token()), now=NOW)
    late.learn(third.successions)
    for signer in (first, second, third):
        assert late.verify(signer.sign(token()), now=NOW) == token()
    assert TokenSigner.from_file(path).key_id == third.key_id, "it is there after a restart"


def test_tokens_of_a_replaced_key_hold_until_it_ends(tmp_path):
    path = tmp_path / "token.pem"
    old = TokenSigner.from_file(path)
    new = rotate_key(path, ends_at=NOW + MONTH)
    lasting = token(expires_at=NOW + 12 * MONTH)
    verifier = TokenVerifier.from_folder(tmp_path)
    assert verifier.verify(old.sign(lasting), now=NOW + MONTH) == lasting
    with pytest.raises(Unauthenticated, match="another one has replaced"):
        verifier.verify(old.sign(lasting), now=NOW + MONTH + timedelta(seconds=6))
    assert verifier.verify(new.sign(lasting), now=NOW + 2 * MONTH) == lasting


def test_an_access_token_ends_with_its_key(tmp_path):
    path = tmp_path / "token.pem"
    old = TokenSigner.from_file(path)
    principal = Principal(subject="users/ada", token_id="one", expires_at=NOW + 12 * MONTH)
    rotate_key(path, ends_at=NOW + MONTH)
    found = TokenVerifier.from_folder(tmp_path).verify_access(old.sign_access(principal), now=NOW)
    assert (found.expires_at, found.key_id) == (NOW + MONTH, old.key_id)


def test_only_a_key_itself_hands_over_and_only_once(tmp_path):
    path = tmp_path / "token.pem"
    first = TokenSigner.from_file(path)
    copy = tmp_path / "copy.pub.pem"
    copy.write_bytes(path.with_name("token.pub.pem").read_bytes())
    verifier = TokenVerifier.from_files([copy])
    second = rotate_key(path, ends_at=NOW + MONTH)
    stranger = TokenSigner.from_file(tmp_path / "elsewhere" / "token.pem")
    public = stranger._private_key.public_key()
    head, body, _ = second.successions[0].split(".")
    for forged in (
        stranger.hand_over(public, ends_at=NOW + MONTH),
        jwt.encode(
            jwt.decode(stranger.hand_over(public, ends_at=NOW), options={"verify_signature": False}),
            stranger._private_key,
            algorithm="EdDSA",
            headers={"kid": first.key_id},
        ),
        f"{head}.{body}.",
        "rubbish",
    ):
        verifier.learn([forged])
        with pytest.raises(Unauthenticated, match="does not know"):
            verifier.verify(stranger.sign(token()), now=NOW)
        assert verifier.verify(first.sign(token(expires_at=NOW + 3 * MONTH)), now=NOW + 2 * MONTH).epoch == 5
    # Who has the old key can make no other successor once it has one.
    verifier.learn([*second.successions, first.hand_over(public, ends_at=NOW + MONTH)])
    assert verifier.verify(second.sign(token()), now=NOW) == token()
    with pytest.raises(Unauthenticated, match="does not know"):
        verifier.verify(stranger.sign(token()), now=NOW)


def test_no_statement_about_keys_is_a_token(tmp_path):
    path = tmp_path / "token.pem"
    TokenSigner.from_file(path)
    (statement,) = rotate_key(path, ends_at=NOW + MONTH).successions
    verifier = TokenVerifier.from_folder(tmp_path)
    for verify in (verifier.verify, verifier.verify_access):
        with pytest.raises(Unauthenticated):
            verify(statement, now=NOW)


def test_what_is_left_of_a_replaced_key_goes_when_it_has_ended(tmp_path):
    path = tmp_path / "token.pem"
    first = TokenSigner.from_file(path)
    path.chmod(0o640)
    second = rotate_key(path, ends_at=NOW + MONTH)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert remove_ended_keys(path, now=NOW) == []
    assert remove_ended_keys(path, now=NOW + 2 * MONTH) == [first.key_id]
    assert remove_ended_keys(path, now=NOW + 2 * MONTH) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"token.{second.key_id}.pub.pem",
        "token.pem",
        "token.pub.pem",
    ]
    assert TokenVerifier.from_folder(tmp_path).verify(second.sign(token()), now=NOW) == token()
