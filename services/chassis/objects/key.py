"""Keys as callers send them: checked, and taken out of the message. What a key is must never be said."""

from __future__ import annotations

import itertools

from sihlai.conversion.v1 import dataset_pb2

from services.chassis.errors import Violation
from services.chassis.objects.access import AzureKey, Credentials, GoogleKey, S3Key
from services.chassis.text import text_violations

CHARACTERS_MAX = 8_192
"""Of each part of a key: a session token may have a few thousand, a private key of 4,096 bits 3,300."""
KINDS = {"s3": ("s3",), "gs": ("google",), "az": ("azure_account_key", "azure_sas_token")}
"""The members of the oneof `kind` by the scheme of a uri."""
NEEDED = {"s3": ("access_key_id", "secret_access_key"), "google": ("client_email", "private_key")}


def key_violations(credentials: dataset_pb2.Credentials, field: str, uri: str = "") -> list[Violation]:
    """What is wrong with a key for a uri, where one is known. Says which part it is, and never what that is."""
    scheme, kind = uri.partition("://")[0], credentials.WhichOneof("kind")
    fitting = KINDS.get(scheme, ()) if uri else tuple(itertools.chain(*KINDS.values()))
    wanted = " or ".join(fitting)
    if not fitting:
        kinds = ", ".join(f"{each}://" for each in KINDS)
        return [Violation(field=field, description=f"are for {kinds} alone: leave them out")]
    if kind is None:
        return [Violation(field=field, description=f"are empty: give {wanted}, or leave them out")]
    if kind not in fitting:
        return [Violation(field=f"{field}.{kind}", description=f"opens nothing of {scheme}://: give {wanted}")]
    part = getattr(credentials, kind)
    if isinstance(part, str):
        return _text(part, f"{field}.{kind}", needed=True)
    found = []
    for each in part.DESCRIPTOR.fields:
        needed = each.name in NEEDED[kind]
        found += _text(getattr(part, each.name), f"{field}.{kind}.{each.name}", needed=needed)
    return found


def key_from_proto(credentials: dataset_pb2.Credentials, region: str) -> Credentials | None:
    """The key; None where there is none in it. `region` is that of the source."""
    match credentials.WhichOneof("kind"):
        case "s3":
            key = credentials.s3
            return S3Key(
                access_key_id=key.access_key_id,
                secret_access_key=key.secret_access_key,
                session_token=key.session_token,
                region=region,
            )
        case "google":
            account = credentials.google
            return GoogleKey(
                client_email=account.client_email,
                private_key=account.private_key,
                private_key_id=account.private_key_id,
            )
        case "azure_account_key":
            return AzureKey(account_key=credentials.azure_account_key)
        case "azure_sas_token":
            return AzureKey(sas_token=credentials.azure_sas_token)
        case _:
            return None


def _text(value: str, field: str, *, needed: bool) -> list[Violation]:
    if needed and not value:
        return [Violation(field=field, description="is empty: give all parts of the key")]
    return text_violations(value.replace("\n", ""), field, characters_max=CHARACTERS_MAX)  # a PEM has lines
