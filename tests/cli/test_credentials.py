"""Credentials as people have them."""

from pathlib import Path

import pytest

from services.cli.credentials import profile_credentials, read_credentials
from services.cli.error import CommandError

FILE = """[default]
aws_access_key_id = AKIA
aws_secret_access_key = sec%ret

[team]
aws_access_key_id = TEAM
aws_secret_access_key = secret
aws_session_token = session

[broken]
aws_access_key_id = ALONE
"""


def test_profiles_are_read_where_aws_keeps_them(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(FILE)
    environ = {"HOME": str(tmp_path)}
    assert profile_credentials("default", environ).s3.secret_access_key == "sec%ret"
    team = profile_credentials("team", environ).s3
    assert (team.access_key_id, team.session_token) == ("TEAM", "session")
    elsewhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / ".aws" / "credentials")}
    assert profile_credentials("team", elsewhere).s3.access_key_id == "TEAM"
    with pytest.raises(CommandError, match="it has default, team, broken"):
        profile_credentials("nobody", environ)
    with pytest.raises(CommandError, match="no aws_secret_access_key"):
        profile_credentials("broken", environ)
    (tmp_path / ".aws" / "credentials").write_text("no headers here")
    with pytest.raises(CommandError, match="is no file of AWS credentials"):
        profile_credentials("default", environ)


def test_three_lines_are_an_s3_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("id\nsecret\n\nsession\n")
    key = read_credentials(tmp_path / "key").s3
    assert (key.access_key_id, key.secret_access_key, key.session_token) == ("id", "secret", "session")
