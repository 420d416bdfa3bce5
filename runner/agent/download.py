"""Datasets and checkpoints on the runner's disk: fetched whole, checked, and only then used.

Of one split's heads the images are the same files and are fetched once; annotations and metadata are fetched for each
head. Sizes are compared with the index, checksums of a checkpoint with what the scheduler recorded. Nothing here ever
writes outside the folder that it is given: image names come from users.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import job_pb2

from runner.agent.backoff import Backoff
from services.chassis.errors import FailedPrecondition, Reason, RetryableError, SihlaiError
from services.chassis.objects import Credentials, ObjectFolder, ObjectNotFound, open_store

METADATA = "metadata.json"
ANNOTATIONS = "annotations.json"
INDEX = "index.json"
RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 10.0
IN_MEMORY_BYTES_MAX = 2**20
"""Larger images are written piece by piece."""
HASH_CHUNK_BYTES = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """Limits of downloads; the configuration has a setting for each."""

    concurrent_max: int
    tries_max: int
    disk_free_bytes_min: int


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """What was fetched."""

    files: int
    size_bytes: int
    seconds: float


class IndexedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the index knows it; what else the index says of it is the trainer's."""

    name: str
    size_bytes: int = msgspec.field(name="bytes")


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a converted dataset."""

    images: list[IndexedImage]


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent needs of a converted dataset's metadata."""

    images: str


class CheckpointDamaged(Exception):  # noqa: N818  # what it is; the reason's name is CHECKPOINT_ERROR
    """A file of the checkpoint to go on from is missing or is not what was recorded."""


class Downloads:
    """Fetches from object stores, so many at once, each so often."""

    def __init__(self, *, limits: DownloadLimits, randomness: random.Random) -> None:
        self._limits = limits
        self._random = randomness

    async def head(self, converted: dataset_pb2.DatasetSource, folder: Path) -> tuple[Metadata, Index]:
        """Fetch a head's metadata, annotations and index into `folder`. Raises our errors where it cannot."""
        store = _open(converted)
        for name in (METADATA, ANNOTATIONS, INDEX):
            await self._tried(lambda name=name: store.copy_to_local(name, folder / name))  # type: ignore[misc]  # a loop's lambda
        metadata = _decoded(folder / METADATA, Metadata)
        return metadata, _decoded(folder / INDEX, Index)

    async def images(
        self,
        source: dataset_pb2.DatasetSource,
        images_uri: str,
        images: Iterable[IndexedImage],
        folder: Path,
        *,
        on_progress: Callable[[int, int], None],
    ) -> Downloaded:
        """Fetch the images into `folder` with the source's credentials; `on_progress` gets images done and all.

        FailedPrecondition: DATASET_CHANGED where one is gone or has another size than the index says, DATASET_INVALID
        where a name would lead outside the folder, LIMIT_REACHED where the disk has no room.
        """
        images = list(images)
        size_bytes = sum(image.size_bytes for image in images)
        for image in images:
            check_name(image.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_disk(folder, size_bytes)
        store = _open(source, images_uri)
        begun = time.monotonic()
        left = list(reversed(images))
        done = 0

        async def fetch_some() -> None:
            nonlocal done
            while left:
                await self._image(store, left.pop(), folder)
                done += 1
                on_progress(done, len(images))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.concurrent_max):
                    group.create_task(fetch_some())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return Downloaded(files=len(images), size_bytes=size_bytes, seconds=time.monotonic() - begun)

    async def checkpoint(self, checkpoint: job_pb2.Checkpoint, folder: Path) -> Downloaded:
        """Fetch a checkpoint into `folder`. CheckpointDamaged where a file is not what was recorded."""
        store = open_store(checkpoint.uri)
        begun = time.monotonic()
        for file in checkpoint.files:
            check_name(file.name)
            try:
                await self._tried(lambda name=file.name: store.copy_to_local(name, folder / name))  # type: ignore[misc]  # a loop's lambda
            except SihlaiError as error:
                raise CheckpointDamaged(f"the checkpoint cannot be fetched: {error.message}") from error
            found = await asyncio.to_thread(sha256_of, folder / file.name)
            if found != file.sha256:
                raise CheckpointDamaged(
                    f"{checkpoint.uri}/{file.name} has the checksum {found}, but {file.sha256} was recorded"
                )
        size_bytes = sum(file.size_bytes for file in checkpoint.files)
        return Downloaded(files=len(checkpoint.files), size_bytes=size_bytes, seconds=time.monotonic() - begun)

    async def _image(self, store: ObjectFolder, image: IndexedImage, folder: Path) -> None:
        path = folder / image.name
        try:
            if image.size_bytes <= IN_MEMORY_BYTES_MAX:
                content = await self._tried(lambda: store.read(image.name))
                path.write_bytes(content)
                size_bytes = len(content)
            else:
                size_bytes = await self._tried(lambda: store.copy_to_local(image.name, path))
        except ObjectNotFound as error:
            raise _changed(image.name, "is gone") from error
        if size_bytes != image.size_bytes:
            raise _changed(image.name, f"has {size_bytes} bytes, but its index says {image.size_bytes}")

    async def _tried(self, fetch: Callable[[], Awaitable[Result]]) -> Result:
        backoff = Backoff(seconds_first=RETRY_SECONDS_FIRST, seconds_max=RETRY_SECONDS_MAX, randomness=self._random)
        for _ in range(self._limits.tries_max - 1):
            try:
                return await fetch()
            except RetryableError:
                await asyncio.sleep(backoff.next_seconds())
        return await fetch()

    def _check_disk(self, folder: Path, size_bytes: int) -> None:
        free_bytes = shutil.disk_usage(folder).free
        wanted_bytes = size_bytes + self._limits.disk_free_bytes_min
        if free_bytes < wanted_bytes:
            raise FailedPrecondition(
                Reason.LIMIT_REACHED,
                f"the runner's disk has {free_bytes} bytes free, but the dataset needs {size_bytes} "
                f"and {self._limits.disk_free_bytes_min} must stay free: use a runner with a larger disk",
                {"what": "disk_free_bytes", "limit": str(free_bytes)},
            )


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(source: dataset_pb2.DatasetSource, uri: str = "") -> ObjectFolder:
    """The source's folder, or another one with the source's credentials; without any, the process's own are used."""
    credentials = None
    if source.HasField("credentials"):
        credentials = Credentials(
            access_key_id=source.credentials.access_key_id,
            secret_access_key=source.credentials.secret_access_key,
            session_token=source.credentials.session_token,
            region=source.region,
        )
    return open_store(uri or source.uri, endpoint_url=source.endpoint_url or None, credentials=credentials)


def check_name(name: str) -> None:
    """Raises FailedPrecondition for what is no name of a file in a folder."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise FailedPrecondition(
            Reason.DATASET_INVALID, f"{name!r} is no file name: files lie directly in their folder", {"name": name}
        )


def _changed(name: str, problem: str) -> FailedPrecondition:
    message = f"the image {name} {problem}: the dataset changed while it was read; submit the job again"
    return FailedPrecondition(Reason.DATASET_CHANGED, message, {"name": name})


def _decoded(path: Path, kind: type[Result]) -> Result:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        message = f"{path.name} of the converted dataset is not what the runner reads: {error}"
        raise FailedPrecondition(Reason.DATASET_INVALID, message) from error
