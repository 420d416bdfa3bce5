"""Checkpoints in the object store: which ones are whole, what is in them, their bytes.

`{root}/{job_uid}/{epoch}/{iteration}/` holds the files and, written last, `manifest.json`: without a manifest whose
every file is there with its size a checkpoint does not exist. This module reads, and deletes what it is told to; it
must never write. Which checkpoints a job has is the store's to say; here stands only what lies in the folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from services.chassis.errors import (
    InvalidArgument,
    NotFound,
    OutOfRange,
    Reason,
    ResourceExhausted,
    SihlaiError,
    Violation,
)
from services.chassis.log import get_logger
from services.chassis.objects.access import Credentials, ObjectLimits
from services.chassis.objects.store import ObjectFolder, ObjectNotFound, open_store

log = get_logger(__name__)

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 2**20
CHUNK_BYTES = 2**20
"""A piece of a download; well below the largest message."""
DELETED_AT_ONCE = 8
"""Files of one folder."""


_Count: TypeAlias = Annotated[int, Meta(ge=0)]


class CheckpointFile(Struct, frozen=True, kw_only=True):
    """One file. `sha256` is in hexadecimal."""

    name: str
    size_bytes: _Count
    sha256: str


class CheckpointManifest(Struct, frozen=True, kw_only=True):
    """A whole checkpoint: what `manifest.json` holds, and where it lies. `cause` is a name of
    sihlai.scheduler.v1.CheckpointCause without its prefix.
    """

    uri: str = ""
    epoch: _Count
    iteration: _Count
    cause: str
    files: tuple[CheckpointFile, ...]
    create_time_unix_us: int
    selection_value: float | None
    best: bool


class CheckpointStore:
    """The folder of all checkpoints. Raises Unavailable (OBJECT_STORE_UNAVAILABLE) where it does not answer."""

    def __init__(
        self, root_uri: str, *, endpoint_url: str | None = None, credentials: Credentials | None = None
    ) -> None:
        limits = ObjectLimits(read_bytes_max=MANIFEST_BYTES_MAX)
        self._root = open_store(root_uri, endpoint_url=endpoint_url, credentials=credentials, limits=limits)

    def prefix(self, job_uid: str, epoch: int) -> str:
        """The uri under which an attempt's checkpoints are written, without a slash at its end."""
        return self._root.folder(f"{job_uid}/{epoch}").uri

    async def adopt(self, job_uid: str, epoch: int) -> list[CheckpointManifest]:
        """The whole checkpoints of an attempt, oldest iteration first. What is not whole is logged and left out."""
        folder = self._root.folder(f"{job_uid}/{epoch}")
        sizes = await _sizes(folder)
        iterations = sorted(int(path.split("/")[0]) for path in sizes if _is_manifest_path(path))
        found = []
        for iteration in iterations:
            checkpoint = folder.folder(str(iteration))
            here = {
                path.removeprefix(f"{iteration}/"): size
                for path, size in sizes.items()
                if path.startswith(f"{iteration}/")
            }
            try:
                manifest = await _read_manifest(checkpoint, here)
                _check_place(manifest, epoch, iteration)
            except _NotWholeError as problem:
                log.warning("checkpoint_not_whole", uri=checkpoint.uri, problem=str(problem))
                continue
            found.append(manifest)
        return found

    async def of_job(self, job_uid: str) -> list[CheckpointManifest]:
        """The whole checkpoints of all attempts of a job, oldest first."""
        paths = [path.partition("/") for path in await _sizes(self._root.folder(job_uid))]
        epochs = {int(epoch) for epoch, _, rest in paths if epoch.isdecimal() and _is_manifest_path(rest)}
        return [manifest for epoch in sorted(epochs) for manifest in await self.adopt(job_uid, epoch)]

    async def describe(self, uri: str) -> CheckpointManifest:
        """What is in the checkpoint at `uri`. NotFound (CHECKPOINT_NOT_FOUND) where it is not there, or not whole."""
        folder = self._folder(uri)
        try:
            return await _read_manifest(folder, await _sizes(folder))
        except _NotWholeError as problem:
            raise _not_found(uri, str(problem)) from problem

    async def stream(self, uri: str, file: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a file of the checkpoint from `offset` on; nothing where that is its end.

        With the first item: NotFound (CHECKPOINT_NOT_FOUND), OutOfRange (OFFSET_BEYOND_END), InvalidArgument.
        """
        if offset < 0:
            raise InvalidArgument([Violation(field="offset", description=f"is {offset}, but must be at least 0")])
        manifest = await self.describe(uri)
        size_bytes = next((each.size_bytes for each in manifest.files if each.name == file), None)
        if size_bytes is None:
            names = ", ".join(each.name for each in manifest.files)
            raise _not_found(uri, f"it has no file {file!r}, only {names}")
        if offset > size_bytes:
            raise OutOfRange(
                Reason.OFFSET_BEYOND_END,
                f"{file} has {size_bytes} bytes, so it cannot be read from offset {offset}",
                {"offset": str(offset), "size_bytes": str(size_bytes)},
            )
        async for chunk in self._folder(uri).stream(file, CHUNK_BYTES, offset=offset):
            yield chunk

    async def delete(self, uri: str) -> None:
        """Delete the files of a checkpoint that is no longer recorded; its manifest first, so that it is never half."""
        await _delete(self._folder(uri))

    async def delete_job(self, job_uid: str, *, seconds_max: float) -> bool:
        """Delete all that lies under a job's prefix: checkpoints, samples, conversion reports.

        False where it could not be done in time; the log says why. What is gone by then stays gone.
        """
        try:
            async with asyncio.timeout(seconds_max):
                await _delete(self._root.folder(job_uid))
        except SihlaiError as error:
            log.warning("job_files_not_deleted", job_uid=job_uid, problem=error.message)
        except TimeoutError:
            log.warning("job_files_not_deleted", job_uid=job_uid, problem=f"they are not gone within {seconds_max:g} s")
        except Exception:  # one job does not hold up others
            log.exception("job_files_not_deleted", job_uid=job_uid)
        else:
            return True
        return False

    def _folder(self, uri: str) -> ObjectFolder:
        root = f"{self._root.uri}/"
        if not uri.startswith(root):
            raise _not_found(uri, f"it does not lie under {self._root.uri}")
        return self._root.folder(uri.removeprefix(root))


class _NotWholeError(Exception):
    """What lies there is no whole checkpoint; says why."""


async def _delete(folder: ObjectFolder) -> None:
    """Delete what is in the folder; manifests first, so that no checkpoint is ever half."""
    paths = await _sizes(folder)
    manifests = [path for path in paths if path.endswith(MANIFEST)]
    for some in (manifests, [path for path in paths if not path.endswith(MANIFEST)]):
        for start in range(0, len(some), DELETED_AT_ONCE):
            await asyncio.gather(*(folder.delete(path) for path in some[start : start + DELETED_AT_ONCE]))


async def _sizes(folder: ObjectFolder) -> dict[str, int]:
    return {found.path: found.size_bytes async for found in folder.list()}


async def _read_manifest(folder: ObjectFolder, sizes: Mapping[str, int]) -> CheckpointManifest:
    if MANIFEST not in sizes:
        raise _NotWholeError(f"{MANIFEST} is missing")
    try:
        manifest = _manifest_from_json(folder.uri, await folder.read(MANIFEST))
    except ObjectNotFound as error:
        raise _NotWholeError(f"{MANIFEST} is missing") from error
    except (ResourceExhausted, ValueError, RecursionError) as error:
        raise _NotWholeError(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from error
    for file in manifest.files:
        size_bytes = sizes.get(file.name)
        if size_bytes != file.size_bytes:
            found = "it is missing" if size_bytes is None else f"{size_bytes} were found"
            raise _NotWholeError(f"{file.name} should have {file.size_bytes} bytes, but {found}")
    return manifest


def _manifest_from_json(uri: str, content: bytes) -> CheckpointManifest:
    """Raises ValueError, or RecursionError, for what is no manifest.

    Python writes NaN and Infinity, which are null elsewhere: a selection value that is none costs no model. And it
    reads half characters, which nothing else takes.
    """
    strict = msgspec.json.encode(json.loads(content))
    manifest = msgspec.json.decode(strict, type=CheckpointManifest)
    if not manifest.files:
        raise ValueError("it names no file")
    return msgspec.structs.replace(manifest, uri=uri)


def _check_place(manifest: CheckpointManifest, epoch: int, iteration: int) -> None:
    """A manifest that was copied to another place would come into another attempt's history."""
    if (manifest.epoch, manifest.iteration) != (epoch, iteration):
        raise _NotWholeError(
            f"{MANIFEST} is of epoch {manifest.epoch}, iteration {manifest.iteration}, "
            f"but lies under epoch {epoch}, iteration {iteration}"
        )


def _is_manifest_path(path: str) -> bool:
    """Whether it is `{iteration}/manifest.json`, with the iteration written as we write it."""
    iteration, _, name = path.partition("/")
    return name == MANIFEST and iteration.isdecimal() and iteration == str(int(iteration))


def _not_found(uri: str, problem: str) -> NotFound:
    return NotFound(Reason.CHECKPOINT_NOT_FOUND, f"there is no whole checkpoint at {uri}: {problem}", {"name": uri})
