"""Datasets and checkpoints on the runner's disk: fetched whole, checked, and only then used.

Of one split's heads the images are the same files and are fetched once; metadata, annotations and, where annotations
are maps, the maps are fetched for each head. Sizes, ETags and checksums are compared with the index and with the
annotations, checksums of a checkpoint with what the scheduler recorded. Nothing here ever writes outside the folder
that it is given: names of images and maps come from users.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import job_pb2

from runner.agent.disk import DISK_THREADS, Moved, on_disk
from runner.agent.fault import RunnerFault
from services.chassis.backoff import Backoff
from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, RetryableError, SihlaiError
from services.chassis.files import replacing
from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.key import key_from_proto
from services.chassis.objects.store import ClockWrong, ObjectChanged, ObjectFolder, ObjectNotFound, open_store
from services.chassis.objects.uri import split_uri, uri_parts

METADATA = "metadata.json"
ANNOTATIONS = "annotations.json"
INDEX = "index.json"
IMAGE = "image"
MAPS = "annotations"
"""The folder of the maps, where annotations are maps."""
LOCAL_ETAG_PREFIX = "sha256-"
"""Before the checksum that is the ETag of a file:// image."""
RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 10.0
IN_MEMORY_BYTES_MAX = 2**20
"""Larger images and maps are written piece by piece."""
CHUNK_BYTES = 2**20

Result = TypeVar("Result")
OnProblem: TypeAlias = Callable[[str], None]
"""Is told what a download waits for, in words, and nothing once it goes on."""
OnMoved: TypeAlias = Callable[[], None]
"""Is told that something has come."""


def ignored(problem: str) -> None:
    """Whoever waits for nothing in particular."""


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """Limits of downloads; the configuration has a setting for each."""

    concurrent_max: int
    unavailable_seconds_max: float
    missing_seconds_max: float
    disk_free_bytes_min: int


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """What was fetched. `left_out`: images that are not what was converted, by name, each with the error."""

    files: int
    size_bytes: int
    seconds: float
    left_out: Mapping[str, SihlaiError] = field(default_factory=dict)


class IndexedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the index knows it; what else the index says of it is the trainer's.

    `etag` is the bucket's, or of a file of a machine `sha256-` and the checksum of its content.
    """

    name: str
    size_bytes: int = msgspec.field(name="bytes")
    etag: str = ""


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a converted dataset."""

    images: list[IndexedImage]


class MapEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An annotation that is a map; what else is said of it is the trainer's."""

    map: str
    size_bytes: int = msgspec.field(name="bytes")
    sha256: str = ""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent needs of a converted dataset's metadata. `annotations` ends in a slash where they are maps."""

    images: str
    annotations: str = ANNOTATIONS


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file to fetch: an `image` or a `map` of this name, to be written to `path`.

    `etag` and `sha256` are those that it must have; empty: none is known. `own`: it is read with the rights of this
    process, and no user's.
    """

    what: str
    store: ObjectFolder
    name: str
    path: Path
    size_bytes: int
    etag: str = ""
    sha256: str = ""
    own: bool


@dataclass(frozen=True, kw_only=True)
class HeadDataset:
    """A head's dataset, of which metadata and annotations are fetched. `maps` and the images are still to be."""

    images_uri: str
    images: Sequence[IndexedImage]
    maps: Sequence[Wanted]


class CheckpointDamaged(Exception):  # noqa: N818  # what it is; the reason's name is CHECKPOINT_ERROR
    """A file of the checkpoint to go on from is missing or is not what was recorded."""


class Downloads:
    """Fetches from object stores, so many at once, each so often."""

    def __init__(
        self,
        *,
        limits: DownloadLimits,
        randomness: random.Random,
        own_credentials_uris: Sequence[str] = (),
    ) -> None:
        """`own_credentials_uris`: what of users' data is read with the process's own credentials, if they give none."""
        self._limits = limits
        self._random = randomness
        self._own = [uri_parts(uri) for uri in own_credentials_uris]

    async def head(
        self, converted: dataset_pb2.DatasetSource, folder: Path, *, on_problem: OnProblem = ignored
    ) -> HeadDataset:
        """Fetch a head's metadata, annotations and index into `folder`. Raises our errors where it cannot."""
        store = open_result(converted)
        for name in (METADATA, ANNOTATIONS, INDEX):
            await self._copied(store, name, folder / name, on_problem, own=True)
        metadata = await on_disk(_decoded, folder / METADATA, Metadata)
        maps: Sequence[Wanted] = ()
        if metadata.annotations.endswith("/"):
            maps = await on_disk(_wanted_maps, store, folder)
        index = await on_disk(_decoded, folder / INDEX, Index)
        return HeadDataset(images_uri=metadata.images, images=index.images, maps=maps)

    def images(
        self, source: dataset_pb2.DatasetSource, uri: str, images: Iterable[IndexedImage], folder: Path
    ) -> list[Wanted]:
        """The images of a user's dataset, which lie at `uri`, to be fetched into `folder`.

        FailedPrecondition (DATASET_INVALID) where a name would lead outside the folder.
        """
        store, own = self._open_images(source, uri)
        local = split_uri(uri).scheme == "file"
        wanted = []
        for image in images:
            check_name(image.name)
            wanted.append(
                Wanted(
                    what=IMAGE,
                    store=store,
                    name=image.name,
                    path=folder / image.name,
                    size_bytes=image.size_bytes,
                    etag="" if local else image.etag,
                    sha256=image.etag.removeprefix(LOCAL_ETAG_PREFIX) if local else "",
                    own=own,
                )
            )
        return wanted

    async def files(
        self,
        wanted: Sequence[Wanted],
        folder: Path,
        *,
        on_progress: Callable[[int, int], None],
        on_problem: OnProblem = ignored,
        skip: bool = False,
    ) -> Downloaded:
        """Fetch images and maps, all of which go below `folder`; `on_progress` gets files done and all.

        FailedPrecondition (DATASET_CHANGED) where one is gone or is not what was said of it, PermissionDenied where it
        may not be read; with `skip` an image is left out for these. RunnerFault where the disk has no room.
        """
        size_bytes = sum(each.size_bytes for each in wanted)
        await on_disk(self._make_room, {folder, *(each.path.parent for each in wanted)}, folder, size_bytes)
        begun = time.monotonic()
        left = list(reversed(wanted))
        left_out: dict[str, SihlaiError] = {}
        done = 0

        async def fetch_some() -> None:
            nonlocal done
            while left:
                each = left.pop()
                try:
                    await self._fetch(each, on_problem)
                except (FailedPrecondition, PermissionDenied) as error:
                    if not skip or each.what != IMAGE:
                        raise
                    await on_disk(each.path.unlink, missing_ok=True)
                    left_out[each.name] = error
                done += 1
                on_progress(done, len(wanted))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.concurrent_max):
                    group.create_task(fetch_some())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return Downloaded(
            files=len(wanted) - len(left_out),
            size_bytes=size_bytes - sum(each.size_bytes for each in wanted if each.name in left_out),
            seconds=time.monotonic() - begun,
            left_out=left_out,
        )

    async def checkpoint(
        self, checkpoint: job_pb2.Checkpoint, folder: Path, *, on_problem: OnProblem = ignored
    ) -> Downloaded:
        """Fetch a checkpoint into `folder`. CheckpointDamaged where a file is not what was recorded."""
        store = open_store(checkpoint.uri)
        begun = time.monotonic()
        for file in checkpoint.files:
            check_name(file.name)
            try:
                await self._copied(store, file.name, folder / file.name, on_problem, own=True)
            except RetryableError:
                raise
            except SihlaiError as error:
                raise CheckpointDamaged(f"the checkpoint cannot be fetched: {error.message}") from error
            found = await on_disk(sha256_of, folder / file.name)
            if found != file.sha256:
                raise CheckpointDamaged(
                    f"{checkpoint.uri}/{file.name} has the checksum {found}, but {file.sha256} was recorded"
                )
        size_bytes = sum(file.size_bytes for file in checkpoint.files)
        return Downloaded(files=len(checkpoint.files), size_bytes=size_bytes, seconds=time.monotonic() - begun)

    def _open_images(self, source: dataset_pb2.DatasetSource, uri: str) -> tuple[ObjectFolder, bool]:
        """With the source's credentials. A bucket without any is read as a public one, as conversion does.

        True beside it where it is read with this process's own, as the configuration says.

        Otherwise a user would get what this process alone may read, or send its key's name to a server of theirs.
        """
        credentials = key_from_proto(source.credentials, source.region) if source.HasField("credentials") else None
        own = credentials is None and any(uri_parts(uri)[: len(parts)] == parts for parts in self._own)
        store = open_store(
            uri,
            endpoint_url=source.endpoint_url or None,
            region=source.region,
            credentials=credentials,
            anonymous=credentials is None and not own,
        )
        return store, own

    async def _fetch(self, wanted: Wanted, on_problem: OnProblem) -> None:
        store, name, etag = wanted.store, wanted.name, wanted.etag
        try:
            if wanted.size_bytes <= IN_MEMORY_BYTES_MAX:
                content = await self._tried(
                    store, lambda moved: store.read(name, etag=etag), on_problem, own=wanted.own
                )
                await on_disk(wanted.path.write_bytes, content)
                size_bytes = len(content)
            else:
                size_bytes = await self._copied(store, name, wanted.path, on_problem, etag=etag, own=wanted.own)
        except ObjectNotFound as error:
            raise _changed(wanted, "is gone") from error
        except ObjectChanged as error:
            raise _changed(wanted, "has not the ETag that was recorded") from error
        if size_bytes != wanted.size_bytes:
            raise _changed(wanted, f"has {size_bytes} bytes, but {wanted.size_bytes} were recorded")
        if wanted.sha256 and await on_disk(sha256_of, wanted.path) != wanted.sha256:
            raise _changed(wanted, "has not the checksum that was recorded")

    async def _copied(
        self, store: ObjectFolder, name: str, path: Path, on_problem: OnProblem, *, etag: str = "", own: bool
    ) -> int:
        """Copy an object to `path`, whole or not at all; its size. A try goes on where the one before it broke off."""
        found = etag

        def note(etag: str) -> None:
            nonlocal found
            found = etag

        await on_disk(path.parent.mkdir, parents=True, exist_ok=True)
        async with DISK_THREADS.entered(replacing(path, synced=False)) as file:

            async def go_on(moved: OnMoved) -> None:
                async for chunk in store.stream(name, CHUNK_BYTES, offset=file.tell(), etag=found, on_etag=note):
                    await on_disk(file.write, chunk)
                    moved()

            await self._tried(store, go_on, on_problem, own=own)
            return file.tell()

    async def _tried(
        self, store: ObjectFolder, fetch: Callable[[OnMoved], Awaitable[Result]], on_problem: OnProblem, *, own: bool
    ) -> Result:
        """What `fetch` gives, once the store is there. RetryableError where nothing came for too long.

        RunnerFault where this machine is what does not work: its clock, its `own` rights, a folder that is not mounted.
        """
        limits = self._limits
        backoff = Backoff(seconds_first=RETRY_SECONDS_FIRST, seconds_max=RETRY_SECONDS_MAX, randomness=self._random)
        moved_at = time.monotonic()
        was_there = False

        def moved() -> None:
            nonlocal moved_at
            moved_at = time.monotonic()
            backoff.reset()
            on_problem("")

        while True:
            try:
                result = await fetch(moved)
            except ClockWrong as error:
                raise RunnerFault(error.message) from error
            except RetryableError as error:
                if time.monotonic() - moved_at > limits.unavailable_seconds_max:
                    raise
                on_problem(error.message)
            except PermissionDenied as error:
                if own:
                    raise RunnerFault(f"the runner's own rights do not suffice: {error.message}") from error
                raise
            except ObjectNotFound as error:
                if await store.is_there():
                    if was_there:
                        raise
                    was_there = True  # but perhaps not yet when the object was looked for
                    continue
                problem = f"{store.uri} is missing on this machine: is it mounted?"
                if time.monotonic() - moved_at > limits.missing_seconds_max:
                    raise RunnerFault(problem) from error
                on_problem(problem)
            else:
                on_problem("")
                return result
            await asyncio.sleep(backoff.next_seconds())

    def _make_room(self, parents: Iterable[Path], folder: Path, size_bytes: int) -> None:
        for parent in parents:
            parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
        wanted_bytes = size_bytes + self._limits.disk_free_bytes_min
        if free_bytes < wanted_bytes:
            raise RunnerFault(
                f"the runner's disk has {free_bytes} bytes free, but the dataset needs {size_bytes} "
                f"and {self._limits.disk_free_bytes_min} must stay free: use a runner with a larger disk"
            )


def sha256_of(path: Path, moved: Moved = lambda: None) -> str:
    """The checksum of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            moved()
    return digest.hexdigest()


def open_result(source: dataset_pb2.DatasetSource, *, limits: ObjectLimits | None = None) -> ObjectFolder:
    """A converted dataset in the system's own store, with the process's own credentials."""
    endpoint_url = source.endpoint_url or None
    return open_store(source.uri, endpoint_url=endpoint_url, region=source.region, limits=limits)


def check_name(name: str) -> None:
    """Raises FailedPrecondition for what is no name of a file in a folder."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise FailedPrecondition(
            Reason.DATASET_INVALID, f"{name!r} is no file name: files lie directly in their folder", {"name": name}
        )


def _wanted_maps(store: ObjectFolder, folder: Path) -> list[Wanted]:
    """The maps that a head's annotations name, each once."""
    annotations = _decoded(folder / ANNOTATIONS, dict[str, MapEntry | str | list[Any] | None])
    wanted: dict[str, Wanted] = {}
    for entry in annotations.values():
        if isinstance(entry, MapEntry):
            name = entry.map.removeprefix(f"{MAPS}/")
            check_name(name)
            wanted[name] = Wanted(
                what="map",
                store=store,
                name=f"{MAPS}/{name}",
                path=folder / MAPS / name,
                size_bytes=entry.size_bytes,
                sha256=entry.sha256,
                own=True,
            )
    return list(wanted.values())


def _changed(wanted: Wanted, problem: str) -> FailedPrecondition:
    message = f"the {wanted.what} {wanted.name} {problem}: the dataset changed while it was read; submit the job again"
    return FailedPrecondition(Reason.DATASET_CHANGED, message, {"name": wanted.name})


def _decoded(path: Path, kind: type[Result]) -> Result:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        message = f"{path.name} of the converted dataset is not what the runner reads: {error}"
        raise FailedPrecondition(Reason.DATASET_INVALID, message) from error
