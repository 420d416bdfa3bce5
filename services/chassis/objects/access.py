"""What an access to objects may wait for and take, and the key it is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class ObjectLimits:
    """Object access's waits and sizes."""

    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    """How long a transfer to here may stand still."""
    request_seconds: float = 3_600.0
    """How long one request that reads may take with its whole body."""
    part_bytes: int = 8 * 2**20
    """A larger file is written in parts of so much, or more where it would have too many; a store of S3's kind takes
    none below 5 MiB."""
    parts_concurrent_max: int = 4
    """Parts that are on their way at once: each is in memory."""
    write_seconds: float = 300.0
    """How long one request that writes, such as a part, may take with its body, and how long it is tried again."""
    retries_max: int = 4
    retry_seconds_max: float = 30.0
    """After this long since the first attempt nothing is tried again."""
    folder_seconds_max: float = 30.0
    """How long the file system of a folder may take to answer; then the folder cannot be reached."""
    read_bytes_max: int = 256 * 2**20
    """What `read` takes into memory at most; larger objects are streamed."""


@dataclass(frozen=True, kw_only=True)
class S3Key:
    """A key for S3-compatible storage. Never shown by repr."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""


@dataclass(frozen=True, kw_only=True)
class GoogleKey:
    """A service account's key for Google Cloud Storage. Never shown by repr.

    Not the file that Google hands out: that may name other servers, which nobody has allowed.
    """

    client_email: str = field(repr=False)
    private_key: str = field(repr=False)
    """PEM."""
    private_key_id: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class AzureKey:
    """An account's key, or a shared access signature, for Azure Blob Storage. Never shown by repr."""

    account_key: str = field(default="", repr=False)
    """Base64."""
    sas_token: str = field(default="", repr=False)


Credentials: TypeAlias = S3Key | GoogleKey | AzureKey
"""A key of one kind of storage: with another it opens nothing."""
