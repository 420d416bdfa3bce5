"""Objects in a folder: `file:///…`, `s3://…`, `gs://…` or `az://…`, through obstore.

A uri may come from a user. Where it does, the caller passes the roots and hosts of its configuration, and nothing
outside them is opened. Paths are relative to the folder and never leave it. Credentials must not stand in an error or
in the log.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

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
from services.chassis.files import replacing
from services.chassis.objects.access import Credentials, ObjectLimits, S3Key
from services.chassis.objects.bucket import Buckets, Rights, open_bucket
from services.chassis.objects.local import OWN_FILES, LocalBounds, OwnFolder, UsersFolder, require_file, through
from services.chassis.objects.parts import Parts, opened, part_bytes_of
from services.chassis.objects.uri import bucket_of, check_endpoint, check_region, local_path, split_uri

CHUNK_BYTES = 4 * 2**20
PROBLEM_CHARACTERS_MAX = 200
# obstore has no classes for these two: what a list answers, and a path below a file, stand in the text alone.
STATUS_IN_TEXT = re.compile(r"non-2xx status code: (\d{3})")
FINAL_STATUSES = frozenset({"400", "405", "411", "501"})
"""However often it is asked, a server that says this says it again: a wrong region, another kind of server."""
WRONG_REGION = "Received redirect without LOCATION"
NOT_FINAL = "RequestTimeout"
"""What S3 also says with status 400: it waited too long for a body."""
NOT_A_DIRECTORY = "(os error 20)"
CLOCK_WRONG = re.compile("RequestTimeTooSkewed|Request date header too old")
"""What S3 and Azure say with status 403, but for a HEAD, whose answer holds nothing."""


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


class LocalDiskFailed(Unavailable):
    """This machine's own disk does not take what was read; the store is not to blame."""


class ClockWrong(Unavailable):
    """The store takes no request from this machine, whose clock is not the store's; nobody's rights are to blame."""


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

    async def is_there(self) -> bool:
        """False where the folder itself is missing. A bucket answers for itself: of a prefix that is not known."""
        with self._translated(""):
            return await self._store.exists()

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects under a path prefix (whole path parts), in no particular order; none where nothing is there."""
        under = self._full(_checked_path(prefix)) if prefix else self._prefix
        with self._translated(prefix):
            if not await self._store.exists():
                return
            async for batch in self._store.list(under):
                for found in batch:
                    yield self._info(found, found["path"].removeprefix(f"{self._prefix}/" if self._prefix else ""))

    async def info(self, path: str) -> ObjectInfo:
        """What is known of one object, or ObjectNotFound."""
        async with self._reading(path) as (store, name):
            return self._info(await obstore.head_async(store, name), path.removesuffix("/"))

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
        options: obstore.GetOptions = {"if_match": etag} if etag else {}
        async with self._reading(path) as (store, name):
            result = await obstore.get_async(store, name, options=options)
            size_bytes = result.meta["size"]
            if size_bytes > self._limits.read_bytes_max:
                raise self._too_large(path, size_bytes)
            return bytes(await result.bytes_async())

    async def stream(
        self,
        path: str,
        chunk_bytes: int = CHUNK_BYTES,
        *,
        offset: int = 0,
        etag: str = "",
        on_etag: Callable[[str], None] = lambda etag: None,
    ) -> AsyncIterator[bytes]:
        """The object from `offset` on, in pieces of about `chunk_bytes`. An offset at the end gives nothing.

        `etag`: as for `read`. `on_etag` gets the one that it has: with it a later call goes on with the same object.
        """
        async with self._reading(path) as (store, name):
            if offset and (await obstore.head_async(store, name))["size"] <= offset:
                return
            options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
            if etag:
                options["if_match"] = etag
            result = await obstore.get_async(store, name, options=options)
            on_etag(result.meta["e_tag"] or "")
            async for chunk in result.stream(min_chunk_size=chunk_bytes):
                yield bytes(chunk)

    async def write(
        self,
        path: str,
        content: bytes | Path,
        *,
        create_only: bool = False,
        on_progress: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        """Write the object, whole or not at all. `create_only`: ObjectAlreadyExists where there is one.

        A file of more than `part_bytes` goes in parts, as it is read from the disk, and `on_progress` gets the bytes
        that have arrived so far, at least. In parts `create_only` looks before it writes, so
        of two writers at once both may succeed: where there can be two, a small object that is written last decides.
        OSError where the file cannot be read here, TimeoutError where its disk does not answer.
        """
        full = self._full(_checked_path(path))
        answer_seconds_max = self._limits.folder_seconds_max
        part_bytes = await part_bytes_of(content, self._limits) if isinstance(content, Path) else None
        if isinstance(content, Path) and part_bytes is None:  # obstore would open and read it in this thread
            content = await OWN_FILES.run(content.read_bytes, seconds_max=answer_seconds_max)
        with self._translated(path):
            store = await self._store.open(full, write=True)
            if not isinstance(content, Path) or part_bytes is None:
                await obstore.put_async(store, full, content, mode="create" if create_only else "overwrite")
                return
        if create_only and await self.exists(path):
            raise ObjectAlreadyExists(
                Reason.OBJECT_ALREADY_EXISTS, f"{self.uri}/{path} exists already", {"uri": f"{self.uri}/{path}"}
            )
        async with OWN_FILES.entered(opened(content), seconds_max=answer_seconds_max) as file:
            parts = Parts(file, part_bytes, answer_seconds_max=answer_seconds_max)
            with self._translated(path):
                try:
                    await obstore.put_async(
                        store,
                        full,
                        parts.read(on_progress, ahead_max=self._limits.parts_concurrent_max + 1),
                        use_multipart=True,
                        chunk_size=part_bytes,
                        max_concurrency=self._limits.parts_concurrent_max,
                    )
                except Exception:
                    if parts.failure is None:
                        raise
        if parts.failure is not None:
            raise parts.failure

    @contextlib.contextmanager
    def opened(self, path: str = "") -> Iterator[int]:
        """A descriptor of what lies at the path, a file or not; `local.through` gives the path that reads it.

        Only in a folder of this machine. Raises as `read` does.
        """
        full = self._full(_checked_path(path)) if path else self._prefix
        with contextlib.ExitStack() as stack:
            with self._translated(path):
                descriptor = stack.enter_context(self._store.opened(full))
            yield descriptor

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[int]:
        """A descriptor that reads the file at the path. Only in a folder of this machine. Raises as `read` does."""
        with contextlib.ExitStack() as stack:
            with self._translated(path):
                place = stack.enter_context(self.opened(path))
                require_file(place, f"{self.uri}/{path}")
                reader = os.open(through(place), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, reader)
            yield reader

    async def delete(self, path: str) -> None:
        """Delete the object; not an error where there is none."""
        full = self._full(_checked_path(path))
        with contextlib.suppress(ObjectNotFound), self._translated(path):
            await obstore.delete_async(await self._store.open(full), full)

    async def copy_to_local(self, path: str, local: Path, *, etag: str = "") -> int:
        """Copy the object to a local file, whole or not at all; return its size. Makes the folders above it.

        `etag`: as for `read`. LocalDiskFailed where this machine's disk does not take it.
        """
        size_bytes = 0
        try:
            await OWN_FILES.run(lambda: local.parent.mkdir(parents=True, exist_ok=True))
            async with OWN_FILES.entered(replacing(local, synced=False)) as file:
                async for chunk in self.stream(path, etag=etag):
                    size_bytes += await OWN_FILES.run(functools.partial(file.write, chunk))
        except OSError as error:  # what the object's own store raises is ours already
            message = f"{local} cannot be written: {error.strerror}"
            raise LocalDiskFailed(Reason.OBJECT_STORE_UNAVAILABLE, message, {"path": str(local)}) from error
        return size_bytes

    def _full(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _info(self, found: obstore.ObjectMeta, path: str) -> ObjectInfo:
        return ObjectInfo(
            path=path,
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

    @contextlib.asynccontextmanager
    async def _reading(self, path: str) -> AsyncIterator[tuple[obstore.store.ObjectStore, str]]:
        full = self._full(_checked_path(path))
        with self._translated(path):
            async with self._store.reading(full) as found:
                yield found

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
    closed_roots: Sequence[Path] = (),
    allowed_hosts: Sequence[str] | None = None,
    limits: ObjectLimits | None = None,
    buckets: Buckets | None = None,
) -> ObjectFolder:
    """The folder at `uri`; it need not exist. Nothing is read yet.

    `allowed_roots` bounds file:// (symbolic links resolved), `closed_roots` are those among them that stay closed;
    `allowed_hosts` bounds `endpoint_url` (`host` or `host:port`). None: no bound, for uris of our own; with bounds a
    folder is read only. Empty: nothing is allowed, so a forgotten setting opens nothing.
    Without `credentials` the process's own are used for a bucket (environment, instance role); `anonymous`: none at
    all, which is enough for a public bucket. A process's own never go along with those of a caller. `buckets` are
    those that have been opened before.
    Raises InvalidArgument for what is no such uri, PermissionDenied for what lies outside the bounds.
    """
    limits = limits or ObjectLimits()
    parts = split_uri(uri)
    uri = uri.rstrip("/")
    if parts.scheme == "file":
        folder = local_path(uri)
        assert folder is not None
        seconds = limits.folder_seconds_max
        if allowed_roots is None:
            return ObjectFolder(uri, OwnFolder(uri, folder, answer_seconds_max=seconds), limits=limits)
        bounds = LocalBounds(
            roots=tuple(root.resolve() for root in allowed_roots), closed=tuple(root.resolve() for root in closed_roots)
        )
        return ObjectFolder(uri, UsersFolder(uri, folder, bounds, answer_seconds_max=seconds), limits=limits)
    if endpoint_url:
        check_endpoint(endpoint_url, allowed_hosts)
    region = region or (credentials.region if isinstance(credentials, S3Key) else "")
    check_region(region)
    account, name, prefix = bucket_of(parts)
    rights = Rights(
        scheme=parts.scheme,
        account=account,
        bucket=name,
        endpoint_url=endpoint_url or "",
        region=region,
        credentials=None if anonymous else credentials,
        anonymous=anonymous,
        limits=limits,
    )
    bucket = buckets.open(rights) if buckets is not None else open_bucket(rights)
    return ObjectFolder(uri, bucket, limits=limits, prefix=prefix)


class Store(Protocol):
    """Where a folder's objects are. `advice`: what to do where access is refused."""

    advice: str

    async def exists(self) -> bool:
        """False where listing finds nothing because the root itself is missing."""
        ...

    async def open(self, path: str, *, write: bool = False) -> obstore.store.ObjectStore:
        """The store, for a change at `path`. Raises PermissionDenied where nothing may be changed."""
        ...

    def reading(self, path: str) -> contextlib.AbstractAsyncContextManager[tuple[obstore.store.ObjectStore, str]]:
        """The store to read `path` from, and its name there. Raises PermissionDenied where it is out of bounds."""
        ...

    def list(self, prefix: str) -> AsyncIterator[Sequence[obstore.ObjectMeta]]:
        """What lies under a prefix, in batches."""
        ...

    def opened(self, path: str) -> contextlib.AbstractContextManager[int]:
        """A descriptor of what lies at `path` on this machine."""
        ...


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
    if CLOCK_WRONG.search(str(error)):
        message = (
            f"{uri} is refused by the object store, because this machine's clock is not the store's: set the clock"
        )
        return ClockWrong(Reason.OBJECT_STORE_UNAVAILABLE, message, metadata, retry_after_seconds=5.0)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)) or code in ("401", "403"):
        message = f"{uri} is refused by the object store: {advice}"
        return PermissionDenied(Reason.OBJECT_STORE_DENIED, message, metadata)
    if WRONG_REGION in str(error) or (code in FINAL_STATUSES and NOT_FINAL not in str(error)):
        message = f"{uri} is refused by the object store: check region, endpoint_url and bucket ({_first_line(error)})"
        return PermissionDenied(Reason.OBJECT_STORE_DENIED, message, metadata)
    message = f"{uri} cannot be reached: {_first_line(error)}"
    return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, metadata, retry_after_seconds=5.0)


def _first_line(error: Exception) -> str:
    """obstore appends its debug output: one line of it is what a person needs."""
    return (str(error).splitlines() or [type(error).__name__])[0][:PROBLEM_CHARACTERS_MAX]
