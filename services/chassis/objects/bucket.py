"""Buckets that are open, of S3-compatible, Google's and Azure's storage: to open one takes milliseconds.

What is opened with other rights is another one, connections included. Credentials must not stand in an error or in the
log, and of what the process may do itself nothing goes along with those of a caller.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.objects.access import AzureKey, Credentials, GoogleKey, ObjectLimits, S3Key

if TYPE_CHECKING:  # obstore's types do not exist at run time
    from obstore import ObjectMeta
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        GCSCredential,
        ObjectStore,
        RetryConfig,
        S3Config,
        S3Credential,
    )

KEY_ADVICE = "check the credentials and what they may do"
PUBLIC_ADVICE = "give credentials, as without them only what is public can be read"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
GOOGLE_TOKEN_SECONDS = 3_600
"""Google takes no token that lasts longer."""


@dataclass(frozen=True, kw_only=True)
class Rights:
    """All that decides what an opened bucket may do, and how. Without `credentials` the process's own are used."""

    scheme: str = "s3"
    """`s3`, `gs` or `az`."""
    account: str = ""
    """Of `az`: whose container it is."""
    bucket: str
    endpoint_url: str
    region: str
    credentials: Credentials | None
    anonymous: bool
    limits: ObjectLimits


class Bucket:
    """A bucket, or a container, of a storage."""

    def __init__(self, opened: Callable[[bool], ObjectStore], advice: str) -> None:
        """`opened` gives the bucket, for writing or for reading."""
        self._opened = opened
        self.advice = advice

    async def exists(self) -> bool:
        """A missing bucket answers for itself."""
        return True

    async def open(self, path: str, *, write: bool = False) -> ObjectStore:
        """The bucket's store; its credentials say what is allowed."""
        return self._opened(write)

    @contextlib.asynccontextmanager
    async def reading(self, path: str) -> AsyncIterator[tuple[ObjectStore, str]]:
        """The same, for reading."""
        yield self._opened(False), path

    async def list(self, prefix: str) -> AsyncIterator[Sequence[ObjectMeta]]:
        """What lies under a prefix."""
        async for batch in obstore.list(self._opened(False), prefix or None):
            yield batch

    def opened(self, path: str) -> contextlib.AbstractContextManager[int]:
        """There is nothing of it on this machine."""
        raise AssertionError("a bucket has no descriptors")


class Buckets:
    """Buckets that are kept open, at most `open_max`. May be used by several threads."""

    def __init__(self, *, open_max: int) -> None:
        self._open_max = open_max
        self._lock = threading.Lock()
        self._open: OrderedDict[Rights, Bucket] = OrderedDict()

    def open(self, rights: Rights) -> Bucket:
        """The bucket with these rights. The one that was asked for the longest ago makes room for it."""
        with self._lock:
            found = self._open.pop(rights, None) or open_bucket(rights)
            self._open[rights] = found
            while len(self._open) > self._open_max:
                self._open.popitem(last=False)
            return found


def open_bucket(rights: Rights) -> Bucket:
    """Open a bucket. Nothing is read yet. Raises InvalidArgument for credentials that are none of its storage."""
    openers: dict[str, Callable[[Rights, bool], ObjectStore]]
    openers = {"s3": _open_s3, "gs": _open_google, "az": _open_azure}
    opened = functools.cache(functools.partial(openers[rights.scheme], rights))
    try:
        opened(False)  # what cannot be opened says so now
    except BaseError as error:  # of which no text is shown: it may hold a part of a key
        description = f"cannot be opened as {rights.scheme}:// with the keys of this process: mend its environment"
        raise InvalidArgument([Violation(field="uri", description=description)]) from error
    return Bucket(opened, PUBLIC_ADVICE if rights.anonymous else KEY_ADVICE)


def _open_s3(rights: Rights, write: bool) -> S3Store:
    config: S3Config = {"virtual_hosted_style_request": False}
    if rights.endpoint_url:
        config["endpoint"] = rights.endpoint_url
    if rights.region:
        config["region"] = rights.region
    if rights.anonymous:
        config["skip_signature"] = True
    if rights.credentials is None:
        return S3Store(rights.bucket, config=config, **_options(rights, write=write))
    if not isinstance(rights.credentials, S3Key):
        raise _other_kind("s3", "an access key")
    key: S3Credential = {
        "access_key_id": rights.credentials.access_key_id,
        "secret_access_key": rights.credentials.secret_access_key,
        "token": rights.credentials.session_token or None,
        "expires_at": None,
    }
    # Not by the configuration: a key without a token would take AWS_SESSION_TOKEN of this process along.
    return S3Store(rights.bucket, config=config, credential_provider=lambda: key, **_options(rights, write=write))


def _open_google(rights: Rights, write: bool) -> GCSStore:
    config: GCSConfig = {}
    if rights.endpoint_url:
        config["base_url"] = rights.endpoint_url.rstrip("/")
    if rights.anonymous:
        config["skip_signature"] = True
    if rights.credentials is None:
        return GCSStore(rights.bucket, config=config, **_options(rights, write=write))
    if not isinstance(rights.credentials, GoogleKey):
        raise _other_kind("gs", "a service account's key")
    key = rights.credentials
    _google_token(key)  # a key that signs nothing says so now
    return GCSStore(
        rights.bucket, config=config, credential_provider=lambda: _google_token(key), **_options(rights, write=write)
    )


def _open_azure(rights: Rights, write: bool) -> AzureStore:
    config: AzureConfig = {"account_name": rights.account}
    if rights.endpoint_url:
        config["endpoint"] = rights.endpoint_url.rstrip("/")
    if rights.anonymous:
        config["skip_signature"] = True
    if rights.credentials is None:
        return AzureStore(rights.bucket, config=config, **_options(rights, write=write))
    if not isinstance(rights.credentials, AzureKey):
        raise _other_kind("az", "an account's key or a shared access signature")
    key: Any = {"access_key": rights.credentials.account_key, "expires_at": None}
    if rights.credentials.sas_token:
        key = {"sas_token": rights.credentials.sas_token.removeprefix("?"), "expires_at": None}
    return AzureStore(rights.bucket, config=config, credential_provider=lambda: key, **_options(rights, write=write))


def _google_token(key: GoogleKey) -> GCSCredential:
    """What Google takes in the place of an access token: signed by the service account itself, no server is asked."""
    now = int(time.time())
    ends = now + GOOGLE_TOKEN_SECONDS
    account = {"iss": key.client_email, "sub": key.client_email}
    claims = {**account, "scope": GOOGLE_SCOPE, "iat": now, "exp": ends}
    headers = {"kid": key.private_key_id} if key.private_key_id else None
    try:
        token = jwt.encode(claims, key.private_key, algorithm="RS256", headers=headers)
    except (jwt.PyJWTError, TypeError, ValueError) as error:
        description = "is no private key that signs: give the one of the service account's key file, a PEM"
        raise InvalidArgument([Violation(field="credentials.google.private_key", description=description)]) from error
    return {"token": token, "expires_at": datetime.fromtimestamp(ends, UTC)}


def _other_kind(scheme: str, wanted: str) -> InvalidArgument:
    return InvalidArgument([Violation(field="credentials", description=f"must be {wanted} for {scheme}://")])


def _options(rights: Rights, *, write: bool) -> dict[str, Any]:
    return {"client_options": _client(rights, write=write), "retry_config": _retry(rights.limits, write=write)}


def _client(rights: Rights, *, write: bool) -> ClientConfig:
    """Writing has no read time-out: the client counts it while the body is still being sent."""
    limits = rights.limits
    client: ClientConfig = {
        "allow_http": rights.endpoint_url.startswith("http://"),
        "connect_timeout": timedelta(seconds=limits.connect_seconds),
        "timeout": timedelta(seconds=limits.write_seconds if write else limits.request_seconds),
    }
    if not write:
        client["read_timeout"] = timedelta(seconds=limits.read_seconds)
    return client


def _retry(limits: ObjectLimits, *, write: bool) -> RetryConfig:
    seconds = limits.write_seconds if write else limits.retry_seconds_max
    return {"max_retries": limits.retries_max, "retry_timeout": timedelta(seconds=seconds)}
