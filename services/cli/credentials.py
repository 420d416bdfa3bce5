"""Credentials of datasets as people have them: files of AWS, Google and Azure, and profiles."""

from __future__ import annotations

import configparser
import json
from collections.abc import Mapping
from pathlib import Path

from sihlai.conversion.v1.dataset_pb2 import Credentials, GoogleKey, S3Key

from services.chassis.endpoints import home_folder
from services.cli.error import CommandError

PROFILES_VARIABLE = "AWS_SHARED_CREDENTIALS_FILE"


def profile_credentials(profile: str, environ: Mapping[str, str]) -> Credentials:
    """The key of a profile in AWS's own file of credentials."""
    home = home_folder(environ)
    said = environ.get(PROFILES_VARIABLE) or (str(home / ".aws" / "credentials") if home is not None else "")
    if not said:
        raise CommandError(f"there is no home folder with .aws/credentials: set {PROFILES_VARIABLE}")
    path = Path(said).expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
    except (configparser.Error, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is no file of AWS credentials: {' '.join(str(error).split())}") from error
    if profile not in parser:
        raise CommandError(f"{path} has no profile {profile}: it has {', '.join(parser.sections()) or 'none'}")
    found = parser[profile]
    key = S3Key(
        access_key_id=found.get("aws_access_key_id", ""),
        secret_access_key=found.get("aws_secret_access_key", ""),
        session_token=found.get("aws_session_token", ""),
    )
    if not key.access_key_id or not key.secret_access_key:
        raise CommandError(f"profile {profile} of {path} has no aws_access_key_id or no aws_secret_access_key")
    return Credentials(s3=key)


def read_credentials(path: Path) -> Credentials:
    """An S3 key's parts, each on a line of its own; what Google makes for a service account; or Azure's."""
    text = path.read_text()
    if text.lstrip().startswith("{"):
        return _google_credentials(path, text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        signature = "sig=" in lines[0]
        return Credentials(azure_sas_token=lines[0]) if signature else Credentials(azure_account_key=lines[0])
    if len(lines) not in (2, 3):
        raise CommandError(
            f"{path} must hold an access key id, a secret access key and perhaps a session token, each on a line of "
            f"its own, the JSON of a Google service account's key, or an Azure account's key or shared access "
            f"signature, but has {len(lines)} lines"
        )
    key = S3Key(access_key_id=lines[0], secret_access_key=lines[1], session_token=lines[2] if len(lines) == 3 else "")
    return Credentials(s3=key)


def _google_credentials(path: Path, text: str) -> Credentials:
    try:
        found = json.loads(text)
        parts = {field.name: str(found.get(field.name, "")) for field in GoogleKey.DESCRIPTOR.fields}
    except (ValueError, AttributeError) as error:
        raise CommandError(f"{path} is no JSON of a Google service account's key: {error}") from error
    return Credentials(google=GoogleKey(**parts))
