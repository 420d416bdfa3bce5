"""Uris of object folders and what goes with them, as users write them: taken apart and checked, nothing is opened.

What passes here is read by other libraries too, some of them written in other languages. So it is strict: whatever two
readers could understand in two ways is refused, or a request would go to a server that was never allowed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from services.chassis.errors import InvalidArgument, PermissionDenied, Reason, Violation

# Strict, so that whoever checks the host and whoever connects read the same host out of it.
ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?", re.ASCII)
BUCKET_SCHEMES = ("s3", "gs", "az")
WANTED = "file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://account/container/prefix"
"""What a uri may be, for people."""
ACCOUNT_NAME = re.compile(r"[a-z0-9]{3,24}")
"""It becomes part of a host's name where no endpoint is given, as a region does."""
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
REGION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A region becomes part of a host's name where no endpoint is given: nothing in it may end that name."""


def split_uri(uri: str) -> SplitResult:
    """The parts of a folder's uri. Raises InvalidArgument for what is none."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # brackets that hold no address
        raise InvalidArgument([Violation(field="uri", description=f"is no uri: {error}")]) from error
    # As it is written: urlsplit passes over white space before it, and over the letters' case.
    is_local = uri.startswith(("file:///", "file://localhost/")) and bool(parts.path.strip("/"))
    is_bucket = uri.startswith(tuple(f"{scheme}://" for scheme in BUCKET_SCHEMES)) and bool(parts.netloc)
    account, bucket, _ = bucket_of(parts)
    problem = ""
    if parts.scheme in BUCKET_SCHEMES and "@" in parts.netloc:  # not quoted: it may be a secret
        problem = "must not hold credentials: give them as such"
    elif not is_local and not is_bucket:
        problem = f"is {uri!r}, but must be {WANTED}"
    elif is_bucket and account and not ACCOUNT_NAME.fullmatch(account):
        problem = f"names the account {account!r}, but Azure's accounts have 3 to 24 lower-case letters and digits"
    elif is_bucket and not BUCKET_NAME.fullmatch(bucket):
        wanted = "must be az://account/container/prefix: " if account and not bucket else ""
        problem = f"{wanted}names the bucket {bucket!r}, but a bucket's name has letters, digits, '.', '_' and '-'"
    elif any(character < " " for character in uri + unquote(parts.path)):
        problem = f"is {uri!r}, but must not hold control characters"
    elif ".." in unquote(parts.path).split("/"):
        problem = f"is {uri!r}, but must not hold '..'"
    elif parts.query or parts.fragment:
        problem = f"is {uri!r}, but must not hold '?' or '#' (write %3F or %23)"
    if problem:
        raise InvalidArgument([Violation(field="uri", description=problem)])
    return parts


def bucket_of(parts: SplitResult) -> tuple[str, str, str]:
    """Account, bucket and prefix that a uri of a bucket names; only Azure's name an account."""
    path = unquote(parts.path).strip("/")
    if parts.scheme != "az":
        return "", parts.netloc, path
    container, _, prefix = path.partition("/")
    return parts.netloc, container, prefix


def uri_parts(uri: str) -> tuple[str, ...]:
    """What a uri names, part by part, however it is written: a folder's are the first ones of all that lies in it.

    Links are not looked at. Raises InvalidArgument for what is no uri.
    """
    parts = split_uri(uri)
    host = parts.netloc if parts.scheme in BUCKET_SCHEMES else ""
    return (parts.scheme, host, *(part for part in unquote(parts.path).split("/") if part not in ("", ".")))


def local_path(uri: str) -> Path | None:
    """The folder of this machine that a file:// uri names; None for any other uri."""
    parts = urlsplit(uri)
    return Path(os.fsdecode(unquote_to_bytes(parts.path))) if parts.scheme == "file" else None


def check_endpoint(endpoint_url: str, allowed_hosts: Sequence[str] | None) -> None:
    """Raise InvalidArgument for what is no web address, PermissionDenied for a host that is not allowed (None: all)."""
    parts = urlsplit("")
    with contextlib.suppress(ValueError):  # brackets that hold no address, a port that is none
        found = urlsplit(endpoint_url)
        if ENDPOINT.fullmatch(endpoint_url) and found.port != 0:
            parts = found
    if not parts.hostname:
        found_text = "is one with credentials" if "@" in endpoint_url else f"is {endpoint_url!r}"
        description = f"{found_text}, but must be http(s)://host[:port]"
        raise InvalidArgument([Violation(field="endpoint_url", description=description)])
    if allowed_hosts is None or parts.hostname in allowed_hosts or parts.netloc in allowed_hosts:
        return
    allowed = ", ".join(allowed_hosts) or "none"
    message = f"{endpoint_url} is not among the hosts that the configuration allows ({allowed})"
    raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": endpoint_url})


def check_region(region: str) -> None:
    """Raise InvalidArgument for what is no region's name; none at all is fine."""
    if region and not REGION_NAME.fullmatch(region):
        description = f"is {region[:40]!r}, but must be a region's name: letters, digits and '-'"
        raise InvalidArgument([Violation(field="region", description=description)])
