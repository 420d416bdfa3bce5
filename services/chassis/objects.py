"""Objects in a folder: `file:///…` or `s3://bucket/prefix`, through obstore.

A uri may come from a user. Where it does, the caller passes the roots and hosts of its configuration, and nothing
outside them is opened. Paths are relative to the folder and never leave it. Credentials must not stand in an error or
in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore

from services.chassis.bucket import Buckets, Rights, open_bucket
from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    SihlaiError,
    Unavailable,
    Violation,
)
from services.chassis.object_uri import check_endpoint, check_region, split_uri

CHUNK_BYTES = 4 * 2**20
PROBLEM_CHARACTERS_MAX = 200
# obstore has no classes for these two: what a list answers, and a path below a file, stand in the text alone.
STATUS_IN_TEXT = re.compile(r"non-2xx status code: (\d{3})")
NOT_A_DIRECTORY = "(os error 20)"


@dataclass(frozen=True, kw_only=True)
class ObjectLimits:
    """Object access's waits and sizes."""

    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    """How long a transfer may stand still."""
    request_seconds: float = 3_600.0
    """How long one request may take with its whole body."""
    retries_max: int = 4
    retry_seconds_max: float = 30.0
    """After this long since the first attempt nothing is tried again."""
    read_bytes_max: int = 256 * 2**20
    """What `read` takes into memory at most; larger objects are streamed."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A key for S3-compatible storage. Never shown by repr."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object. `path` is relative to the folder; `etag` changes with the content."""

    path: str
    size_bytes: int
    etag: str
    last_modified: datetime


class ObjectNotFound(NotFound):
    """No object has this path. Callers that know what it means say so with a reason of their own."""


class ObjectChanged(FailedPrecondition):
    """The object is not the one with this etag any more."""


class ObjectAlreadyExists(AlreadyExists):
    """A create-only write found an object."""


class ObjectFolder:
    """The objects under one uri. Each method raises our errors alone.

    Local writes are atomic, yet not synced: after a loss of power a new object may be missing.
    """

    def __init__(self, uri: str, store: Store, *, limits: ObjectLimits, prefix: str = "") -> None:
        self.uri = uri
        self._store = store
        self._limits = limits
        self._prefix = prefix

    def folder(self, prefix: str) -> ObjectFolder:
        """The folder at a relative path in this one; bounds and credentials stay the same."""
        path = _checked_path(prefix)
        return ObjectFolder(f"{self.uri}/{path}", self._store, limits=self._limits, prefix=self._full(path))

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects under a path prefix (whole path parts), in no particular order; none where nothing is there."""
        under = self._full(_checked_path(prefix)) if prefix else self._prefix
        if not self._store.exists():
            return
        with self._translated(prefix):
            async for batch in obstore.list(self._store.open(under), under or None):
                for found in batch:
                    yield self._info(found)

    async def info(self, path: str) -> ObjectInfo:
        """What is known of one object, or ObjectNotFound."""
        full = self._full(_checked_path(path))
        with self._translated(path):
            return self._info(await obstore.head_async(self._store.open(full), full))

    async def exists(self, path: str) -> bool:
        """Whether there is an object (a folder is none)."""
        try:
            await self.info(path)
        except ObjectNotFound:
            return False
        return True

    async def read(self, path: str, *, etag: str = "") -> bytes:
        """The whole object; ResourceExhausted where it is larger than `read_bytes_max`.

        With an `etag` (that `list` or `info` told) ObjectChanged where the object has another one by now.
        """
        full = self._full(_checked_path(path))
        options: obstore.GetOptions = {"if_match": etag} if etag else {}
        with self._translated(path):
            result = await obstore.get_async(self._store.open(full), full, options=options)
            size_bytes = result.meta["size"]
            if size_bytes > self._limits.read_bytes_max:
                raise self._too_large(path, size_bytes)
            return bytes(await result.bytes_async())

    async def stream(
        self, path: str, chunk_bytes: int = CHUNK_BYTES, *, offset: int = 0, etag: str = ""
    ) -> AsyncIterator[bytes]:
        """The object from `offset` on, in pieces of about `chunk_bytes`. An offset at the end gives nothing.

        `etag`: as for `read`.
        """
        full = self._full(_checked_path(path))
        with self._translated(path):
            store = self._store.open(full)
            if offset and (await obstore.head_async(store, full))["size"] <= offset:
                return
            options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
            if etag:
                options["if_match"] = etag
            result = await obstore.get_async(store, full, options=options)
            async for chunk in result.stream(min_chunk_size=chunk_bytes):
                yield bytes(chunk)

    async def write(self, path: str, content: bytes | Path, *, create_only: bool = False) -> None:
        """Write the object, whole or not at all. `create_only`: ObjectAlreadyExists where there is one."""
        full = self._full(_checked_path(path))
        with self._translated(path):
            store = self._store.open(full, write=True)
            await obstore.put_async(store, full, content, mode="create" if create_only else "overwrite")

    async def delete(self, path: str) -> None:
        """Delete the object; not an error where there is none."""
        full = self._full(_checked_path(path))
        with contextlib.suppress(ObjectNotFound), self._translated(path):
            await obstore.delete_async(self._store.open(full), full)

    async def copy_to_local(self, path: str, local: Path, *, etag: str = "") -> int:
        """Copy the object to a local file, whole or not at all; return its size. Makes the folders above it.

        `etag`: as for `read`. Unavailable where this machine's disk does not take it.
        """
        draft = local.with_name(f".{secrets.token_hex(8)}.part")
        size_bytes = 0
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    async for chunk in self.stream(path, etag=etag):
                        size_bytes += await asyncio.to_thread(file.write, chunk)
                draft.replace(local)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:  # what the object's own store raises is ours already
            message = f"{local} cannot be written: {error.strerror}"
            raise Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, {"path": str(local)}) from error
        return size_bytes

    def _full(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _info(self, found: obstore.ObjectMeta) -> ObjectInfo:
        return ObjectInfo(
            path=found["path"].removeprefix(f"{self._prefix}/" if self._prefix else ""),
            size_bytes=found["size"],
            etag=found["e_tag"] or "",
            last_modified=found["last_modified"],
        )

    def _too_large(self, path: str, size_bytes: int) -> ResourceExhausted:
        limit = self._limits.read_bytes_max
        return ResourceExhausted(
            Reason.LIMIT_REACHED,
            f"{self.uri}/{path} has {size_bytes} bytes, but at most {limit} are read at once",
            {"what": "read_bytes_max", "limit": str(limit), "uri": f"{self.uri}/{path}"},
        )

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn what obstore and the system raise into our errors."""
        uri = f"{self.uri}/{path}" if path else self.uri
        try:
            yield
        except (BaseError, OSError) as error:
            raise _error_of(error, uri, self._store.advice) from error


def open_store(
    uri: str,
    *,
    endpoint_url: str | None = None,
    credentials: Credentials | None = None,
    region: str = "",
    anonymous: bool = False,
    allowed_roots: Sequence[Path] | None = None,
    allowed_hosts: Sequence[str] | None = None,
    limits: ObjectLimits | None = None,
    buckets: Buckets | None = None,
) -> ObjectFolder:
    """The folder at `uri`; it need not exist. Nothing is read yet.

    `allowed_roots` bounds file:// (symbolic links resolved), `allowed_hosts` bounds `endpoint_url` (`host` or
    `host:port`). None: no bound, for uris of our own. Empty: nothing is allowed, so a forgotten setting opens nothing.
    Without `credentials` the process's own are used for s3:// (environment, instance role); `anonymous`: none at all,
    which is enough for a public bucket. A process's own never go along with those of a caller. `buckets` are those that
    have been opened before.
    Raises InvalidArgument for what is no such uri, PermissionDenied for what lies outside the bounds.
    """
    limits = limits or ObjectLimits()
    parts = split_uri(uri)
    uri = uri.rstrip("/")
    if parts.scheme == "file":
        roots = None if allowed_roots is None else tuple(root.resolve() for root in allowed_roots)
        local = LocalFolder(uri, Path(unquote(parts.path)), roots)
        local.check("")
        return ObjectFolder(uri, local, limits=limits)
    if endpoint_url:
        check_endpoint(endpoint_url, allowed_hosts)
    region = region or (credentials.region if credentials is not None else "")
    check_region(region)
    rights = Rights(
        bucket=parts.netloc,
        endpoint_url=endpoint_url or "",
        region=region,
        credentials=None if anonymous else credentials,
        anonymous=anonymous,
        limits=limits,
    )
    bucket = buckets.open(rights) if buckets is not None else open_bucket(rights)
    return ObjectFolder(uri, bucket, limits=limits, prefix=unquote(parts.path).strip("/"))


class Store(Protocol):
    """Where a folder's objects are. `advice`: what to do where access is refused."""

    advice: str

    def exists(self) -> bool:
        """False where listing finds nothing because the root itself is missing."""
        ...

    def open(self, path: str, *, write: bool = False) -> obstore.store.ObjectStore:
        """The store, for work on `path`. Raises PermissionDenied where that lies outside the bounds."""
        ...


class LocalFolder:
    """A folder of this machine, bounded by roots. Links are resolved at each use, not only at the first."""

    advice = "check the permissions of the files"

    def __init__(self, uri: str, folder: Path, roots: tuple[Path, ...] | None) -> None:
        self._uri = uri
        self._folder = folder
        self._roots = roots

    def exists(self) -> bool:
        """Whether the folder is there."""
        return self._folder.is_dir()

    def open(self, path: str, *, write: bool = False) -> LocalStore:
        """The folder's store; writing makes the folder."""
        self.check(path)
        if not write and not self.exists():
            raise FileNotFoundError(self._folder)
        return LocalStore(self._folder, mkdir=write)

    def check(self, path: str) -> None:
        """Raise PermissionDenied where the path leads out of every root."""
        if self._roots is None:
            return
        found = (self._folder / path).resolve()
        if any(found.is_relative_to(root) for root in self._roots):
            return
        allowed = ", ".join(str(root) for root in self._roots) or "none"
        uri = f"{self._uri}/{path}" if path else self._uri
        message = f"{uri} lies outside the folders that the configuration allows ({allowed})"
        raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": uri})


def _checked_path(path: str) -> str:
    """The path without a slash at its end; InvalidArgument where it could leave its folder."""
    path = path.removesuffix("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
        description = f"is {path!r}, but must be relative, with neither empty parts, '.', '..' nor control characters"
        raise InvalidArgument([Violation(field="path", description=description)])
    return path


def _error_of(error: Exception, uri: str, advice: str) -> SihlaiError:
    """Our error for what obstore or the system raised at `uri`."""
    metadata = {"uri": uri}
    status = STATUS_IN_TEXT.search(str(error))
    code = status[1] if status is not None else ""
    if isinstance(error, FileNotFoundError) or code == "404" or NOT_A_DIRECTORY in str(error):
        return ObjectNotFound(Reason.OBJECT_NOT_FOUND, f"{uri} does not exist", metadata)
    if isinstance(error, AlreadyExistsError):
        return ObjectAlreadyExists(Reason.OBJECT_ALREADY_EXISTS, f"{uri} exists already", metadata)
    if isinstance(error, PreconditionError):
        return ObjectChanged(Reason.DATASET_CHANGED, f"{uri} was changed while it was read: read it again", metadata)
    if isinstance(error, InvalidPathError):
        message = f"{uri} holds a name that no object can have: {_first_line(error)}"
        return FailedPrecondition(Reason.DATASET_INVALID, message, metadata)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)) or code in ("401", "403"):
        message = f"{uri} is refused by the object store: {advice}"
        return PermissionDenied(Reason.OBJECT_STORE_DENIED, message, metadata)
    message = f"{uri} cannot be reached: {_first_line(error)}"
    return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, metadata, retry_after_seconds=5.0)


def _first_line(error: Exception) -> str:
    """obstore appends its debug output: one line of it is what a person needs."""
    return (str(error).splitlines() or [type(error).__name__])[0][:PROBLEM_CHARACTERS_MAX]
