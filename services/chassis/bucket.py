"""Buckets of S3-compatible storage that are open: to open one takes milliseconds, for certificates and a client.

What is opened with other rights is another one, connections included. Credentials must not stand in an error or in the
log.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import S3Store

if TYPE_CHECKING:  # obstore's types do not exist at run time; ours are those of the folders above
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

    from services.chassis.objects import Credentials, ObjectLimits

KEY_ADVICE = "check the credentials and what they may do"
PUBLIC_ADVICE = "give credentials, as without them only what is public can be read"


@dataclass(frozen=True, kw_only=True)
class Rights:
    """All that decides what an opened bucket may do, and how. Without `credentials` the process's own are used."""

    bucket: str
    endpoint_url: str
    region: str
    credentials: Credentials | None
    anonymous: bool
    limits: ObjectLimits


class S3Bucket:
    """A bucket of S3-compatible storage."""

    def __init__(self, store: S3Store, advice: str) -> None:
        self._store = store
        self.advice = advice

    def exists(self) -> bool:
        """A missing bucket answers for itself."""
        return True

    def open(self, path: str, *, write: bool = False) -> S3Store:
        """The bucket's store; its credentials say what is allowed."""
        return self._store


class Buckets:
    """Buckets that are kept open, at most `open_max`. May be used by several threads."""

    def __init__(self, *, open_max: int) -> None:
        self._open_max = open_max
        self._lock = threading.Lock()
        self._open: OrderedDict[Rights, S3Bucket] = OrderedDict()

    def open(self, rights: Rights) -> S3Bucket:
        """The bucket with these rights. The one that was asked for the longest ago makes room for it."""
        with self._lock:
            found = self._open.pop(rights, None) or open_bucket(rights)
            self._open[rights] = found
            while len(self._open) > self._open_max:
                self._open.popitem(last=False)
            return found


def open_bucket(rights: Rights) -> S3Bucket:
    """Open a bucket. Nothing is read yet."""
    config: S3Config = {"virtual_hosted_style_request": False}
    if rights.endpoint_url:
        config["endpoint"] = rights.endpoint_url
    if rights.region:
        config["region"] = rights.region
    if rights.anonymous:
        config["skip_signature"] = True
    limits = rights.limits
    client: ClientConfig = {
        "allow_http": rights.endpoint_url.startswith("http://"),
        "connect_timeout": timedelta(seconds=limits.connect_seconds),
        "read_timeout": timedelta(seconds=limits.read_seconds),
        "timeout": timedelta(seconds=limits.request_seconds),
    }
    retry: RetryConfig = {
        "max_retries": limits.retries_max,
        "retry_timeout": timedelta(seconds=limits.retry_seconds_max),
    }
    advice = PUBLIC_ADVICE if rights.anonymous else KEY_ADVICE
    if rights.credentials is None:
        return S3Bucket(S3Store(rights.bucket, config=config, client_options=client, retry_config=retry), advice)
    key: S3Credential = {
        "access_key_id": rights.credentials.access_key_id,
        "secret_access_key": rights.credentials.secret_access_key,
        "token": rights.credentials.session_token or None,
        "expires_at": None,
    }
    # Not by the configuration: a key without a token would take AWS_SESSION_TOKEN of this process along.
    store = S3Store(
        rights.bucket, config=config, client_options=client, retry_config=retry, credential_provider=lambda: key
    )
    return S3Bucket(store, advice)
